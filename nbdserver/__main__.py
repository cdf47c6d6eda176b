"""`python -m nbdserver FILE`: files and block devices over NBD. `--help` says how.

Prints one line for each export with its NBD URIs when it is ready; SIGTERM and SIGINT answer what
was received and end it. Also the measure of what the network part costs without replication.

Exit status: 0 stopped, 2 usage, 8 a file or an address cannot be used, 9 permission.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from nbdserver.activation import INHERITED, inherited_sockets
from nbdserver.admission import TlsMode
from nbdserver.command_line import Served, Settings, parse_arguments
from nbdserver.errors import ListenError
from nbdserver.export import ExportInfo
from nbdserver.file_backend import FileBackend
from nbdserver.file_service import FileService
from nbdserver.tls import problem_of

EXIT_CANNOT_SERVE: Final = 8
EXIT_PERMISSION: Final = 9


class CannotServe(Exception):
    """What is wrong, why, and what to do next; `exit_status` for the process."""

    def __init__(self, what: str, why: str, next_step: str, exit_status: int) -> None:
        super().__init__(f"{what}\nWhy   {why}\nNext  {next_step}")
        self.exit_status = exit_status


def open_backend(
    loop: asyncio.AbstractEventLoop, path: Path, *, read_only: bool, block_bytes: int = 1
) -> FileBackend:
    """The file, opened. Raises CannotServe."""
    what, other = f"cannot serve {path}", "name a file or a block device"
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CannotServe(what, "it is a directory", other, EXIT_CANNOT_SERVE)
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            # Opening one of those could wait for ever.
            raise CannotServe(what, "it is neither", other, EXIT_CANNOT_SERVE)
        return FileBackend(loop, path, read_only=read_only, block_bytes=block_bytes)
    except FileNotFoundError as error:
        raise CannotServe(
            what, "it does not exist", f"create it: truncate -s 1G {path}", EXIT_CANNOT_SERVE
        ) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise CannotServe(
                what,
                error.strerror or "not permitted",
                "run as a user that may write it, or serve it with --read-only",
                EXIT_PERMISSION,
            ) from error
        raise CannotServe(what, error.strerror or str(error), other, EXIT_CANNOT_SERVE) from error


def export_of(served: Served, settings: Settings, size_bytes: int) -> ExportInfo:
    """What clients are told of a file. Raises CannotServe."""
    sizes = settings.block_sizes
    try:
        return ExportInfo(
            served.name,
            size_bytes,
            read_only=served.read_only,
            can_multi_conn=True,
            description=settings.description,
            minimum_block_bytes=sizes.minimum_bytes,
            preferred_block_bytes=sizes.preferred_bytes,
            maximum_block_bytes=sizes.maximum_bytes,
            can_fast_zero=True,
            contexts=FileBackend.contexts,
        )
    except ValueError as error:
        raise CannotServe(
            f"cannot serve {served.path}", str(error), "change --block-size", EXIT_CANNOT_SERVE
        ) from error


def check_certificates(settings: Settings) -> None:
    """Raises CannotServe if TLS could not work."""
    files = settings.encryption.files
    problem = problem_of(files) if files is not None else ""
    if problem:
        next_step = "name a certificate with its key, and an authority, in PEM files"
        raise CannotServe("cannot offer TLS", problem, next_step, EXIT_CANNOT_SERVE)


def open_listeners(service: FileService, settings: Settings) -> list[socket.socket]:
    """Listen as asked, and on what was inherited. Raises CannotServe."""
    server = service.server
    try:
        inherited = inherited_sockets(os.environ)
        for sock in inherited:
            server.adopt(sock)
        for path in settings.sockets:
            server.listen_unix(path)
        for host, port in settings.addresses:
            server.listen_tcp(host, port)
    except ListenError as error:
        next_step, exit_status = _after_no_listener(error)
        raise CannotServe(
            f"cannot listen on {error.address}", error.why, next_step, exit_status
        ) from error
    if not server.sockets:
        raise CannotServe(
            "cannot listen anywhere",
            "the inherited sockets (LISTEN_FDS) are for another process",
            "name a --socket or a --listen",
            EXIT_CANNOT_SERVE,
        )
    return list(server.sockets)


def _after_no_listener(error: ListenError) -> tuple[str, int]:
    """What to do about it, and the exit status."""
    if error.address == INHERITED:
        next_step = "pass sockets that listen (ListenStream= a path or an address, Accept=no)"
        return f"{next_step}, or name one", EXIT_CANNOT_SERVE
    cause = error.__cause__
    number = cause.errno if isinstance(cause, OSError) else None
    if isinstance(cause, socket.gaierror) or number == errno.EADDRNOTAVAIL:
        return "name an address of this machine: `ip address` shows them", EXIT_CANNOT_SERVE
    if number == errno.ENAMETOOLONG:
        return "choose a shorter path for --socket", EXIT_CANNOT_SERVE
    if number == errno.ENOTSOCK:
        return "remove that file, or choose another --socket", EXIT_CANNOT_SERVE
    if number in (errno.ENOENT, errno.ENOTDIR):
        return "create the folder of the socket, or choose another one", EXIT_CANNOT_SERVE
    if number in (errno.EACCES, errno.EPERM):
        return "choose another --socket or --listen, or run as a user who may", EXIT_PERMISSION
    return "stop the other program, or choose another --socket or --listen", EXIT_CANNOT_SERVE


def remark_on(path: Path, size_bytes: int) -> str:
    """What may surprise about the size that is served of a file, if anything."""
    if not size_bytes:
        return f"{path} is empty: nothing can be stored there before, say, truncate -s 1G {path}"
    try:
        status = path.stat()
    except OSError:
        # It is open, so it is served; whoever took its name away knows that it is gone.
        return ""
    left = status.st_size - size_bytes
    if stat.S_ISREG(status.st_mode) and left > 0:
        return f"the last {left} bytes of {path} are no whole block and are not served"
    return ""


def uris_of(name: str, sockets: Sequence[socket.socket], tls: TlsMode) -> list[str]:
    """By which URIs clients reach the export, one for each listening socket."""
    scheme = "nbds" if tls is TlsMode.REQUIRED else "nbd"
    export = quote(name, safe="")
    uris = []
    for sock in sockets:
        address = sock.getsockname()
        if sock.family == socket.AF_UNIX:
            path = os.path.abspath(os.fsdecode(address))
            uris.append(f"nbd+unix:///{export}?socket={quote(path)}")
            continue
        host, port = address[:2]
        wildcard = host in ("0.0.0.0", "::")
        shown = "localhost" if wildcard else f"[{host}]" if ":" in host else host
        uris.append(f"{scheme}://{shown}:{port}/{export}")
    return list(dict.fromkeys(uris))


def say(text: str) -> None:
    """A line for people and scripts that wait for it."""
    print(f"nbdserver: {text}", file=sys.stderr, flush=True)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises CannotServe."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    exports = []
    with ExitStack() as undo:
        for served in settings.files:
            block_bytes = settings.block_sizes.minimum_bytes
            backend = open_backend(
                loop, served.path, read_only=served.read_only, block_bytes=block_bytes
            )
            undo.callback(backend.close)
            exports.append((export_of(served, settings, backend.size_bytes), backend))
        check_certificates(settings)
        undo.pop_all()
    tls = settings.encryption
    service = FileService(exports, settings.limits, tls.mode, tls.files, tls.clients)
    loop.add_signal_handler(signal.SIGUSR1, lambda: say(json.dumps(service.totals())))
    try:
        sockets = open_listeners(service, settings)
        for export, _ in exports:
            uris = " ".join(uris_of(export.name, sockets, tls.mode))
            say(f"ready {uris} ({export.size_bytes} bytes)")
        for served, (export, _) in zip(settings.files, exports, strict=True):
            if remark := remark_on(served.path, export.size_bytes):
                say(remark)
        await stop.wait()
    finally:
        await service.drain()


def raise_descriptor_limit() -> None:
    """As many as this process may have: what bounds clients are the limits, by their names."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def loop_runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    """uvloop's runner where it is installed, asyncio's otherwise."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    settings = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    if settings is None:
        return 0
    logging.basicConfig(
        level=logging.DEBUG if settings.verbose else logging.WARNING,
        format="nbdserver: %(message)s",
    )
    # A client's address and fault are logged by the package; the loop has nothing to add to it.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    raise_descriptor_limit()
    try:
        loop_runner()(serve(settings))
    except CannotServe as error:
        say(str(error))
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())

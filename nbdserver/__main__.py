"""`python -m nbdserver FILE`: a plain file or block device over NBD.

For debugging, and the measure of what the network part costs without replication. Prints one line
with the NBD URI when it is ready; SIGTERM and SIGINT answer what was received and end it.

Exit status: 0 stopped, 2 usage, 8 the file or the address cannot be used, 9 permission.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nbdserver.errors import ListenError
from nbdserver.export import ExportInfo
from nbdserver.file_backend import FileBackend
from nbdserver.file_service import FileService
from nbdserver.protocol import NBD_DEFAULT_PORT, STRING_BYTES_MAX

EXIT_CANNOT_SERVE = 8
EXIT_PERMISSION = 9


class CannotServe(Exception):
    """What is wrong, why, and what to do next; `exit_status` for the process."""

    def __init__(self, what: str, why: str, next_step: str, exit_status: int) -> None:
        super().__init__(f"{what}\nWhy   {why}\nNext  {next_step}")
        self.exit_status = exit_status


def parse_address(text: str) -> tuple[str, int]:
    """HOST:PORT, [IPV6]:PORT, :PORT or HOST as (host, port). Raises ValueError."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(NBD_DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{port!r} is not a port")
    return host, int(port)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line. Ends the process with status 2 and a usage line if it makes no sense."""
    parser = argparse.ArgumentParser(
        prog="python -m nbdserver", description="Serve a file or block device over NBD."
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--socket", type=Path, metavar="PATH", help="listen on a Unix socket")
    parser.add_argument(
        "--listen",
        type=parse_address,
        metavar="HOST:PORT",
        help=f"listen on TCP; port 0 chooses one, the default is {NBD_DEFAULT_PORT}",
    )
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--name", default="", help="the export's name; default: the empty name")
    parser.add_argument("--description", default="")
    parser.add_argument("--verbose", action="store_true", help="log every client")
    parsed = parser.parse_args(arguments)
    if parsed.socket is None and parsed.listen is None:
        parser.error("say where to listen: --socket PATH, --listen HOST:PORT, or both")
    for option in ("name", "description"):
        text = getattr(parsed, option)
        if len(text.encode(errors="surrogateescape")) > STRING_BYTES_MAX:
            parser.error(f"--{option} is over {STRING_BYTES_MAX} bytes")
    return parsed


def open_backend(loop: asyncio.AbstractEventLoop, path: Path, *, read_only: bool) -> FileBackend:
    """The file, opened. Raises CannotServe."""
    what = f"cannot serve {path}"
    if path.is_dir():
        raise CannotServe(
            what, "it is a directory", "name a file or a block device", EXIT_CANNOT_SERVE
        )
    try:
        return FileBackend(loop, path, read_only=read_only)
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
        raise CannotServe(
            what, error.strerror or str(error), "name a file or a block device", EXIT_CANNOT_SERVE
        ) from error


def open_listeners(service: FileService, parsed: argparse.Namespace) -> list[str]:
    """Listen as asked; the NBD URIs. Raises CannotServe."""
    export = quote(parsed.name, safe="")
    uris = []
    try:
        if parsed.socket is not None:
            service.server.listen_unix(parsed.socket)
            path = quote(str(parsed.socket.absolute()))
            uris.append(f"nbd+unix:///{export}?socket={path}")
        if parsed.listen is not None:
            host, port = parsed.listen
            port = service.server.listen_tcp(host, port)
            shown = f"[{host}]" if ":" in host else host or "localhost"
            uris.append(f"nbd://{shown}:{port}/{export}")
    except ListenError as error:
        raise CannotServe(
            f"cannot listen on {error.address}",
            error.why,
            "stop the other program, or choose another --socket or --listen",
            EXIT_CANNOT_SERVE,
        ) from error
    return uris


async def serve(parsed: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT. Raises CannotServe."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    backend = open_backend(loop, parsed.file, read_only=parsed.read_only)
    export = ExportInfo(
        parsed.name,
        backend.size_bytes,
        read_only=parsed.read_only,
        can_multi_conn=True,
        description=parsed.description,
    )
    service = FileService(export, backend)
    try:
        uris = open_listeners(service, parsed)
        print(f"nbdserver: ready {' '.join(uris)} ({export.size_bytes} bytes)", file=sys.stderr)
        await stop.wait()
    finally:
        await service.drain()


def loop_runner() -> Callable[[Coroutine[Any, Any, None]], None]:
    """uvloop's runner where it is installed, asyncio's otherwise."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run
    return uvloop.run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parsed = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=logging.DEBUG if parsed.verbose else logging.WARNING,
        format="nbdserver: %(message)s",
    )
    # A client's address and fault are logged by the package; the loop has nothing to add to it.
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        loop_runner()(serve(parsed))
    except CannotServe as error:
        print(f"nbdserver: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())

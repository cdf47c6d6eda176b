"""Listening sockets of the daemon: bound with care, refused with a reason, removed after use.

Owns how an address or path becomes a listening socket and what each failure means to the operator.
It must never take over what a living process serves: a Unix socket is unlinked only after nobody
answered on it. A path is removed at the end only while it is still the one that was made here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass

from repl.errors import ConfigInvalid, PermissionRefused, Refused, ReplError

BACKLOG_CONNECTIONS = 512


@dataclass(slots=True)
class Listener:
    """A bound socket, listening, non-blocking; `text` is how people write its address."""

    sock: socket.socket
    text: str
    #: Of a Unix socket: its path and inode.
    path: str = ""
    inode: int = 0
    _closed: bool = False

    def close(self) -> None:
        """Stop listening and remove the path. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self.path:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.path, follow_symlinks=False).st_ino == self.inode:
                    os.unlink(self.path)
        self.sock.close()


def listen_tcp(host: str, port: int, setting: str) -> Listener:
    """Listen on `host` and `port`; `setting` is the configuration key that named them.

    Raises Refused (ADDRESS_IN_USE), PermissionRefused or ConfigInvalid.
    """
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigInvalid(
            f"cannot listen on {text}",
            f"{setting} names a host that does not resolve: {error.strerror}",
            f"write an address of this machine in {setting}",
        ) from error
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        sock.close()
        raise _failure(error, text, setting, f"ss -ltnp 'sport = :{port}'") from error
    sock.setblocking(False)
    return Listener(sock, text)


def listen_unix(path: str, mode: int, setting: str) -> Listener:
    """Listen on a Unix socket at `path` with permission bits `mode`, replacing a stale one.

    Its folder is made if absent. The mode is set before anybody can connect. Raises as
    `listen_tcp` does.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.makedirs(os.path.dirname(path) or ".", mode=0o755, exist_ok=True)
        _remove_stale(path, setting)
        sock.bind(path)
        os.chmod(path, mode)
        inode = os.stat(path).st_ino
        sock.listen(BACKLOG_CONNECTIONS)
    except OSError as error:
        sock.close()
        raise _failure(error, path, setting, f"ss -lxp src {path}") from error
    except ReplError:
        sock.close()
        raise
    sock.setblocking(False)
    return Listener(sock, path, path, inode)


def _remove_stale(path: str, setting: str) -> None:
    """Unlink a socket on which nobody listens; raise for anything else that is in the way."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigInvalid(
            f"cannot listen on {path}",
            f"{setting} names something that exists and is not a socket",
            f"remove {path}, or write another path in {setting}",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # its backlog is full, so somebody listens
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _failure(error: OSError, text: str, setting: str, look: str) -> ReplError:
    what = f"cannot listen on {text}"
    if error.errno == errno.EADDRINUSE:
        return Refused(
            what,
            f"another process listens there ({setting})",
            f"stop it ({look}), or write another address in {setting}",
            code="ADDRESS_IN_USE",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return PermissionRefused(
            what, f"{setting}: {error.strerror}", f"run as another user or change {setting}"
        )
    return ConfigInvalid(
        what, f"{setting}: {error.strerror}", f"write an address of this machine in {setting}"
    )

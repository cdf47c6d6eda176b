"""Sockets: where clients connect, and how a client's socket is set up.

Owns the rules for addresses: an address that is in use is an error that says so, and a Unix
socket's file is only removed after nobody answered on it. Never accepts or negotiates.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from nbdserver.crowd import origin_of
from nbdserver.errors import ListenError
from nbdserver.limits import Limits

BACKLOG = 512
SEND_BUFFER_BYTES = 4 << 20
UNIX_SOCKET_MODE = 0o660
UNIX_PATH_BYTES_MAX = 107
#: A silent client is asked this often in the last half of its time to answer.
KEEPALIVE_PROBES = 3
KEEPALIVE_S_MAX = 32767  # the kernel takes no more
# Linux's own number, which the socket module does not export.
SO_SNDBUFFORCE = 32


def prepare_client_socket(sock: socket.socket, limits: Limits | None = None) -> None:
    """Non-blocking, no Nagle, a send buffer for large reads, and a look after vanished clients.

    Raises OSError.
    """
    limits = limits or Limits()
    sock.setblocking(False)
    is_tcp = sock.family in (socket.AF_INET, socket.AF_INET6)
    if is_tcp:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if limits.half_open_s:
            _watch_for_half_open(sock, limits.half_open_s)
    grow_send_buffer(sock, SEND_BUFFER_BYTES)


def grow_send_buffer(sock: socket.socket, size_bytes: int) -> None:
    """Let the kernel hold so much of what is sent, as far as it permits. Raises OSError."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, size_bytes)
    except PermissionError:
        # What an ordinary user gets is cut to net.core.wmem_max. For TCP the kernel's own
        # growth, which setting any size would switch off, then reaches further.
        if sock.family == socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size_bytes)


def _watch_for_half_open(sock: socket.socket, after_s: float) -> None:
    """Have the kernel end a TCP connection whose other end has acknowledged nothing for so long,
    be it an answer of ours or, while nothing is to be sent, a question whether it is there."""
    # Half of the time silent, then as many questions as fit into the other half.
    idle_s = min(max(1, round(after_s / 2)), KEEPALIVE_S_MAX)
    interval_s = min(max(1, round(after_s / 2 / KEEPALIVE_PROBES)), KEEPALIVE_S_MAX)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, interval_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(after_s * 1000)))


def listen_on_unix(path: Path, mode: int = UNIX_SOCKET_MODE) -> socket.socket:
    """A listening socket at `path`, in place of a stale one. Raises ListenError."""
    if len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        raise ListenError(str(path), f"the path is over {UNIX_PATH_BYTES_MAX} bytes") from OSError(
            errno.ENAMETOOLONG, "too long"
        )
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _bind_with_mode(sock, path, mode)
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(str(path), error.strerror or str(error)) from error
    sock.setblocking(False)
    return sock


def listen_on_tcp(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of `host`; port 0 lets the kernel choose one for all.

    Raises ListenError; then none is left open.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ListenError(where, error.strerror or "the name cannot be resolved") from error
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            bound_port = sockets[0].getsockname()[1] if sockets else port
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((address[0], bound_port, *address[2:]))
            sock.listen(BACKLOG)
            sock.setblocking(False)
    except OSError as error:
        for sock in sockets:
            sock.close()
        why = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise ListenError(where, why or str(error)) from error
    return sockets


def client_address(sock: socket.socket) -> str:
    """Who is at the other end, as text for logs and status."""
    try:
        peer = sock.getpeername()
    except OSError:
        return "gone client"
    if sock.family == socket.AF_UNIX:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return f"unix pid {int.from_bytes(credentials[:4], 'little')}"
    return f"[{peer[0]}]:{peer[1]}" if ":" in peer[0] else f"{peer[0]}:{peer[1]}"


def client_origin(sock: socket.socket) -> str:
    """Where the other end comes from, as a `Crowd` counts."""
    if sock.family == socket.AF_UNIX:
        return client_address(sock)
    try:
        return origin_of(sock.getpeername()[0])
    except OSError:
        return "gone"


def _bind_with_mode(sock: socket.socket, path: Path, mode: int) -> None:
    """Bind so that the file never has more rights than `mode`, not even for a moment."""
    # On Linux a socket's own mode, cut by the umask, becomes the mode of the file.
    os.fchmod(sock.fileno(), mode)
    sock.bind(os.fspath(path))
    os.chmod(path, mode)


def _remove_stale(path: Path) -> None:
    """Unlink a socket on which nobody listens. Raises ListenError if anything else is there."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(str(path), error.strerror or str(error)) from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenError(str(path), "a file that is not a socket is there") from OSError(
            errno.ENOTSOCK, "not a socket"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A listener whose backlog is full must not make us wait: it is there, that is enough.
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINPROGRESS):
                raise ListenError(str(path), error.strerror or str(error)) from error
    raise ListenError(str(path), "another program listens there")

"""One NBD connection for the kernel: connected, negotiated, and read not a byte too far.

The kernel takes over a socket in transmission, so this is the whole client side of the handshake
and nothing of what follows. The negotiation is sans-IO (`negotiation.py`), `dial` puts a socket
under it.

Everything has a deadline: a server that holds GO back, because its volume is about to be promoted,
is asked again by whoever called.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Generator
from typing import Final, TypeVar

from nbdserver.protocol import NBD_DEFAULT_PORT
from repl.attach.negotiation import Need, NotAgreed, Offer, Send, ask_for

#: A silent server is noticed after IDLE + COUNT * INTERVAL seconds on an idle connection.
KEEPALIVE_IDLE_S: Final = 5
KEEPALIVE_INTERVAL_S: Final = 2
KEEPALIVE_COUNT: Final = 3

Agreed = TypeVar("Agreed")


class NoConnection(Exception):
    """There is no connection to be had at this address now; the text says why in one sentence."""


def dial(address: str, export: str, deadline_s: float) -> tuple[socket.socket, Offer]:
    """Connect to `address` (`HOST:PORT`, `[IPV6]:PORT`, or a Unix socket's path) and negotiate.

    Return a blocking socket at the first byte of the transmission, and what was offered. Raises
    NoConnection, at the latest after `deadline_s`.
    """
    sock, offer = negotiated(address, ask_for(export), deadline_s)
    sock.settimeout(None)
    return sock, offer


def negotiated(
    address: str, steps: Generator[Send | Need, bytes, Agreed], deadline_s: float
) -> tuple[socket.socket, Agreed]:
    """Connect and take the steps of any client's negotiation; see `dial`."""
    ends = time.monotonic() + deadline_s
    try:
        sock = _connected(address, deadline_s)
    except (OSError, ValueError) as error:
        raise NoConnection(str(error)) from error
    try:
        agreed = _negotiate(sock, steps, ends)
    except OSError as error:
        sock.close()
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        raise NoConnection(f"while negotiating: {reason}") from error
    except NoConnection:
        sock.close()
        raise
    return sock, agreed


def _connected(address: str, timeout_s: float) -> socket.socket:
    if address.startswith("/"):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock
    sock = socket.create_connection(host_and_port(address), timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
    return sock


def host_and_port(address: str) -> tuple[str, int]:
    """Split `HOST`, `HOST:PORT` or `[IPV6]:PORT`. Raises ValueError."""
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(NBD_DEFAULT_PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ValueError(f"{address!r} is no HOST:PORT and no path of a socket")
    return host, int(port)


def _negotiate(
    sock: socket.socket, steps: Generator[Send | Need, bytes, Agreed], ends: float
) -> Agreed:
    try:
        step = next(steps)
        while True:
            sock.settimeout(max(ends - time.monotonic(), 0.001))
            if isinstance(step, Send):
                sock.sendall(step.data)
                step = next(steps)
            else:
                step = steps.send(exactly(sock, step.count, ends))
    except NotAgreed as refusal:
        raise NoConnection(refusal.sentence) from refusal
    except StopIteration as end:
        agreed: Agreed = end.value
        return agreed


def exactly(sock: socket.socket, count: int, ends: float) -> bytes:
    """Return the next `count` bytes. Raises NoConnection, TimeoutError, OSError."""
    received = b""
    while len(received) < count:
        sock.settimeout(max(ends - time.monotonic(), 0.001))
        part = sock.recv(count - len(received))
        if not part:
            raise NoConnection("the NBD server closed the connection")
        received += part
    return received

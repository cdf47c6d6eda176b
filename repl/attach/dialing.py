"""One NBD connection for the kernel: connected, negotiated, and read not a byte too far.

The kernel takes over a socket in transmission, so this is the whole client side of the handshake
and nothing of what follows. The negotiation is sans-IO (`negotiation_steps`), `dial` puts a socket
under it. Only what the kernel's driver speaks is asked for: simple replies, no metadata contexts.

Everything has a deadline: a server that holds GO back, because its volume is about to be promoted,
is asked again by whoever called.

Spec: proto.md, "Fixed newstyle negotiation", "Option types", "Block size constraints".
"""

from __future__ import annotations

import socket
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from nbdserver.protocol import (
    CLIENT_FLAGS,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    NBD_DEFAULT_PORT,
    NBD_FLAG_C_FIXED_NEWSTYLE,
    NBD_FLAG_C_NO_ZEROES,
    NBD_FLAG_FIXED_NEWSTYLE,
    NBD_FLAG_NO_ZEROES,
    NBD_MAGIC,
    NBD_OPTION_MAGIC,
    NBD_REP_MAGIC,
    OPTION_HEADER,
    OPTION_REPLY,
    U16,
    U32,
    Info,
    Option,
    Reply,
)

#: No reply to an option is longer in an honest negotiation.
REPLY_BYTES_MAX: Final = 64 << 10
REPLIES_MAX: Final = 100
#: A silent server is noticed after IDLE + COUNT * INTERVAL seconds on an idle connection.
KEEPALIVE_IDLE_S: Final = 5
KEEPALIVE_INTERVAL_S: Final = 2
KEEPALIVE_COUNT: Final = 3


class NoConnection(Exception):
    """There is no connection to be had at this address now; the text says why in one sentence."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server offers: `flags` are the transmission flags of proto.md."""

    size_bytes: int
    flags: int
    minimum_block_bytes: int = 1


@dataclass(frozen=True, slots=True)
class Send:
    data: bytes


@dataclass(frozen=True, slots=True)
class Need:
    """Exactly so many bytes are needed next; they are what `send()` gives back."""

    count: int


def negotiation_steps(export: str) -> Generator[Send | Need, bytes, Offer]:
    """Ask for `export` and return what is offered. Raises NoConnection."""
    magic, option_magic, flags = GREETING.unpack((yield Need(GREETING.size)))
    if (magic, option_magic) != (NBD_MAGIC, NBD_OPTION_MAGIC):
        raise NoConnection("what listens there is no NBD server")
    if not flags & NBD_FLAG_FIXED_NEWSTYLE:
        raise NoConnection("the NBD server there knows no fixed newstyle")
    encoded = export.encode()
    data = U32.pack(len(encoded)) + encoded + U16.pack(1) + U16.pack(Info.BLOCK_SIZE)
    client_flags = NBD_FLAG_C_FIXED_NEWSTYLE
    if flags & NBD_FLAG_NO_ZEROES:
        client_flags |= NBD_FLAG_C_NO_ZEROES
    yield Send(
        CLIENT_FLAGS.pack(client_flags)
        + OPTION_HEADER.pack(NBD_OPTION_MAGIC, Option.GO, len(data))
        + data
    )
    size: tuple[int, int] | None = None
    minimum_block_bytes = 1
    for _ in range(REPLIES_MAX):
        header = yield Need(OPTION_REPLY.size)
        magic, option, kind, length = OPTION_REPLY.unpack(header)
        if magic != NBD_REP_MAGIC or option != Option.GO or length > REPLY_BYTES_MAX:
            raise NoConnection("the NBD server answers another question")
        answer = (yield Need(length)) if length else b""
        if kind == Reply.ACK:
            if size is None:
                break
            return Offer(*size, minimum_block_bytes)
        if kind != Reply.INFO:
            text = answer.decode(errors="replace").strip()
            raise NoConnection(text or f"the NBD server refused with 0x{kind:08x}")
        number = U16.unpack_from(answer)[0] if len(answer) >= U16.size else -1
        if number == Info.EXPORT and len(answer) == INFO_EXPORT.size:
            _, size_bytes, transmission_flags = INFO_EXPORT.unpack(answer)
            size = (size_bytes, transmission_flags)
        elif number == Info.BLOCK_SIZE and len(answer) == INFO_BLOCK_SIZE.size:
            _, minimum_block_bytes, _, _ = INFO_BLOCK_SIZE.unpack(answer)
    raise NoConnection("the NBD server does not say how large the export is")


def dial(address: str, export: str, deadline_s: float) -> tuple[socket.socket, Offer]:
    """Connect to `address` (`HOST:PORT`, `[IPV6]:PORT`, or a Unix socket's path) and negotiate.

    Return a blocking socket at the first byte of the transmission, and what was offered. Raises
    NoConnection, at the latest after `deadline_s`.
    """
    ends = time.monotonic() + deadline_s
    try:
        sock = _connected(address, deadline_s)
    except (OSError, ValueError) as error:
        raise NoConnection(str(error)) from error
    try:
        offer = _negotiate(sock, export, ends)
        sock.settimeout(None)
    except OSError as error:
        sock.close()
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        raise NoConnection(f"while negotiating: {reason}") from error
    except NoConnection:
        sock.close()
        raise
    return sock, offer


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


def _negotiate(sock: socket.socket, export: str, ends: float) -> Offer:
    steps = negotiation_steps(export)
    try:
        step = next(steps)
        while True:
            sock.settimeout(max(ends - time.monotonic(), 0.001))
            if isinstance(step, Send):
                sock.sendall(step.data)
                step = next(steps)
            else:
                step = steps.send(_exactly(sock, step.count, ends))
    except StopIteration as agreed:
        offer: Offer = agreed.value
        return offer


def _exactly(sock: socket.socket, count: int, ends: float) -> bytes:
    received = b""
    while len(received) < count:
        sock.settimeout(max(ends - time.monotonic(), 0.001))
        part = sock.recv(count - len(received))
        if not part:
            raise NoConnection("the NBD server closed the connection during the negotiation")
        received += part
    return received

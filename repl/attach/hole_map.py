"""Which parts of an export may hold data, asked of its server on a connection of its own.

The block device does not tell: neither a loop device nor the kernel's nbd driver passes on where
the holes are. The server knows (`base:allocation`), so that a new volume of a terabyte is known to
be blank without a terabyte being read. What cannot be learnt counts as data, which is always safe.

Spec: proto.md, "Metadata querying", "NBD_CMD_BLOCK_STATUS", "Structured reply message".
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Generator
from typing import Final

from nbdserver.contexts import BASE_ALLOCATION
from nbdserver.protocol import (
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_DISC,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_BLOCK_STATUS,
    NBD_REPLY_TYPE_NONE,
    NBD_REQUEST_MAGIC,
    NBD_STATE_ZERO,
    NBD_STRUCTURED_REPLY_MAGIC,
    REQUEST,
    STATUS_DESCRIPTOR,
    STRUCTURED_CHUNK,
    U32,
)
from repl.attach.dialing import NoConnection, exactly, negotiated
from repl.attach.negotiation import ask_for_context

#: A server that is silent for longer is not waited for: without a map all counts as data.
ANSWER_TIMEOUT_S: Final = 20.0
#: What is asked about at once: a length has 32 bits, and this is a multiple of any block.
ASKED_BYTES_MAX: Final = 2 << 30
CHUNK_BYTES_MAX: Final = 1 << 20
_COOKIE: Final = bytes(8)


def data_extents(
    address: str, export: str, size_bytes: int
) -> Generator[tuple[int, int], None, None]:
    """Yield (start, length) of each part that may hold something else than zeroes, in order.

    It keeps a connection as long as it is not closed or used up. Never raises: what is not known,
    because the server does not tell or ends while it does, is one last part.
    """
    position = 0
    with contextlib.suppress(NoConnection, OSError):
        steps = ask_for_context(export, BASE_ALLOCATION)
        sock, (_, context) = negotiated(address, steps, ANSWER_TIMEOUT_S)
        with contextlib.closing(sock):
            while position < size_bytes:
                asked_bytes = min(size_bytes - position, ASKED_BYTES_MAX)
                for length, status in _ask(sock, context, position, asked_bytes):
                    if not status & NBD_STATE_ZERO:
                        yield position, min(length, size_bytes - position)
                    position += length
            _leave(sock)
    if position < size_bytes:
        yield position, size_bytes - position


def _ask(sock: socket.socket, context: int, offset: int, length: int) -> list[tuple[int, int]]:
    """Return (length, status) of consecutive extents. Raises NoConnection, OSError."""
    ends = time.monotonic() + ANSWER_TIMEOUT_S
    sock.settimeout(ANSWER_TIMEOUT_S)
    command = NBD_CMD_BLOCK_STATUS
    sock.sendall(REQUEST.pack(NBD_REQUEST_MAGIC, 0, command, _COOKIE, offset, length))
    descriptors, done = b"", False
    while not done:
        header = exactly(sock, STRUCTURED_CHUNK.size, ends)
        magic, flags, kind, _, payload_bytes = STRUCTURED_CHUNK.unpack(header)
        if magic != NBD_STRUCTURED_REPLY_MAGIC or payload_bytes > CHUNK_BYTES_MAX:
            raise NoConnection("the NBD server breaks the protocol")
        payload = exactly(sock, payload_bytes, ends)
        if kind == NBD_REPLY_TYPE_BLOCK_STATUS and payload[: U32.size] == U32.pack(context):
            descriptors += payload[U32.size :]
        elif kind != NBD_REPLY_TYPE_NONE:
            raise NoConnection("the NBD server does not tell where data is")
        done = bool(flags & NBD_REPLY_FLAG_DONE)
    if not descriptors or len(descriptors) % STATUS_DESCRIPTOR.size:
        raise NoConnection("the NBD server tells nothing about the range")
    extents = list(STATUS_DESCRIPTOR.iter_unpack(descriptors))
    if not all(extent for extent, _ in extents):
        raise NoConnection("the NBD server tells of an extent without a length")
    return extents


def _leave(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.sendall(REQUEST.pack(NBD_REQUEST_MAGIC, 0, NBD_CMD_DISC, _COOKIE, 0, 0))

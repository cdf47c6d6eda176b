"""The replies of one connection on their way out: what is queued, and what the socket took.

Owns the order and the bytes, never a decision. Data of a READ is not copied: the queue keeps the
backend's buffers until the kernel has them, and releases a chunk that was handed over with them.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Sequence

from nbdserver.buffers import Chunk
from nbdserver.errors import LocalError
from nbdserver.protocol import SIMPLE_REPLY_BYTES
from nbdserver.transmission import success_header

Data = bytes | bytearray | memoryview

IOVECS_MAX = 1024


class ReplyQueue:
    """Pieces in the order in which they are sent; `unsent_bytes` is what they add up to."""

    __slots__ = ("_has_data", "_holds", "_queued_bytes", "_sent_bytes", "pieces")

    def __init__(self) -> None:
        self.pieces: list[Data] = []
        self._has_data = False
        # Totals over the connection's life. A hold is a chunk to release once as much is sent.
        self._queued_bytes = self._sent_bytes = 0
        self._holds: deque[tuple[int, Chunk]] = deque()

    @property
    def unsent_bytes(self) -> int:
        """Queued and not taken by the socket yet."""
        return self._queued_bytes - self._sent_bytes

    def add(self, reply: bytes) -> None:
        """Queue a reply without data, as `success_header` and `error_reply` make it."""
        self.pieces.append(reply)
        self._queued_bytes += SIMPLE_REPLY_BYTES

    def add_all(self, replies: Sequence[bytes]) -> None:
        """Queue several replies without data."""
        self.pieces += replies
        self._queued_bytes += SIMPLE_REPLY_BYTES * len(replies)

    def add_data(
        self, cookie: bytes, data: Data | Sequence[Data] | None, length: int, hold: Chunk | None
    ) -> None:
        """Queue the answer to a READ of `length` bytes; LocalError if `data` is not that long."""
        header = success_header(cookie)
        if isinstance(data, (bytes, bytearray, memoryview)):
            count = len(data)
            pieces: tuple[Data, ...] = (header, data)
        else:
            pieces = (header, *(data or ()))
            count = sum(map(len, pieces)) - SIMPLE_REPLY_BYTES
        if count != length:
            raise LocalError(f"{count} bytes of data for a READ of {length}")
        self.pieces += pieces
        self._has_data = True
        self._queued_bytes += SIMPLE_REPLY_BYTES + count
        if hold is not None:
            self._holds.append((self._queued_bytes, hold))

    def send_to(self, sock: socket.socket) -> None:
        """Give the non-blocking `sock` what it takes, one call if it takes all. Raises OSError."""
        pieces = self.pieces
        while pieces:
            try:
                if not self._has_data:
                    pieces[:] = [b"".join(pieces)]
                    sent = sock.send(pieces[0])
                elif len(pieces) <= IOVECS_MAX:
                    sent = sock.sendmsg(pieces)
                else:
                    sent = sock.sendmsg(pieces[:IOVECS_MAX])
            except (BlockingIOError, InterruptedError):
                break
            self._sent_bytes += sent
            if self._sent_bytes == self._queued_bytes:
                pieces.clear()
                self._has_data = False
            else:
                _drop_sent(pieces, sent)
        holds = self._holds
        while holds and holds[0][0] <= self._sent_bytes:
            holds.popleft()[1].release()

    def discard(self) -> None:
        """Nobody is there to take anything any more."""
        self.pieces.clear()
        self._has_data = False
        self._queued_bytes = self._sent_bytes
        for _, chunk in self._holds:
            chunk.release()
        self._holds.clear()


def _drop_sent(pieces: list[Data], sent_bytes: int) -> None:
    """Remove the first `sent_bytes` from the queue."""
    whole = 0
    for piece in pieces:
        if len(piece) > sent_bytes:
            break
        sent_bytes -= len(piece)
        whole += 1
    del pieces[:whole]
    if sent_bytes:
        pieces[0] = memoryview(pieces[0])[sent_bytes:]

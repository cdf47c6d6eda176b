"""The replies of one connection on their way out: what is queued, and what the socket took.

Owns the order and the bytes, never a decision. Data of a READ is not copied: the queue keeps the
backend's buffers until the kernel has them, and releases a chunk that was handed over with them.
This is the queue of simple replies; replies in chunks are `chunked_replies.py`'s.

Spec: proto.md, "Simple reply message".
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, cast

from nbdserver.buffers import Chunk
from nbdserver.errors import LocalError
from nbdserver.file_data import FileData
from nbdserver.protocol import (
    NBD_EINVAL,
    NBD_EIO,
    NBD_ENOMEM,
    NBD_ENOSPC,
    NBD_ENOTSUP,
    NBD_EOVERFLOW,
    NBD_EPERM,
    NBD_ESHUTDOWN,
    NBD_SIMPLE_REPLY_MAGIC,
    PAYLOAD_BYTES_MAX,
    SIMPLE_REPLY,
    SIMPLE_REPLY_BYTES,
)
from nbdserver.requests import Request

Data = bytes | bytearray | memoryview
#: What waits to be sent.
Piece = Data | FileData
#: A part of what a READ found: its data, or the length of a hole.
Part = Data | int
#: (length, status) of consecutive ranges, from the offset of a BLOCK_STATUS on.
Extents = Sequence[tuple[int, int]]

IOVECS_MAX: Final = 1024

#: What a socket says of itself when it is given a file's data; anything else is the file's.
_SOCKETS_OWN: Final = frozenset(
    (
        errno.EAGAIN,
        errno.EINTR,
        errno.EPIPE,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ENOTCONN,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ENETDOWN,
    )
)

_SUCCESS: Final = SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, 0, bytes(8))[:8]
_ZEROES: Final = memoryview(bytes(1 << 20))
_WIRE_ERRORS: Final = frozenset(
    (
        NBD_EPERM,
        NBD_EIO,
        NBD_ENOMEM,
        NBD_EINVAL,
        NBD_ENOSPC,
        NBD_EOVERFLOW,
        NBD_ENOTSUP,
        NBD_ESHUTDOWN,
    )
)


def wire_error(error: int) -> int:
    """`error` if the protocol's closed list has it, else EIO."""
    return error if error in _WIRE_ERRORS else NBD_EIO


class ReplyQueue:
    """Pieces in the order in which they are sent; `unsent_bytes` is what they add up to."""

    __slots__ = ("_has_data", "_has_files", "_holds", "_queued_bytes", "pieces", "sent_bytes")

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._has_data = False
        self._has_files = False
        # Totals over the connection's life. A hold is a chunk to release once as much is sent.
        self._queued_bytes = self.sent_bytes = 0
        self._holds: deque[tuple[int, Chunk]] = deque()

    @property
    def unsent_bytes(self) -> int:
        """Queued and not taken by the socket yet."""
        return self._queued_bytes - self.sent_bytes

    def add_success(self, request: Request) -> None:
        """Queue the success of a request that brings nothing back."""
        self.pieces.append(_SUCCESS + request.cookie)
        self._queued_bytes += SIMPLE_REPLY_BYTES

    def add_error(self, request: Request, error: int, text: str, at: int | None) -> None:
        """Queue a failure. `text` says why and `at` which byte of the export is at fault, where
        the form of replies has a place for them."""
        self.pieces.append(
            SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, wire_error(error), request.cookie)
        )
        self._queued_bytes += SIMPLE_REPLY_BYTES

    def add_data(
        self, request: Request, data: Data | Sequence[Data] | None, hold: Chunk | None
    ) -> None:
        """Queue what a READ found, in one piece or several; LocalError for another length."""
        length = request.length
        if isinstance(data, (bytes, bytearray, memoryview)) and len(data) == length:
            self.pieces += (_SUCCESS + request.cookie, data)
            self._has_data = True
            self._queued_bytes += SIMPLE_REPLY_BYTES + length
        else:
            self._add_pieces(_SUCCESS + request.cookie, length, data or ())
        if hold is not None:
            self._holds.append((self._queued_bytes, hold))

    def add_file(self, request: Request, data: FileData) -> None:
        """Queue what a READ found, which `send_to` must be called for in the same turn."""
        self._add_file(_SUCCESS + request.cookie, request.length, data)

    def _add_file(self, header: bytes, length: int, data: FileData) -> None:
        if len(data) != length:
            raise LocalError(f"{len(data)} bytes of a file for a READ of {length}")
        self.pieces += (header, data)
        self._has_files = True
        self._queued_bytes += len(header) + length

    def add_parts(self, request: Request, parts: Sequence[Part], hold: Chunk | None) -> None:
        """Queue what a READ found, holes told apart. LocalError for another length."""
        self.add_data(request, with_zeroes(parts), hold)

    def add_status(self, request: Request, statuses: Mapping[int, Extents]) -> None:
        """Queue the answer to a BLOCK_STATUS: extents by the id of their context."""
        raise LocalError("a BLOCK_STATUS was accepted from a client with simple replies")

    def _add_pieces(self, header: bytes, length: int, data: Data | Sequence[Data]) -> None:
        """Queue `header` and the data of a READ of `length` bytes, or of a part of one."""
        pieces = (data,) if isinstance(data, (bytes, bytearray, memoryview)) else data
        count = sum(map(len, pieces))
        if count != length:
            raise LocalError(f"{count} bytes of data for a READ of {length}")
        self.pieces.append(header)
        self.pieces += pieces
        self._has_data = True
        self._queued_bytes += len(header) + count

    def send_to(self, sock: socket.socket) -> None:
        """Give the non-blocking `sock` what it takes, one call if it takes all. Raises OSError, and
        FileFailed if it is not the socket's."""
        pieces = self.pieces
        while pieces:
            try:
                sent = self._send_files(sock) if self._has_files else self._send_some(sock)
            except (BlockingIOError, InterruptedError):
                break
            self.sent_bytes += sent
            if self.sent_bytes == self._queued_bytes:
                pieces.clear()
                self._has_data = self._has_files = False
            else:
                _drop_sent(pieces, sent)
        if self._has_files:
            # The pages may be gone when the client takes more, and a disk be waited for.
            for index, piece in enumerate(pieces):
                if isinstance(piece, FileData):
                    pieces[index] = piece.copied()
                    self._has_data = True
            self._has_files = False
        holds = self._holds
        while holds and holds[0][0] <= self.sent_bytes:
            holds.popleft()[1].release()

    def _send_some(self, sock: socket.socket) -> int:
        pieces = cast("list[Data]", self.pieces)
        if not self._has_data:
            pieces[:] = [b"".join(pieces)]
            return sock.send(pieces[0])
        return sock.sendmsg(pieces if len(pieces) <= IOVECS_MAX else pieces[:IOVECS_MAX])

    def _send_files(self, sock: socket.socket) -> int:
        """The first piece if it is a file's, or all that lies before the first such one."""
        buffers: list[Data] = []
        for piece in self.pieces:
            if isinstance(piece, FileData):
                if not buffers:
                    return self._send_file(piece, sock)
                # What follows at once; without it TCP would keep these back for 200 ms.
                return sock.sendmsg(buffers, (), socket.MSG_MORE)
            if len(buffers) == IOVECS_MAX:
                break
            buffers.append(piece)
        return sock.sendmsg(buffers)

    def _send_file(self, piece: FileData, sock: socket.socket) -> int:
        try:
            return piece.send_to(sock)
        except OSError as error:
            if error.errno in _SOCKETS_OWN:
                raise
        # Not every file can be sent so, nor always; what it fails to read may still be readable.
        data = piece.copied()
        self.pieces[0] = data
        self._has_data = True
        return sock.send(data)

    def discard(self) -> None:
        """Nobody is there to take anything any more."""
        self.pieces.clear()
        self._has_data = self._has_files = False
        self._queued_bytes = self.sent_bytes
        for _, chunk in self._holds:
            chunk.release()
        self._holds.clear()


def with_zeroes(parts: Sequence[Part]) -> list[Data]:
    """The same bytes with the holes written out; they share one buffer of zeroes."""
    pieces: list[Data] = []
    for part in parts:
        if isinstance(part, int):
            if not 0 < part <= PAYLOAD_BYTES_MAX:
                raise LocalError(f"a hole of {part} bytes in a READ")
            whole, rest = divmod(part, len(_ZEROES))
            pieces += [_ZEROES] * whole
            if rest:
                pieces.append(_ZEROES[:rest])
        else:
            pieces.append(part)
    return pieces


def _drop_sent(pieces: list[Piece], sent_bytes: int) -> None:
    """Remove the first `sent_bytes` from the queue."""
    whole = 0
    for piece in pieces:
        if len(piece) > sent_bytes:
            break
        sent_bytes -= len(piece)
        whole += 1
    del pieces[:whole]
    if sent_bytes:
        first = pieces[0]
        if isinstance(first, FileData):
            first.skip(sent_bytes)
        else:
            pieces[0] = memoryview(first)[sent_bytes:]

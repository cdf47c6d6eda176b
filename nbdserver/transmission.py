"""Requests out of a byte stream and replies into one, sans-IO. This is the hot path.

Owns the parsing and validation of requests and where received bytes are put. The driver asks
`room()` where to receive, says how much came by `received()`, and takes what is complete with
`take_requests()`. A payload is never copied in Python: it is a slice of the chunk that the kernel
filled. Only the part of a request that straddles the end of a chunk is moved, once.

What a client may not do is answered here and never reaches a backend: the error replies collect
in `refusals`. Bytes that cannot be followed raise TransmissionViolation.

No logging, no tasks, no f-strings per request; names are bound to locals where a loop uses them.
Structured replies will be a second reply builder beside `success_header` and `error_reply`, and
extended headers a second header layout in `take_requests`.

Spec: proto.md, "Transmission phase", "Request types", "Command flags", "Error values".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbdserver.buffers import CHUNK_BYTES, Chunk, ChunkPool
from nbdserver.errors import TransmissionViolation
from nbdserver.export import ExportInfo
from nbdserver.protocol import (
    NBD_CMD_DISC,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_TRIM,
    NBD_CMD_WRITE,
    NBD_CMD_WRITE_ZEROES,
    NBD_EINVAL,
    NBD_EIO,
    NBD_ENOMEM,
    NBD_ENOSPC,
    NBD_ENOTSUP,
    NBD_EOVERFLOW,
    NBD_EPERM,
    NBD_ESHUTDOWN,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    PAYLOAD_BYTES_MAX,
    REQUEST,
    REQUEST_BYTES,
    SIMPLE_REPLY,
)

if TYPE_CHECKING:
    from nbdserver.connection import Connection

# Below this a receive would mostly pay for the system call, so the next chunk is begun.
ROOM_BYTES_MIN = 32 << 10
# From here on it pays to end a receive at the end of a request, so that none straddles a chunk.
LARGE_REQUEST_BYTES = 64 << 10

# On a boundary the next request is expected to be as large as the last one, up to this.
EXPECTED_REQUEST_BYTES_MAX = 4 << 20

_SUCCESS = SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, 0, bytes(8))[:8]

_WIRE_ERRORS = frozenset(
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
_WRITING_COMMANDS = frozenset((NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES))
_FLAGS_ALLOWED = {
    NBD_CMD_READ: NBD_CMD_FLAG_FUA,
    NBD_CMD_WRITE: NBD_CMD_FLAG_FUA,
    NBD_CMD_FLUSH: NBD_CMD_FLAG_FUA,
    NBD_CMD_TRIM: NBD_CMD_FLAG_FUA,
    NBD_CMD_WRITE_ZEROES: NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE,
}


class Request:
    """One request that passed validation. Offsets and lengths are bytes.

    `command` and `flags` are `NBD_CMD_*` and `NBD_CMD_FLAG_*`, `cookie` the client's eight bytes.
    `payload` (WRITE only) is a slice of `chunk`. `connection` is None once it was answered.
    """

    __slots__ = ("chunk", "command", "connection", "cookie", "flags", "length", "offset", "payload")

    def __init__(
        self,
        connection: Connection | None,
        command: int,
        flags: int,
        cookie: bytes,
        offset: int,
        length: int,
        payload: memoryview | None = None,
        chunk: Chunk | None = None,
    ) -> None:
        self.connection = connection
        self.command = command
        self.flags = flags
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.payload = payload
        self.chunk = chunk

    def __repr__(self) -> str:
        return f"Request({self.command}, 0x{self.flags:x}, {self.offset}+{self.length})"


def success_header(cookie: bytes) -> bytes:
    """The 16 bytes that answer a request with success; the data of a READ follows."""
    return _SUCCESS + cookie


def error_reply(error: int, cookie: bytes) -> bytes:
    """The 16 bytes that answer with `error`; what the wire's list lacks becomes EIO."""
    if error not in _WIRE_ERRORS:
        error = NBD_EIO
    return SIMPLE_REPLY.pack(NBD_SIMPLE_REPLY_MAGIC, error, cookie)


class RequestReader:
    """The receiving half of one connection in transmission.

    `stopped_early` says that complete requests may be waiting behind the limits that were given
    to `take_requests`. `taken_bytes` is the data that its last batch carries or will read, and
    `taken_read_bytes` the part that will be read.
    """

    __slots__ = (
        "_chunk",
        "_connection",
        "_end",
        "_export",
        "_fast_command_max",
        "_minimum_block_bytes",
        "_pool",
        "_refused_cookie",
        "_refused_error",
        "_size_bytes",
        "_skip_bytes",
        "_start",
        "_wanted_bytes",
        "disconnect_asked",
        "refusals",
        "refused",
        "stopped_early",
        "taken_bytes",
        "taken_read_bytes",
    )

    def __init__(
        self, export: ExportInfo, pool: ChunkPool, connection: Connection | None = None
    ) -> None:
        self._export = export
        self._pool = pool
        self._connection = connection
        self._size_bytes = export.size_bytes
        self._minimum_block_bytes = export.minimum_block_bytes
        # Requests of these commands need no more than the range check of the fast path.
        self._fast_command_max = NBD_CMD_READ if export.read_only else NBD_CMD_WRITE
        if export.minimum_block_bytes > 1:
            self._fast_command_max = -1
        self._chunk: Chunk | None = None
        self._start = 0
        self._end = 0
        self._wanted_bytes = REQUEST_BYTES
        self._skip_bytes = 0
        self._refused_error = 0
        self._refused_cookie = b""
        self.refusals: list[bytes] = []
        self.refused = 0
        self.taken_bytes = 0
        self.taken_read_bytes = 0
        self.stopped_early = False
        self.disconnect_asked = False

    @property
    def in_mid_request(self) -> bool:
        """True if the bytes received so far end inside a request."""
        return self._start != self._end or self._skip_bytes > 0

    @property
    def waits_for_large_payload(self) -> bool:
        """True while a buffer beyond the ordinary is held for a payload that is not complete."""
        return (
            self._start != self._end
            and self._chunk is not None
            and self._chunk.capacity > CHUNK_BYTES
        )

    def room(self) -> memoryview | None:
        """Where to receive next, never empty; None while the pool's limits allow no buffer.

        Not to be asked while `stopped_early`: what is complete has to be taken first.
        """
        chunk, wanted = self._chunk, self._wanted_bytes
        if chunk is None or not self._fits(chunk, wanted):
            chunk = self._make_room(chunk, wanted)
            if chunk is None:
                return None
        if wanted >= LARGE_REQUEST_BYTES and self._start + 2 * wanted > chunk.capacity:
            # A second one of this size would straddle the end of the chunk and be moved.
            return chunk.view[self._end : self._start + wanted]
        return chunk.view[self._end :]

    def _fits(self, chunk: Chunk, wanted: int) -> bool:
        if self._start == self._end and chunk.holders == 1:
            # Everything received was parsed and answered.
            self._start = self._end = 0
        capacity = chunk.capacity
        if self._start + wanted > capacity:
            return False
        if capacity - self._end >= ROOM_BYTES_MIN:
            return True
        return self._start != self._end and wanted > ROOM_BYTES_MIN

    def _make_room(self, chunk: Chunk | None, wanted: int) -> Chunk | None:
        """Move the incomplete request, if any, to where `wanted` bytes fit."""
        start, end = self._start, self._end
        pending = end - start
        if chunk is not None:
            if chunk.holders == 1 and wanted <= chunk.capacity:
                # No request holds this chunk, so it serves again. The slices may overlap.
                chunk.view[:pending] = chunk.view[start:end]
                self._start, self._end = 0, pending
                return chunk
            if not pending:
                # Give it back first: it may be the very one that the pool can give out.
                chunk.release()
                self._chunk = chunk = None
                self._start = self._end = 0
        fresh = self._pool.take(wanted)
        if fresh is None:
            return None
        if chunk is not None:
            fresh.view[:pending] = chunk.view[start:end]
            chunk.release()
        self._chunk = fresh
        self._start, self._end = 0, pending
        return fresh

    def received(self, count_bytes: int) -> None:
        """`count_bytes` were put at the beginning of the last `room()`."""
        self._end += count_bytes

    def take_requests(self, count_max: int, bytes_max: int, read_bytes_max: int) -> list[Request]:
        """Every complete request, in order, as far as the three limits allow.

        `bytes_max` bounds what they carry or will read, `read_bytes_max` what they will read.
        Each holds its chunk until it is answered. Raises TransmissionViolation.
        """
        requests: list[Request] = []
        self.stopped_early, self.taken_bytes, self.taken_read_bytes = False, 0, 0
        chunk = self._chunk
        if chunk is None or (self._skip_bytes and not self._skip()):
            return requests
        view, position, end = chunk.view, self._start, self._end
        size, fast_command_max = self._size_bytes, self._fast_command_max
        connection, unpack, append = self._connection, REQUEST.unpack_from, requests.append
        bytes_left, read_bytes_left = bytes_max, read_bytes_max
        wanted = self._wanted_bytes if position == end else REQUEST_BYTES
        while end - position >= REQUEST_BYTES:
            magic, flags, command, cookie, offset, length = unpack(view, position)
            if not (
                command <= fast_command_max
                and flags <= NBD_CMD_FLAG_FUA
                and 0 < length <= PAYLOAD_BYTES_MAX
                and offset + length <= size
                and magic == NBD_REQUEST_MAGIC
            ):
                if magic != NBD_REQUEST_MAGIC:
                    self._reject_magic(magic, bool(requests))
                    break
                self._start = position
                if self._settled_here(command, flags, cookie, offset, length):
                    position = self._start
                    continue
            if len(requests) >= count_max:
                self.stopped_early = True
                break
            if command == NBD_CMD_WRITE:
                body = position + REQUEST_BYTES
                wanted = REQUEST_BYTES + length
                if length > bytes_left or end - body < length:
                    self.stopped_early = length > bytes_left
                    break
                bytes_left -= length
                position = body + length
                chunk.holders += 1
                payload = view[body:position]
                append(Request(connection, command, flags, cookie, offset, length, payload, chunk))
                continue
            if command == NBD_CMD_READ:
                if length > bytes_left or length > read_bytes_left:
                    self.stopped_early = True
                    break
                bytes_left -= length
                read_bytes_left -= length
            position += REQUEST_BYTES
            wanted = REQUEST_BYTES
            append(Request(connection, command, flags, cookie, offset, length))
        self.taken_bytes = bytes_max - bytes_left
        self.taken_read_bytes = read_bytes_max - read_bytes_left
        self._rest_at(position, wanted)
        return requests

    def _reject_magic(self, magic: int, after_others: bool) -> None:
        """What came before is valid and carried out first; then the next call comes here again."""
        if not after_others:
            raise TransmissionViolation(f"request magic 0x{magic:08x} is wrong")
        self.stopped_early = True

    def _rest_at(self, position: int, wanted: int) -> None:
        """Parsing ends here, before a request that needs or, on a boundary, may need `wanted`."""
        self._start = position
        if position == self._end and wanted > EXPECTED_REQUEST_BYTES_MAX:
            # A very large buffer is not kept for the chance that another such request follows.
            wanted = REQUEST_BYTES
            if self._chunk is not None:
                self._chunk.release()
                self._chunk = None
                self._start = self._end = 0
        self._wanted_bytes = wanted

    def _settled_here(
        self, command: int, flags: int, cookie: bytes, offset: int, length: int
    ) -> bool:
        """Deal with the request at `_start` if no backend needs to; then `_start` is behind it."""
        if command == NBD_CMD_DISC:
            self.disconnect_asked = True
            self._start = self._end
            return True
        error = self._judge(command, flags, offset, length)
        if error < 0:
            return False
        self._start += REQUEST_BYTES
        self._refused_error, self._refused_cookie = error, cookie
        # Only a WRITE is followed by a payload, whatever length another command shows.
        self._skip_bytes = length if command == NBD_CMD_WRITE else 0
        self._skip()
        return True

    def close(self) -> None:
        """Give the current chunk back; nothing is parsed any more."""
        if self._chunk is not None:
            self._chunk.release()
            self._chunk = None
        self._start = self._end = self._skip_bytes = 0

    def _skip(self) -> bool:
        """Pass over a refused payload; True, and its refusal recorded, once it is all there."""
        skipped = min(self._skip_bytes, self._end - self._start)
        self._start += skipped
        self._skip_bytes -= skipped
        self._wanted_bytes = REQUEST_BYTES
        if self._skip_bytes:
            return False
        self._refuse(self._refused_error, self._refused_cookie)
        return True

    def _refuse(self, error: int, cookie: bytes) -> None:
        """Answer a request that no backend sees. A zero `error` means success."""
        if error:
            self.refused += 1
            self.refusals.append(error_reply(error, cookie))
        else:
            self.refusals.append(_SUCCESS + cookie)

    def _judge(self, command: int, flags: int, offset: int, length: int) -> int:
        """-1 if the backend shall have it, 0 if there is nothing to do, else the error.

        Which error when: proto.md, "Error values" and the sections of the commands.
        """
        allowed = _FLAGS_ALLOWED.get(command)
        if allowed is None or flags & ~allowed:
            return NBD_EINVAL
        if command == NBD_CMD_FLUSH:
            # Offset and length are reserved.
            return NBD_EINVAL if offset or length else -1
        writes = command in _WRITING_COMMANDS
        if writes and self._export.read_only:
            return NBD_EPERM
        if command <= NBD_CMD_WRITE and length > PAYLOAD_BYTES_MAX:
            return NBD_EINVAL
        if offset + length > self._size_bytes:
            return NBD_ENOSPC if writes and command != NBD_CMD_TRIM else NBD_EINVAL
        block = self._minimum_block_bytes
        if offset % block or length % block:
            return NBD_EINVAL
        return -1 if length else 0

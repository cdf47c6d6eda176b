"""Replies in chunks: holes told apart, statuses, errors with a text and the byte at fault.

Batched exactly as simple ones: a chunk is one header and the backend's own buffer, and a turn's
chunks go out in one call. A READ is answered when all of it is known, so its last content chunk is
the last of the reply, and no error can follow data that was promised.

Spec: proto.md, "Structured reply chunk message", "Structured reply types"; its branch
extension-ext-header for the headers with 64-bit lengths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Final

from nbdserver.buffers import Chunk
from nbdserver.errors import LocalError
from nbdserver.file_data import FileData
from nbdserver.protocol import (
    ERROR,
    EXTENDED_CHUNK,
    NBD_CMD_FLAG_DF,
    NBD_CMD_READ,
    NBD_EXTENDED_REPLY_MAGIC,
    NBD_REPLY_FLAG_DONE,
    NBD_REPLY_TYPE_BLOCK_STATUS,
    NBD_REPLY_TYPE_BLOCK_STATUS_EXT,
    NBD_REPLY_TYPE_ERROR,
    NBD_REPLY_TYPE_ERROR_OFFSET,
    NBD_REPLY_TYPE_NONE,
    NBD_REPLY_TYPE_OFFSET_DATA,
    NBD_REPLY_TYPE_OFFSET_HOLE,
    NBD_STRUCTURED_REPLY_MAGIC,
    OFFSET_HOLE,
    STATUS_DESCRIPTOR,
    STATUS_DESCRIPTOR_EXT,
    STRING_BYTES_MAX,
    STRUCTURED_CHUNK,
    U32,
    U64,
)
from nbdserver.replies import Data, Extents, Part, ReplyQueue, wire_error, with_zeroes
from nbdserver.requests import Request

#: More descriptors than this no chunk may have ("SHOULD NOT send more than 2^20").
DESCRIPTORS_MAX: Final = 1 << 20
_OFFSET_BYTES: Final = U64.size
_DATA_CHUNK: Final = Struct(STRUCTURED_CHUNK.format + "Q")


class StructuredReplies(ReplyQueue):
    """For a client that negotiated structured replies. Successes without data stay simple, which
    the protocol allows and which costs the least on both sides."""

    __slots__ = ()

    def add_success(self, request: Request) -> None:
        if request.command == NBD_CMD_READ:
            self._add_chunk(request, NBD_REPLY_TYPE_NONE)
        else:
            super().add_success(request)

    def add_error(self, request: Request, error: int, text: str, at: int | None) -> None:
        # A cut inside a multi-byte character would no longer be UTF-8.
        encoded = text.encode()[:STRING_BYTES_MAX].decode(errors="ignore").encode()
        payload = ERROR.pack(wire_error(error), len(encoded)) + encoded
        if at is None or not request.offset <= at < request.offset + request.length:
            self._add_chunk(request, NBD_REPLY_TYPE_ERROR, payload)
        else:
            self._add_chunk(request, NBD_REPLY_TYPE_ERROR_OFFSET, payload + U64.pack(at))

    def add_data(
        self, request: Request, data: Data | Sequence[Data] | None, hold: Chunk | None
    ) -> None:
        length = request.length
        header = self._data_header(request, request.offset, length, NBD_REPLY_FLAG_DONE)
        if isinstance(data, (bytes, bytearray, memoryview)) and len(data) == length:
            self.pieces += (header, data)
            self._has_data = True
            self._queued_bytes += len(header) + length
        else:
            self._add_pieces(header, length, data or ())
        if hold is not None:
            self._holds.append((self._queued_bytes, hold))

    def add_file(self, request: Request, data: FileData) -> None:
        length = request.length
        header = self._data_header(request, request.offset, length, NBD_REPLY_FLAG_DONE)
        self._add_file(header, length, data)

    def add_parts(self, request: Request, parts: Sequence[Part], hold: Chunk | None) -> None:
        if request.flags & NBD_CMD_FLAG_DF:
            self.add_data(request, with_zeroes(parts), hold)
            return
        lengths = [part if isinstance(part, int) else len(part) for part in parts]
        if sum(lengths) != request.length or min(lengths, default=0) < 1:
            raise LocalError(f"parts of {lengths} bytes for a READ of {request.length}")
        offset = request.offset
        flags = 0
        for number, (part, length) in enumerate(zip(parts, lengths, strict=True), 1):
            if number == len(parts):
                flags = NBD_REPLY_FLAG_DONE
            if isinstance(part, int):
                payload = OFFSET_HOLE.pack(offset, length)
                self._add_chunk(request, NBD_REPLY_TYPE_OFFSET_HOLE, payload, flags)
            else:
                self._add_pieces(self._data_header(request, offset, length, flags), length, part)
            offset += length
        if hold is not None:
            self._holds.append((self._queued_bytes, hold))

    def add_status(self, request: Request, statuses: Mapping[int, Extents]) -> None:
        left = len(statuses)
        for context, extents in statuses.items():
            if not 0 < len(extents) <= DESCRIPTORS_MAX:
                raise LocalError(f"{len(extents)} extents for a BLOCK_STATUS")
            left -= 1
            self._add_extents(request, context, extents, 0 if left else NBD_REPLY_FLAG_DONE)

    def _add_extents(self, request: Request, context: int, extents: Extents, flags: int) -> None:
        pack = STATUS_DESCRIPTOR.pack
        payload = U32.pack(context) + b"".join(pack(*extent) for extent in extents)
        self._add_chunk(request, NBD_REPLY_TYPE_BLOCK_STATUS, payload, flags)

    def _add_chunk(
        self, request: Request, kind: int, payload: bytes = b"", flags: int = NBD_REPLY_FLAG_DONE
    ) -> None:
        reply = self._header(request, kind, len(payload), flags) + payload
        self.pieces.append(reply)
        self._queued_bytes += len(reply)

    def _header(self, request: Request, kind: int, payload_bytes: int, flags: int) -> bytes:
        return STRUCTURED_CHUNK.pack(
            NBD_STRUCTURED_REPLY_MAGIC, flags, kind, request.cookie, payload_bytes
        )

    def _data_header(self, request: Request, offset: int, length: int, flags: int) -> bytes:
        """The header of an OFFSET_DATA chunk and the offset that its payload begins with."""
        return _DATA_CHUNK.pack(
            NBD_STRUCTURED_REPLY_MAGIC,
            flags,
            NBD_REPLY_TYPE_OFFSET_DATA,
            request.cookie,
            _OFFSET_BYTES + length,
            offset,
        )


class ExtendedReplies(StructuredReplies):
    """For a client that negotiated extended headers: every reply has the one 32-byte header."""

    __slots__ = ()

    def add_success(self, request: Request) -> None:
        self._add_chunk(request, NBD_REPLY_TYPE_NONE)

    def _add_extents(self, request: Request, context: int, extents: Extents, flags: int) -> None:
        pack = STATUS_DESCRIPTOR_EXT.pack
        payload = U32.pack(context) + U32.pack(len(extents))
        payload += b"".join(pack(*extent) for extent in extents)
        self._add_chunk(request, NBD_REPLY_TYPE_BLOCK_STATUS_EXT, payload, flags)

    def _header(self, request: Request, kind: int, payload_bytes: int, flags: int) -> bytes:
        return EXTENDED_CHUNK.pack(
            NBD_EXTENDED_REPLY_MAGIC, flags, kind, request.cookie, request.offset, payload_bytes
        )

    def _data_header(self, request: Request, offset: int, length: int, flags: int) -> bytes:
        size = _OFFSET_BYTES + length
        return self._header(request, NBD_REPLY_TYPE_OFFSET_DATA, size, flags) + U64.pack(offset)

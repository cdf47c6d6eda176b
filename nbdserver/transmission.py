"""Requests out of a byte stream, sans-IO. This is the hot path.

The driver asks `room()` where to receive, says how much came by `received()`, and takes what is
complete with `take_requests()`. A payload is never copied in Python: it is a slice of the chunk
that the kernel filled.

What a client may not do never reaches a backend: it collects in `refusals`, to be answered by the
driver. Bytes that cannot be followed raise TransmissionViolation.

No logging, no tasks, no f-strings per request; names are bound to locals where a loop uses them.
Requests with extended headers are `extended_headers.py`'s, which shares all but the loop.

Spec: proto.md, "Transmission phase", "Request types", "Command flags".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbdserver.buffers import ChunkPool
from nbdserver.errors import TransmissionViolation
from nbdserver.export import ExportInfo
from nbdserver.legality import Fault, Legality
from nbdserver.protocol import (
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_DISC,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_READ,
    NBD_CMD_WRITE,
    NBD_REQUEST_MAGIC,
    REQUEST,
    REQUEST_BYTES,
)
from nbdserver.receiving import ReceiveWindow
from nbdserver.requests import Request, StatusRequest
from nbdserver.terms import Terms

if TYPE_CHECKING:
    from nbdserver.connection import Connection


class RequestReader(ReceiveWindow):
    """The receiving half of one connection in transmission, with compact requests.

    `stopped_early` says that complete requests may be waiting behind the limits that were given
    to `take_requests`, `stopped_by_reads` that it was the limit of what is read. `taken_bytes` is
    the data that its last batch carries or will read, and `taken_read_bytes` the part that will be
    read. `refusals` are for the driver to answer and to clear; the fault of a request that needs no
    work has error 0.
    """

    __slots__ = (
        "_connection",
        "_contexts",
        "_fast_command_max",
        "_legality",
        "_payload_bytes_max",
        "_refused",
        "_size_bytes",
        "disconnect_asked",
        "refusals",
        "stopped_by_reads",
        "stopped_early",
        "taken_bytes",
        "taken_read_bytes",
    )

    def __init__(
        self,
        export: ExportInfo,
        pool: ChunkPool,
        connection: Connection | None = None,
        terms: Terms | None = None,
        header_bytes: int = REQUEST_BYTES,
    ) -> None:
        super().__init__(pool, header_bytes)
        terms = terms or Terms()
        self._connection = connection
        self._legality = Legality(export, terms)
        self._contexts = terms.context_ids()
        self._size_bytes = export.size_bytes
        self._payload_bytes_max = export.maximum_block_bytes
        # Requests of these commands need no more than the range check of the fast path.
        self._fast_command_max = NBD_CMD_READ if export.read_only else NBD_CMD_WRITE
        if export.minimum_block_bytes > 1:
            self._fast_command_max = -1
        self._refused: tuple[Request, Fault] | None = None
        self.refusals: list[tuple[Request, Fault]] = []
        self.taken_bytes = 0
        self.taken_read_bytes = 0
        self.stopped_early = self.stopped_by_reads = False
        self.disconnect_asked = False

    def take_requests(self, count_max: int, bytes_max: int, read_bytes_max: int) -> list[Request]:
        """Every complete request, in order, as far as the three limits allow.

        `count_max` bounds how many are taken or refused, `bytes_max` what they carry or will read,
        `read_bytes_max` what they will read. Each holds its chunk until it is answered.
        Raises TransmissionViolation.
        """
        requests: list[Request] = []
        self.stopped_early, self.taken_bytes, self.taken_read_bytes = False, 0, 0
        self.stopped_by_reads = False
        chunk = self._chunk
        if chunk is None or (self._skip_bytes and not self._skip_refused()):
            return requests
        view, position, end = chunk.view, self._start, self._end
        size, longest = self._size_bytes, self._payload_bytes_max
        fast_command_max = self._fast_command_max
        connection, unpack, append = self._connection, REQUEST.unpack_from, requests.append
        bytes_left, read_bytes_left = bytes_max, read_bytes_max
        wanted = self._wanted_bytes if position == end else REQUEST_BYTES
        while end - position >= REQUEST_BYTES:
            magic, flags, command, cookie, offset, length = unpack(view, position)
            if not (
                command <= fast_command_max
                and flags <= NBD_CMD_FLAG_FUA
                and 0 < length <= longest
                and offset + length <= size
                and magic == NBD_REQUEST_MAGIC
            ):
                if magic != NBD_REQUEST_MAGIC:
                    self._reject(f"request magic 0x{magic:08x} is wrong", bool(requests))
                    break
                if self._turn_is_full(len(requests), count_max):
                    break
                self._start = position
                # Only a WRITE is followed by a payload, whatever length another command shows.
                payload_bytes = length if command == NBD_CMD_WRITE else 0
                if self._settled_here(command, flags, cookie, offset, length, payload_bytes):
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
            wanted = REQUEST_BYTES
            if command == NBD_CMD_READ:
                if length > bytes_left or length > read_bytes_left:
                    self.stopped_early, self.stopped_by_reads = True, length <= bytes_left
                    break
                bytes_left -= length
                read_bytes_left -= length
            position += REQUEST_BYTES
            if command == NBD_CMD_BLOCK_STATUS:
                append(self._status(flags, cookie, offset, length))
                continue
            append(Request(connection, command, flags, cookie, offset, length))
        self.taken_bytes = bytes_max - bytes_left
        self.taken_read_bytes = read_bytes_max - read_bytes_left
        self._rest_at(position, wanted)
        return requests

    def _status(self, flags: int, cookie: bytes, offset: int, length: int) -> StatusRequest:
        connection, contexts = self._connection, self._contexts
        return StatusRequest(
            connection, NBD_CMD_BLOCK_STATUS, flags, cookie, offset, length, contexts
        )

    def _reject(self, violation: str, after_others: bool) -> None:
        """What came before is valid and carried out first; then the next call comes here again.

        Raising before would also lose requests that hold their chunks already.
        """
        if not after_others:
            raise TransmissionViolation(violation)
        self.stopped_early = True

    def _turn_is_full(self, taken: int, count_max: int) -> bool:
        """Whether as many requests were taken or refused as one turn may have.

        A refusal costs more time than a request that is passed on, and other clients wait for it.
        """
        if taken + len(self.refusals) < count_max:
            return False
        self.stopped_early = True
        return True

    def _settled_here(
        self,
        command: int,
        flags: int,
        cookie: bytes,
        offset: int,
        length: int,
        payload_bytes: int,
    ) -> bool:
        """Deal with the request at `_start` if no backend needs to; then `_start` is behind it."""
        if command == NBD_CMD_DISC:
            self.disconnect_asked = True
            self._start = self._end
            return True
        fault = self._legality.judge(command, flags, offset, length)
        if fault is None:
            return False
        request = Request(self._connection, command, flags, cookie, offset, length)
        self._refuse(request, fault, payload_bytes)
        return True

    def _refuse(self, request: Request, fault: Fault, payload_bytes: int) -> None:
        """Refuse the request at `_start`, once all of its payload has come and gone."""
        self._start += self._header_bytes
        self._refused = request, fault
        self._skip_bytes = payload_bytes
        self._skip_refused()

    def _skip_refused(self) -> bool:
        """Pass over a refused payload; True, and its refusal recorded, once it is all there."""
        if not self._skip():
            return False
        assert self._refused is not None
        self.refusals.append(self._refused)
        self._refused = None
        return True

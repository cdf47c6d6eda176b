"""Requests with extended headers: 32 bytes, 64-bit lengths, and payloads only where announced.

With these headers PAYLOAD_LEN alone says whether a payload follows, so that any command can be
passed over, known or not. One command besides WRITE may have one: BLOCK_STATUS, to ask about some
of the selected contexts. No client of Debian 12 speaks this; the tests are byte-exact instead.

Spec: proto.md of the branch extension-ext-header, "Extended request message", "Command flags".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nbdserver.buffers import ChunkPool
from nbdserver.export import ExportInfo
from nbdserver.legality import COMMAND_NAMES, Fault
from nbdserver.protocol import (
    EXTENDED_REQUEST,
    EXTENDED_REQUEST_BYTES,
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_DISC,
    NBD_CMD_FLAG_PAYLOAD_LEN,
    NBD_CMD_READ,
    NBD_CMD_WRITE,
    NBD_EINVAL,
    NBD_EXTENDED_REQUEST_MAGIC,
    U32,
    U64,
)
from nbdserver.requests import Request, StatusRequest
from nbdserver.terms import Terms
from nbdserver.transmission import RequestReader

if TYPE_CHECKING:
    from nbdserver.connection import Connection

#: A payload that is refused is passed over up to here; whoever announces more is dropped.
SKIPPED_PAYLOAD_BYTES_MAX: Final = (1 << 32) - 1
#: The payload of a BLOCK_STATUS: a length and the ids of contexts. A longer one is refused.
STATUS_PAYLOAD_BYTES_MAX: Final = U64.size + 1024 * U32.size
_STATUS_PAYLOAD_BYTES_MIN: Final = U64.size + U32.size


class ExtendedRequestReader(RequestReader):
    """As its base, for a client that negotiated extended headers."""

    __slots__ = ()

    def __init__(
        self,
        export: ExportInfo,
        pool: ChunkPool,
        connection: Connection | None = None,
        terms: Terms | None = None,
    ) -> None:
        super().__init__(export, pool, connection, terms, EXTENDED_REQUEST_BYTES)

    def take_requests(self, count_max: int, bytes_max: int, read_bytes_max: int) -> list[Request]:
        """As in the base class."""
        requests: list[Request] = []
        self.stopped_early, self.taken_bytes, self.taken_read_bytes = False, 0, 0
        self.stopped_by_reads = False
        chunk = self._chunk
        if chunk is None or (self._skip_bytes and not self._skip_refused()):
            return requests
        view, position, end = chunk.view, self._start, self._end
        wanted = self._wanted_bytes if position == end else EXTENDED_REQUEST_BYTES
        while end - position >= EXTENDED_REQUEST_BYTES:
            magic, flags, command, cookie, offset, length = EXTENDED_REQUEST.unpack_from(
                view, position
            )
            if magic != NBD_EXTENDED_REQUEST_MAGIC:
                self._reject(f"request magic 0x{magic:08x} is wrong", bool(requests))
                break
            payload_bytes = length if flags & NBD_CMD_FLAG_PAYLOAD_LEN else 0
            if payload_bytes > SKIPPED_PAYLOAD_BYTES_MAX:
                self._reject(f"a payload of {payload_bytes} bytes is announced", bool(requests))
                break
            if self._turn_is_full(len(requests), count_max):
                break
            self._start = position
            if self._passed_over(command, flags, cookie, offset, length, payload_bytes):
                position = self._start
                continue
            if not self._has_room(command, length, bytes_max, read_bytes_max):
                self.stopped_early = True
                break
            body = position + EXTENDED_REQUEST_BYTES
            wanted = EXTENDED_REQUEST_BYTES + payload_bytes
            if end - body < payload_bytes:
                break
            position = body + payload_bytes
            wanted = wanted if command == NBD_CMD_WRITE else EXTENDED_REQUEST_BYTES
            flags &= ~NBD_CMD_FLAG_PAYLOAD_LEN
            if command == NBD_CMD_WRITE:
                chunk.holders += 1
                payload = view[body:position]
                self.taken_bytes += length
                request = Request(
                    self._connection, command, flags, cookie, offset, length, payload, chunk
                )
            elif command == NBD_CMD_BLOCK_STATUS:
                self._start = body
                found = self._asked_status(flags, cookie, offset, length, view[body:position])
                if found is None:
                    continue
                request = found
            else:
                if command == NBD_CMD_READ:
                    self.taken_bytes += length
                    self.taken_read_bytes += length
                request = Request(self._connection, command, flags, cookie, offset, length)
            requests.append(request)
        self._rest_at(position, wanted)
        return requests

    def _has_room(self, command: int, length: int, bytes_max: int, read_bytes_max: int) -> bool:
        if command not in (NBD_CMD_READ, NBD_CMD_WRITE):
            return True
        if self.taken_bytes + length > bytes_max:
            return False
        self.stopped_by_reads = (
            command == NBD_CMD_READ and self.taken_read_bytes + length > read_bytes_max
        )
        return not self.stopped_by_reads

    def _passed_over(
        self,
        command: int,
        flags: int,
        cookie: bytes,
        offset: int,
        length: int,
        payload_bytes: int,
    ) -> bool:
        """Deal with the request at `_start` if no backend needs to; then `_start` is behind it."""
        announced = bool(flags & NBD_CMD_FLAG_PAYLOAD_LEN)
        fault = None
        if command == NBD_CMD_WRITE:
            if not announced:
                fault = Fault(NBD_EINVAL, "WRITE without PAYLOAD_LEN, which its data needs")
            flags &= ~NBD_CMD_FLAG_PAYLOAD_LEN
        elif announced and command != NBD_CMD_DISC:
            name = COMMAND_NAMES.get(command, f"command {command}")
            if command != NBD_CMD_BLOCK_STATUS or not self._contexts:
                fault = Fault(NBD_EINVAL, f"{name} with a payload, which it does not take here")
            elif not _STATUS_PAYLOAD_BYTES_MIN <= payload_bytes <= STATUS_PAYLOAD_BYTES_MAX:
                fault = Fault(NBD_EINVAL, f"{name} with a payload of {payload_bytes} bytes")
            else:
                # Its effect is described by the payload, which is judged once it is there.
                return False
        if fault is None:
            return self._settled_here(command, flags, cookie, offset, length, payload_bytes)
        self._refuse(
            Request(self._connection, command, flags, cookie, offset, length), fault, payload_bytes
        )
        return True

    def _asked_status(
        self, flags: int, cookie: bytes, offset: int, length: int, payload: memoryview
    ) -> StatusRequest | None:
        """The BLOCK_STATUS with this payload, empty for none, or None if it is refused here."""
        request = self._status(flags, cookie, offset, length)
        if not payload:
            return request
        (request.length,) = U64.unpack_from(payload)
        ids = [each for (each,) in U32.iter_unpack(payload[U64.size : _whole_ids_end(payload)])]
        fault: Fault | None = Fault(
            NBD_EINVAL, "BLOCK_STATUS: its payload is not a length and ids of selected contexts"
        )
        well_formed = _whole_ids_end(payload) == len(payload) and len(set(ids)) == len(ids)
        if well_formed and all(each in self._contexts for each in ids):
            request.contexts = {each: self._contexts[each] for each in ids}
            fault = self._legality.judge(NBD_CMD_BLOCK_STATUS, flags, offset, request.length)
        if fault is None:
            return request
        self.refusals.append((request, fault))
        return None


def _whole_ids_end(payload: memoryview) -> int:
    """Where the last complete id of the payload ends."""
    return len(payload) - (len(payload) - U64.size) % U32.size

"""What the NBD specification says of a stream of requests, and what its answers have to be.

Shares no code with `nbdserver`: written from proto.md and its branch extension-ext-header. Where
several errors fit a request, any of them is right.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.nbdserver.wire import chunks

READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
EPERM, EINVAL, ENOSPC = 1, 22, 28
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO, PAYLOAD_LEN = (1 << bit for bit in range(6))
SIMPLE, STRUCTURED, EXTENDED = "simple", "structured", "extended"
U32_MAX = (1 << 32) - 1
STATUS_IDS_MAX = 1024


@dataclass(frozen=True)
class Disk:
    """The export as its client knows it."""

    size: int
    style: str
    read_only: bool = False
    block: int = 1
    largest: int = 8192
    fast_zero: bool = True
    contexts: int = 0


@dataclass(frozen=True)
class Asked:
    """One complete request. `errors` is empty if it has to be done; `nothing` if it is empty."""

    number: int
    command: int
    flags: int
    offset: int
    length: int
    payload: bytes
    errors: frozenset[int]
    nothing: bool = False
    ids: tuple[int, ...] = ()

    @property
    def done(self) -> bool:
        """Whether a backend has to see it."""
        return not self.errors and not self.nothing


@dataclass
class Followed:
    """A stream as it is understood: requests, and how it ends."""

    asked: list[Asked] = field(default_factory=list)
    violated: bool = False
    disconnected: bool = False


def numbered(stream: bytes, disk: Disk) -> bytes:
    """The stream with its requests' cookies replaced by their numbers, so that each is its own."""
    found = bytearray(stream)
    position = number = 0
    while (end := _end(found, position, disk)) is not None:
        found[position + 8 : position + 16] = number.to_bytes(8, "big")
        number += 1
        position = end
    return bytes(found)


def _end(stream: bytes | bytearray, position: int, disk: Disk) -> int | None:
    """Where the request at `position` ends; None if none can be followed from here."""
    size = 32 if disk.style == EXTENDED else 28
    if len(stream) < position + size:
        return None
    magic, flags, command = struct.unpack_from(">IHH", stream, position)
    if magic != (0x21E41C71 if disk.style == EXTENDED else 0x25609513):
        return None
    length = int.from_bytes(stream[position + 24 : position + size], "big")
    has_payload = flags & PAYLOAD_LEN if disk.style == EXTENDED else command == WRITE
    if not has_payload:
        length = 0
    return None if length > U32_MAX else position + size + length


def followed(stream: bytes, disk: Disk) -> Followed:
    """Cut and judge every complete request up to the first violation or goodbye."""
    found = Followed()
    size = 32 if disk.style == EXTENDED else 28
    position = 0
    while len(stream) >= position + size and not found.disconnected:
        end = _end(stream, position, disk)
        if end is None:
            found.violated = True
            return found
        _, flags, command, cookie, offset = struct.unpack_from(">IHHQQ", stream, position)
        length = int.from_bytes(stream[position + 24 : position + size], "big")
        if command == DISC:
            found.disconnected = True
        elif end > len(stream):
            return found
        else:
            payload = stream[position + size : end]
            found.asked.append(_judged(disk, cookie, command, flags, offset, length, payload))
        position = end
    return found


def _judged(
    disk: Disk, number: int, command: int, flags: int, offset: int, length: int, payload: bytes
) -> Asked:
    errors = set()
    ids = tuple(range(1, disk.contexts + 1))
    if disk.style == EXTENDED:
        if (command == WRITE) != bool(flags & PAYLOAD_LEN):
            errors.add(EINVAL)
        if command == STATUS and flags & PAYLOAD_LEN and disk.contexts:
            errors.clear()
            described = _status_payload(payload, disk)
            if described is None:
                errors.add(EINVAL)
            else:
                length, ids = described
        flags &= ~PAYLOAD_LEN
    errors |= _wrong_flags(disk, command, flags)
    errors |= _wrong_range(disk, command, offset, length)
    nothing = not errors and length == 0 and command != FLUSH
    return Asked(number, command, flags, offset, length, payload, frozenset(errors), nothing, ids)


def _status_payload(payload: bytes, disk: Disk) -> tuple[int, tuple[int, ...]] | None:
    """The effective length and ids that a BLOCK_STATUS asks about by its payload."""
    count, rest = divmod(len(payload) - 8, 4)
    if rest or not 1 <= count <= STATUS_IDS_MAX:
        return None
    length, *ids = struct.unpack(f">Q{count}I", payload)
    if len(set(ids)) < count or not set(ids) <= set(range(1, disk.contexts + 1)):
        return None
    return length, tuple(ids)


def _wrong_flags(disk: Disk, command: int, flags: int) -> set[int]:
    legal = {
        READ: FUA | (DF if disk.style != SIMPLE else 0),
        WRITE: FUA,
        FLUSH: FUA,
        TRIM: FUA,
        CACHE: FUA,
        ZEROES: FUA | NO_HOLE | (FAST_ZERO if disk.fast_zero else 0),
        STATUS: FUA | REQ_ONE,
    }
    return {EINVAL} if flags & ~legal.get(command, 0) or command not in legal else set()


def _wrong_range(disk: Disk, command: int, offset: int, length: int) -> set[int]:
    errors = set()
    if command == FLUSH:
        return {EINVAL} if offset or length else set()
    if disk.read_only and command in (WRITE, TRIM, ZEROES):
        errors.add(EPERM)
    if command == STATUS and (not disk.contexts or not length):
        errors.add(EINVAL)
    if command in (READ, WRITE) and length > disk.largest:
        errors.add(EINVAL)
    if offset + length > disk.size:
        errors.add(ENOSPC if command in (WRITE, ZEROES) else EINVAL)
    if offset % disk.block or length % disk.block:
        errors.add(EINVAL)
    return errors


@dataclass
class Answer:
    """What a client understood of one request's reply."""

    error: int = 0
    data: bytes = b""
    statuses: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


def answers(received: bytes, disk: Disk, asked: list[Asked], *, cut: bool) -> dict[int, Answer]:
    """Every complete reply, by the number of its request, each checked as a client would.

    `cut` says that the last one may be incomplete. Raises AssertionError.
    """
    by_number = {each.number: each for each in asked}
    if disk.style == SIMPLE:
        return _simple(received, by_number, cut=cut)
    found: dict[int, Answer] = {}
    open_replies: dict[int, Answer] = {}
    position = 0
    while position < len(received):
        if disk.style == STRUCTURED and received[position : position + 4] == b"\x67\x44\x66\x98":
            part = received[position : position + 16]
            position += 16
            assert len(part) == 16 or cut
            for number, answer in _simple(part, by_number, cut=cut).items():
                assert by_number[number].command != READ, "a READ answered simply"
                assert number not in found and number not in open_replies
                assert not answer.error, "an error without a chunk"
                found[number] = answer
            continue
        header = 20 if disk.style == STRUCTURED else 32
        end = position + header
        end += int.from_bytes(received[end - (4 if header == 20 else 8) : end], "big")
        if end > len(received):
            assert cut, "half a chunk"
            break
        _take_chunk(received[position:end], disk, by_number, found, open_replies)
        position = end
    assert cut or not open_replies, "a reply that never ends"
    return found


def _simple(received: bytes, by_number: dict[int, Asked], *, cut: bool) -> dict[int, Answer]:
    found: dict[int, Answer] = {}
    position = 0
    while position + 16 <= len(received):
        magic, error, number = struct.unpack_from(">IIQ", received, position)
        assert magic == 0x67446698, hex(magic)
        position += 16
        request = by_number[number]
        assert number not in found, f"request {number} answered twice"
        data = b""
        if request.command == READ and not error:
            data = received[position : position + request.length]
            position += request.length
            if len(data) < request.length:
                assert cut, "half a reply"
                break
        found[number] = Answer(error, data)
    assert cut or position == len(received), "half a reply"
    return found


def _take_chunk(
    raw: bytes,
    disk: Disk,
    by_number: dict[int, Asked],
    found: dict[int, Answer],
    open_replies: dict[int, Answer],
) -> None:
    (chunk,) = chunks(raw)
    request = by_number[chunk.cookie]
    assert chunk.cookie not in found, f"request {chunk.cookie} answered twice"
    assert (chunk.offset is not None) == (disk.style == EXTENDED)
    assert chunk.offset in (None, request.offset), "the offset of another request"
    answer = open_replies.setdefault(chunk.cookie, Answer())
    assert chunk.flags in (0, 1)
    assert not answer.error, "something follows an error"
    if chunk.type >= 1 << 15:
        answer.error, text, more = chunk.error()
        assert answer.error and text and text.isprintable(), chunk
        assert len(more) == (8 if chunk.type == 0x8002 else 0)
        if more:
            place = int.from_bytes(more, "big")
            assert request.offset <= place < request.offset + request.length
    elif chunk.type in (1, 2):
        _take_content(chunk.payload, chunk.type, request, answer)
    elif chunk.type in (5, 6):
        assert chunk.type == (6 if disk.style == EXTENDED else 5)
        context, extents = chunk.extents()
        assert request.command == STATUS and context not in answer.statuses
        answer.statuses[context] = extents
    else:
        assert chunk.type == 0 and not chunk.payload and chunk.done, chunk
    if chunk.done:
        found[chunk.cookie] = open_replies.pop(chunk.cookie)


def _take_content(payload: bytes, kind: int, request: Asked, answer: Answer) -> None:
    """Data or a hole: here always the next part of the range, none of them empty."""
    assert request.command == READ
    (offset,) = struct.unpack_from(">Q", payload)
    assert offset == request.offset + len(answer.data), "a gap in a READ"
    if kind == 1:
        assert len(payload) > 8
        answer.data += payload[8:]
        return
    (length,) = struct.unpack(">I", payload[8:])
    assert length and not request.flags & DF
    answer.data += bytes(length)

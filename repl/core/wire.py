"""Frames between peers ⇄ bytes: versioned, checksummed, length-checked (PROTOCOL.md).

Every frame is a 48-byte header and a payload of at most `PAYLOAD_BYTES_MAX`. Data frames carry raw
blocks, which this module never copies; control frames carry one JSON object. Pure functions: the
sockets are in `repl/link`.
"""

from __future__ import annotations

import enum
import json
import struct
from typing import Any, Final, NamedTuple

from crc32c import crc32c

#: What is final here costs compiled code no look-up by its name, several of which each frame needs.
MAGIC: Final = b"RF"
VERSION: Final = 1
#: The one declared limit for both ends.
PAYLOAD_BYTES_MAX = 256 << 10
#: A longer range of zeroes is sent as several frames, so that acknowledgements show progress.
ZERO_BYTES_MAX = 64 << 20
#: ZERO and RESYNC_ZERO frames with this flag let the receiver give the range's space back.
FLAG_PUNCH = 1
HEADER: Final = struct.Struct(">2sBBIQQQQII")
HEADER_BYTES: Final = 48
assert HEADER.size == HEADER_BYTES
_UNCHECKED_BYTES = HEADER_BYTES - 4
_CHECKSUM: Final = struct.Struct(">I")
_HEADER_BODY: Final = struct.Struct(">2sBBIQQQQI")
DIGEST_BYTES = 16
#: A verified frame: (type, seq, offset, length, generation, flags, payload).
Frame = tuple["Type", int, int, int, int, int, object]
#: Identifiers and counters on the wire are positive and fit a signed 64-bit number.
NUMBER_MAX = (1 << 63) - 1


class PeerError(Exception):
    """The peer broke the protocol: its connection is dropped, and the sentence says why."""


class Type(enum.IntEnum):
    """Frame types. Below 16: handshake and control; from 16: the ordered stream."""

    HELLO = 1
    DECISION = 2
    MAP = 3
    START = 4
    READY = 5
    PROMOTE_ASK = 6
    PROMOTE_ANSWER = 7
    LEAVE = 8
    LEAVE_STORED = 9
    GOODBYE = 10
    STATUS = 11
    PING = 12
    PONG = 13
    GENERATION_STORED = 14
    ACK = 15
    WRITE = 16
    ZERO = 17
    RESYNC_WRITE = 18
    RESYNC_ZERO = 19
    DIGEST = 20
    DIFFERENT = 21
    SYNC = 22
    GENERATION = 23
    SETTLED = 24
    CLEAR_INTENTS = 25
    FORK = 26
    RESOLVE_ASK = 27
    RESOLVE_ANSWER = 28
    DISCARD = 29
    DISCARDED = 30


#: Frames that take a number in the stream and are acknowledged by it.
NUMBERED = frozenset({Type.WRITE, Type.ZERO, Type.RESYNC_WRITE, Type.RESYNC_ZERO, Type.DIGEST})
_JSON_TYPES = frozenset(
    {
        Type.HELLO,
        Type.DECISION,
        Type.START,
        Type.READY,
        Type.PROMOTE_ASK,
        Type.PROMOTE_ANSWER,
        Type.LEAVE,
        Type.GOODBYE,
        Type.STATUS,
        Type.GENERATION,
        Type.FORK,
        Type.RESOLVE_ASK,
        Type.RESOLVE_ANSWER,
    }
)
_WRITE: Final = Type.WRITE
_ACK: Final = Type.ACK
_TYPES: Final = {int(kind): kind for kind in Type}
#: Types whose payload is the data that `length` covers, and types that have none.
_DATA_TYPES = frozenset({Type.WRITE, Type.RESYNC_WRITE})
_BARE_TYPES = frozenset(
    {
        Type.LEAVE_STORED,
        Type.PING,
        Type.PONG,
        Type.GENERATION_STORED,
        Type.ACK,
        Type.ZERO,
        Type.RESYNC_ZERO,
        Type.SYNC,
        Type.SETTLED,
        Type.CLEAR_INTENTS,
        Type.DISCARD,
        Type.DISCARDED,
    }
)


class Header(NamedTuple):
    """A decoded frame header. What `offset` and `length` mean depends on the type."""

    type: Type
    payload_bytes: int
    seq: int
    offset: int
    length: int
    generation: int
    flags: int
    checksum: int


def encode_header(
    kind: int,
    payload: bytes | memoryview,
    seq: int = 0,
    offset: int = 0,
    length: int = 0,
    generation: int = 0,
    flags: int = 0,
) -> bytes:
    """Return the 48 bytes that go before `payload`; the checksum covers both."""
    body = _HEADER_BODY.pack(
        MAGIC, VERSION, kind, len(payload), seq, offset, length, generation, flags
    )
    checksum = crc32c(body)
    if payload:
        checksum = crc32c(payload, checksum)
    return body + _CHECKSUM.pack(checksum)


def decode_header(buffer: bytes | bytearray | memoryview, start: int = 0) -> Header:
    """Parse and bound-check a header; the checksum is checked once the payload is there."""
    magic, version, kind, payload_bytes, seq, offset, length, generation, flags, checksum = (
        HEADER.unpack_from(buffer, start)
    )
    if magic != MAGIC:
        raise PeerError("a frame does not begin with the frame magic")
    if version != VERSION:
        raise PeerError(f"a frame has version {version}, this node speaks {VERSION}")
    known = _TYPES.get(kind)
    if known is None:
        raise PeerError(f"a frame has the unknown type {kind}")
    if payload_bytes > PAYLOAD_BYTES_MAX:
        raise PeerError(
            f"a frame announces {payload_bytes} bytes, the limit is {PAYLOAD_BYTES_MAX}"
        )
    if known in _DATA_TYPES:
        fits = payload_bytes == length
    else:
        fits = not payload_bytes or known not in _BARE_TYPES
    if not fits:
        # Refused now: a length that was damaged on its way would be waited for until a timeout.
        raise PeerError(f"a {known.name} frame announces {payload_bytes} bytes, which cannot be")
    return Header(known, payload_bytes, seq, offset, length, generation, flags, checksum)


def verify(
    header: Header,
    buffer: bytes | bytearray | memoryview,
    payload: bytes | memoryview,
    start: int = 0,
) -> None:
    """Raise `PeerError` unless the checksum covers header (at `start` in `buffer`) and payload."""
    checksum = crc32c(memoryview(buffer)[start : start + _UNCHECKED_BYTES])
    if header.payload_bytes:
        checksum = crc32c(payload, checksum)
    if checksum != header.checksum:
        raise PeerError(f"a {header.type.name} frame's checksum is wrong")


def decode_frames(buffer: memoryview, start: int, end: int) -> tuple[list[Frame], int]:
    """Return the verified frames that lie whole between `start` and `end`, and where the rest
    begins. Payloads are slices of `buffer`. Raises `PeerError` for a broken one."""
    frames: list[Frame] = []
    unpack, write, ack = HEADER.unpack_from, _WRITE, _ACK
    while end - start >= HEADER_BYTES:
        magic, version, kind, payload_bytes, seq, offset, length, generation, flags, checksum = (
            unpack(buffer, start)
        )
        known = write
        # The two of every write, the rest with care.
        if magic != MAGIC or version != VERSION:
            known = decode_header(buffer, start).type
        elif kind == ack and not payload_bytes:
            known = ack
        elif kind != write or not payload_bytes == length <= PAYLOAD_BYTES_MAX:
            known = decode_header(buffer, start).type
        body = start + HEADER_BYTES
        stop = body + payload_bytes
        if stop > end:
            break
        payload = buffer[body:stop]
        found = crc32c(buffer[start : body - 4])
        if payload_bytes:
            found = crc32c(payload, found)
        if found != checksum:
            raise PeerError(f"a {known.name} frame's checksum is wrong")
        frames.append((known, seq, offset, length, generation, flags, payload))
        start = stop
    return frames, start


def encode_control(kind: Type, body: dict[str, Any], generation: int = 0) -> bytes:
    """Return a whole control frame with a JSON body."""
    payload = encode_body(body)
    return encode_header(kind, payload, generation=generation) + payload


def encode_body(body: dict[str, Any]) -> bytes:
    """Return a control frame's payload; too large a body is our bug."""
    payload = json.dumps(body, separators=(",", ":")).encode()
    assert len(payload) <= PAYLOAD_BYTES_MAX, len(payload)
    return payload


def decode_body(kind: Type, payload: bytes | memoryview) -> dict[str, Any]:
    """Parse a control frame's payload into an object, or raise `PeerError`."""
    assert kind in _JSON_TYPES, kind
    try:
        body = json.loads(bytes(payload))
    except (ValueError, RecursionError) as error:
        raise PeerError(f"a {kind.name} frame's body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise PeerError(f"a {kind.name} frame's body is not an object")
    return body


def _writable(text: str) -> bool:
    """Whether a text can go to a log: no half of a surrogate pair."""
    return not any(0xD800 <= ord(letter) < 0xE000 for letter in text)


class Fields:
    """Typed access to the fields of a control body; a missing or wrong one is the peer's error."""

    __slots__ = ("_body", "_kind")

    def __init__(self, kind: str, body: dict[str, Any]) -> None:
        self._kind = kind
        self._body = body

    def has(self, name: str) -> bool:
        """Whether the field is there: one that older versions do not send."""
        return name in self._body

    def number(self, name: str) -> int:
        """A whole number from 0 to 2**63 - 1."""
        value = self._body.get(name)
        if type(value) is not int or not 0 <= value <= NUMBER_MAX:
            raise self._wrong(name, "a whole number")
        return value

    def flag(self, name: str) -> bool:
        """A boolean."""
        value = self._body.get(name)
        if type(value) is not bool:
            raise self._wrong(name, "true or false")
        return value

    def text(self, name: str, longest: int = 500) -> str:
        """A string of at most `longest` characters."""
        value = self._body.get(name)
        if not isinstance(value, str) or len(value) > longest or not _writable(value):
            raise self._wrong(name, f"a text of at most {longest} characters")
        return value

    def numbers(self, name: str, most: int = 4096) -> tuple[int, ...]:
        """A list of at most `most` whole numbers."""
        value = self._body.get(name)
        if (
            not isinstance(value, list)
            or len(value) > most
            or not all(type(item) is int and 0 <= item <= NUMBER_MAX for item in value)
        ):
            raise self._wrong(name, f"a list of at most {most} whole numbers")
        return tuple(value)

    def texts(self, name: str, most: int, longest: int) -> tuple[str, ...]:
        """A list of at most `most` strings of at most `longest` characters."""
        value = self._body.get(name)
        if (
            not isinstance(value, list)
            or len(value) > most
            or not all(isinstance(item, str) and len(item) <= longest for item in value)
            or not all(_writable(item) for item in value)
        ):
            raise self._wrong(name, f"a list of at most {most} texts")
        return tuple(value)

    def objects(self, name: str, most: int = 4096) -> list[Fields]:
        """A list of at most `most` objects."""
        value = self._body.get(name)
        if (
            not isinstance(value, list)
            or len(value) > most
            or not all(isinstance(item, dict) for item in value)
        ):
            raise self._wrong(name, f"a list of at most {most} objects")
        return [Fields(f"{self._kind}.{name}", item) for item in value]

    def _wrong(self, name: str, wanted: str) -> PeerError:
        return PeerError(f"{self._kind}: the field {name!r} is missing or not {wanted}")

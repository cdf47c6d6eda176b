"""Frames of the peer protocol for fuzzing: their grammar, and frames that honest nodes sent.

The parser here is written from PROTOCOL.md and shares no code with `repl.core.wire`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

from crc32c import crc32c

from repl.core.promotion import PromoteRequest
from tests.core.every_phase import behind_pair, split_pair
from tests.core.pair_of_cores import Pair, data, established_pair
from tests.fuzz.grammar import Grammar

HEADER_BYTES: Final = 48
PAYLOAD_BYTES_MAX: Final = 262_144
TYPES: Final = range(1, 31)
_DATA = (16, 18)
_BARE = (9, 12, 13, 14, 15, 17, 19, 22, 24, 25, 29, 30)
#: More of an honest conversation adds nothing new.
_FRAMES_MAX = 400

Fields = tuple[int, int, int, int, int, int]


def parsed(stream: bytes) -> tuple[list[tuple[Fields, bytes]], bool]:
    """Every good frame as ((type, seq, offset, length, generation, flags), payload), up to the
    first one that is not; and whether there is such a one."""
    found: list[tuple[Fields, bytes]] = []
    position = 0
    while len(stream) >= position + HEADER_BYTES:
        magic, version, kind, size, *numbers, checksum = struct.unpack_from(
            ">2sBBIQQQQII", stream, position
        )
        fits = size == numbers[2] if kind in _DATA else not (size and kind in _BARE)
        if (magic, version) != (b"RF", 1) or kind not in TYPES or size > PAYLOAD_BYTES_MAX:
            return found, True
        if not fits:
            return found, True
        end = position + HEADER_BYTES + size
        if len(stream) < end:
            break
        payload = stream[position + HEADER_BYTES : end]
        if crc32c(stream[position : position + 44] + payload) != checksum:
            return found, True
        seq, offset, length, generation, flags = numbers
        found.append(((kind, seq, offset, length, generation, flags), payload))
        position = end
    return found, False


def split(stream: bytes) -> list[bytes]:
    """Headers with the payloads that they announce."""
    found, position = [], 0
    while position < len(stream):
        size = int.from_bytes(stream[position + 4 : position + 8], "big")
        end = position + HEADER_BYTES + min(size, len(stream))
        found.append(stream[position:end])
        position = end
    return found


def repair(message: bytes) -> bytes:
    """A frame whose length and checksum are right."""
    if len(message) < HEADER_BYTES:
        return message
    payload = message[HEADER_BYTES:]
    length = struct.pack(">Q", len(payload)) if message[3] in _DATA else message[24:32]
    head = b"RF\1" + message[3:4] + struct.pack(">I", len(payload)) + message[8:24] + length
    head += message[32:44]
    return head + struct.pack(">I", crc32c(head + payload)) + payload


def _conversations() -> Iterator[Callable[[], Pair]]:
    """Pairs at the beginning of something, each made when it is asked for."""

    def connected(make: Callable[[], Pair]) -> Callable[[], Pair]:
        def begin() -> Pair:
            pair = make()
            pair.connect()
            return pair

        return begin

    yield from (connected(Pair), connected(behind_pair), connected(split_pair))
    yield _writing
    yield _leaving
    yield _switching
    yield _resolving
    yield _settling


def _writing() -> Pair:
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.alpha.write(8192, 4096)
    pair.alpha.flush()
    return pair


def _leaving() -> Pair:
    pair = established_pair()
    pair.beta.leave()
    return pair


def _switching() -> Pair:
    pair = established_pair(primary=False)
    pair.beta.promote()
    return pair


def _resolving() -> Pair:
    pair = split_pair()
    pair.connect()
    pair.run()
    pair.alpha.ask(lambda number: pair.alpha.volume.resolve(number, "alpha"))
    return pair


def _settling() -> Pair:
    pair = established_pair()
    pair.alpha.write(0, data(3))
    pair.run()
    pair.restart(pair.beta)
    pair.run()
    pair.connect()
    pair.beta.promote(PromoteRequest())
    return pair


def recorded() -> list[bytes]:
    """Frames of every type that two honest nodes send each other."""
    seen: dict[bytes, None] = {}
    for begin in _conversations():
        pair = begin()
        for _ in range(200):
            for node in pair.nodes:
                seen.update((frame, None) for frame in node.incoming if frame is not None)
            moved = [node.step() for node in pair.nodes]
            if not any(moved):
                break
    return list(seen)[:_FRAMES_MAX]


#: Type, lengths, seq, offset, length, generation, flags, checksum.
FIELDS: Final = ((3, 1), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4))


def grammar() -> Grammar:
    """Mutates what honest nodes said, one frame of each type more, and bytes inside bodies."""
    bare = [repair(b"RF\1" + bytes([kind]) + bytes(44)) for kind in TYPES]
    return Grammar(split, [*recorded(), *bare], FIELDS, repair)

"""What a fuzz input is: eight bytes of choices, then the bytes that come from the other side.

The choices decide what the fuzzer may vary beside the stream: settings of the side under test, how
the stream is cut into pieces, in which order things happen. Everything follows from the input, so
that a file is a complete description of a run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

CHOICE_BYTES: Final = 8
#: Characters of a failed claim, which may hold a whole payload.
SHOWN_MAX: Final = 600


class Choices:
    """The first bytes of an input: six of settings, two that seed everything random."""

    def __init__(self, head: bytes) -> None:
        self._head = head.ljust(CHOICE_BYTES, b"\0")

    def number(self, place: int, below: int) -> int:
        """The setting at this place, from 0 to `below` - 1."""
        return self._head[place] % below

    def flag(self, place: int, bit: int) -> bool:
        """One bit of the setting at this place."""
        return bool(self._head[place] >> bit & 1)

    def random(self) -> random.Random:
        """A new generator that every run of this input begins with."""
        return random.Random(self._head[6:CHOICE_BYTES])


def parted(data: bytes) -> tuple[Choices, bytes]:
    """An input as its choices and its stream."""
    return Choices(data[:CHOICE_BYTES]), data[CHOICE_BYTES:]


def pieces(stream: bytes, chance: random.Random) -> list[bytes]:
    """The stream cut at random: single bytes, small pieces, large ones, or all three in turn."""
    found = []
    position = 0
    largest = chance.choice((1, 7, 64, 4096))
    while position < len(stream):
        if chance.random() < 0.1:
            largest = chance.choice((1, 7, 64, 4096))
        size = chance.randint(1, largest)
        found.append(stream[position : position + size])
        position += size
    return found


def whole(stream: bytes) -> Sequence[bytes]:
    """The stream in one piece, or none if there is nothing."""
    return [stream] if stream else []


class Unlike(AssertionError):
    """What the side under test did is not what the model of the protocol says."""


def claim(holds: object, what: str) -> None:
    """Raise `Unlike` with `what` unless it holds. Unlike `assert` it stays under -O."""
    if not holds:
        raise Unlike(what if len(what) <= SHOWN_MAX else f"{what[:SHOWN_MAX]}…")


def sentence(text: str) -> None:
    """Claim that a reason can be put into one line of a log."""
    claim(text and text.isprintable() and len(text) < 1000, f"no line for a log: {text!r:.200}")

"""What a mutator must know of a target's stream, and the structured mutations themselves.

A mutation that keeps framing and checksums right reaches code that random bytes never do; one that
breaks them is tried as well. Everything is decided by the generator that is given, so that the
coverage-guided fuzzer and Hypothesis use the same operations.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tests.fuzz.inputs import CHOICE_BYTES

#: What is at the edge of something, for fields of every width.
EDGES: Final = (
    *(0, 1, 2, 3, 5, 16, 27, 28, 31, 32, 48, 255, 256, 511, 512, 513, 4095, 4096, 4097),
    *(1 << 15, (1 << 16) - 1, 1 << 16, 1 << 18, (1 << 18) + 1, 1 << 25, (1 << 25) + 1),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
#: A stream does not grow beyond this many messages by mutation.
MESSAGES_MAX: Final = 40


@dataclass(frozen=True)
class Grammar:
    """One target's messages.

    `split` cuts a stream into messages and leaves what it cannot follow as the last one. `samples`
    are well-formed messages, `fields` the (offset, width) of numbers in a message's header.
    `repair` makes a message's lengths and checksums fit what it holds.
    """

    split: Callable[[bytes], list[bytes]]
    samples: Sequence[bytes]
    fields: Sequence[tuple[int, int]] = ()
    repair: Callable[[bytes], bytes] = bytes


def with_number(message: bytes, offset: int, width: int, value: int) -> bytes:
    """The message with one big-endian number replaced; unchanged if it does not reach so far."""
    if len(message) < offset + width:
        return message
    number = (value % (1 << 8 * width)).to_bytes(width, "big")
    return message[:offset] + number + message[offset + width :]


def mutated(data: bytes, grammar: Grammar, chance: random.Random) -> bytes:
    """An input like `data`: some of its messages, its choices or its end are another way."""
    head = bytearray(data[:CHOICE_BYTES].ljust(CHOICE_BYTES, b"\0"))
    messages = grammar.split(data[CHOICE_BYTES:])
    if chance.random() < 0.3:
        head[chance.randrange(CHOICE_BYTES)] = chance.randrange(256)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 5))):
        _change_order(messages, grammar, chance)
        if messages and chance.random() < 0.7:
            place = chance.randrange(len(messages))
            messages[place] = _changed(messages[place], grammar, chance)
    stream = b"".join(messages[:MESSAGES_MAX])
    if chance.random() < 0.05:
        stream = stream[: chance.randrange(len(stream) + 1)]
    return bytes(head) + stream


def _change_order(messages: list[bytes], grammar: Grammar, chance: random.Random) -> None:
    """Add, remove, repeat or move one message, or leave them as they are."""
    step = chance.randrange(6)
    place = chance.randrange(len(messages) + 1)
    if step == 0 or not messages:
        messages.insert(place, chance.choice(grammar.samples))
    elif step == 1:
        messages.insert(place, chance.choice(messages))
    elif step == 2:
        del messages[min(place, len(messages) - 1)]
    elif step == 3:
        first, second = chance.randrange(len(messages)), chance.randrange(len(messages))
        messages[first], messages[second] = messages[second], messages[first]


def _changed(message: bytes, grammar: Grammar, chance: random.Random) -> bytes:
    """The message with a field, a byte, a piece or its length another way."""
    step = chance.randrange(5)
    if step <= 1 and grammar.fields:
        offset, width = chance.choice(grammar.fields)
        near = int.from_bytes(message[offset : offset + width], "big") + chance.choice((-1, 1))
        value = chance.choice((chance.choice(EDGES), near, chance.getrandbits(8 * width)))
        message = with_number(message, offset, width, value)
    elif step == 2 and message:
        place = chance.randrange(len(message))
        value = message[place] ^ (1 << chance.randrange(8))
        message = message[:place] + bytes([value]) + message[place + 1 :]
    elif step == 3:
        place = chance.randrange(len(message) + 1)
        message = message[:place] + chance.randbytes(chance.choice((1, 4, 40))) + message[place:]
    elif message:
        place = chance.randrange(len(message))
        message = message[:place] + message[place + chance.choice((1, 2, 4, 16)) :]
    return grammar.repair(message) if chance.random() < 0.8 else message

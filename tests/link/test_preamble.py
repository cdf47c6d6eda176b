"""The clear preamble: fixed size, exact, and every changed bit noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.core import wire
from repl.core.wire import HEADER_BYTES, Type
from repl.link.preamble import (
    NAME_BYTES,
    PREAMBLE_BYTES,
    Preamble,
    PreambleError,
    decode,
    encode,
    encode_refusal,
)

NAMES = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=63)
GOOD = Preamble("r0", "alpha", "beta")


@given(NAMES, NAMES, NAMES)
def test_a_preamble_reads_back_as_it_was_written(volume: str, sender: str, expected: str) -> None:
    preamble = Preamble(volume, sender, expected)
    data = encode(preamble)
    assert len(data) == PREAMBLE_BYTES
    assert decode(data) == preamble


def test_every_changed_byte_is_noticed() -> None:
    for place in range(PREAMBLE_BYTES):
        for flip in (0x01, 0x80):
            data = bytearray(encode(GOOD))
            data[place] ^= flip
            with pytest.raises(PreambleError):
                decode(bytes(data))


@given(st.binary(max_size=PREAMBLE_BYTES + 8))
def test_any_other_bytes_are_refused_and_raise_nothing_else(data: bytes) -> None:
    with pytest.raises(PreambleError):
        decode(data)


@pytest.mark.parametrize(
    ("place", "value", "sentence"),
    [(0, 0x41, "does not begin with"), (9, 7, "version 7"), (30, 1, "checksum")],
)
def test_a_refusal_says_what_is_wrong(place: int, value: int, sentence: str) -> None:
    data = bytearray(encode(GOOD))
    data[place] = value
    with pytest.raises(PreambleError, match=sentence):
        decode(bytes(data))


@pytest.mark.parametrize("size", [0, 1, PREAMBLE_BYTES - 1, PREAMBLE_BYTES + 1])
def test_another_length_is_refused_in_words(size: int) -> None:
    with pytest.raises(PreambleError, match=f"not {size}"):
        decode(bytes(size))


@pytest.mark.parametrize("name", ["", "x" * NAME_BYTES])
def test_a_name_that_does_not_fit_is_our_bug(name: str) -> None:
    with pytest.raises(AssertionError):
        encode(Preamble(name, "alpha", "beta"))


def test_a_refusal_is_one_goodbye_frame_with_code_and_sentence() -> None:
    frame = encode_refusal("NO_SUCH_VOLUME", "This node has no volume r9.")
    header = wire.decode_header(frame)
    payload = frame[HEADER_BYTES:]
    wire.verify(header, frame, payload)
    assert header.type is Type.GOODBYE
    assert wire.decode_body(Type.GOODBYE, payload) == {
        "code": "NO_SUCH_VOLUME",
        "sentence": "This node has no volume r9.",
    }

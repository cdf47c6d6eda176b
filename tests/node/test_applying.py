"""Digests are what the protocol says, whatever shortcut makes them."""

from __future__ import annotations

from hashlib import blake2b

from hypothesis import given
from hypothesis import strategies as st

from repl.core.wire import DIGEST_BYTES
from repl.node.applying import digests_of

BLOCK = 512


@given(
    st.lists(st.sampled_from([bytes(BLOCK), b"x" * BLOCK, bytes(BLOCK - 1) + b"y"]), max_size=6),
    st.binary(max_size=BLOCK - 1),
)
def test_every_block_has_its_own_blake2b_digest(blocks: list[bytes], tail: bytes) -> None:
    pieces = [*blocks, *([tail] if tail else [])]
    expected = b"".join(blake2b(piece, digest_size=DIGEST_BYTES).digest() for piece in pieces)
    assert digests_of(bytearray(b"".join(pieces)), BLOCK) == expected

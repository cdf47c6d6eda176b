"""Little room is said early, and never of a backing that needs none."""

from __future__ import annotations

from pathlib import Path

import pytest

from repl.store.backing import Backing
from repl.store.space import Space, space_of

SIZE = 1 << 20


@pytest.mark.parametrize(
    ("free", "needed", "low"),
    [(0, SIZE, True), (SIZE // 20, SIZE, True), (SIZE // 5, SIZE, False), (0, 0, False)],
)
def test_space_is_low_only_if_more_may_be_needed(free: int, needed: int, low: bool) -> None:
    assert Space(free, needed, SIZE).low is low


def test_reserved_backing_needs_nothing_and_keeps_it(tmp_path: Path) -> None:
    backing = Backing.create(str(tmp_path / "r0.img"), "r0")
    try:
        backing.set_size(SIZE)
        before = space_of(backing)
        assert before is not None and before.needed_bytes == SIZE and before.free_bytes > 0
        assert backing.reserve(0, SIZE)
        backing.keeps_space = True
        backing.pwritev([b"x" * 4096], 0)
        backing.punch(0, SIZE)
        after = space_of(backing)
        assert after is not None and after.needed_bytes == 0
        buffer = bytearray(4096)
        backing.preadv([buffer], 0)
        assert buffer == bytes(4096)
    finally:
        backing.close()

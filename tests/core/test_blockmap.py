"""BlockMap against a plain set of numbers, with every operation in any order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from repl.core.blockmap import BlockMap

#: Small pages, so that a few blocks make several of them.
PAGE_BYTES = 2
PAGE_BITS = PAGE_BYTES * 8
MAX_BYTES = 100 * 8

OFFSETS = st.integers(0, MAX_BYTES)
LENGTHS = st.one_of(st.integers(0, 40), st.integers(0, MAX_BYTES))


def blocks_of(bitmap: BlockMap) -> set[int]:
    return {block for first, last in bitmap.runs() for block in range(first, last)}


class BlockMapMachine(RuleBasedStateMachine):
    """The model is the set of blocks, and the set of pages touched since they were taken."""

    @initialize(size_bytes=st.integers(1, MAX_BYTES), shift=st.integers(0, 4))
    def make(self, size_bytes: int, shift: int) -> None:
        self.size_bytes, self.shift = size_bytes, shift
        self.map = BlockMap(size_bytes, shift, PAGE_BYTES)
        self.model: set[int] = set()
        self.changed: set[int] = set()

    def bits(self) -> int:
        return -(-self.size_bytes // (1 << self.shift))

    def become(self, blocks: set[int]) -> None:
        self.changed |= {block // PAGE_BITS for block in self.model ^ blocks}
        self.model = blocks

    def inside(self, offset: int, length: int) -> tuple[int, int]:
        offset = min(offset, self.size_bytes)
        return offset, min(length, self.size_bytes - offset)

    def touched(self, offset: int, length: int) -> set[int]:
        return {byte >> self.shift for byte in range(offset, offset + length)}

    @rule(offset=OFFSETS, length=LENGTHS)
    def mark(self, offset: int, length: int) -> None:
        offset, length = self.inside(offset, length)
        grown = self.model | self.touched(offset, length)
        assert self.map.mark(offset, length) == len(grown) - len(self.model)
        self.become(grown)

    @rule(offset=OFFSETS, length=LENGTHS)
    def clear(self, offset: int, length: int) -> None:
        offset, length = self.inside(offset, length)
        whole = {
            block
            for block in self.model
            if offset <= block << self.shift
            and min((block + 1) << self.shift, self.size_bytes) <= offset + length
        }
        assert self.map.clear(offset, length) == len(whole)
        self.become(self.model - whole)

    @rule()
    def mark_all(self) -> None:
        self.map.mark_all()
        self.become(set(range(self.bits())))

    @rule()
    def clear_all(self) -> None:
        self.map.clear_all()
        self.become(set())

    @rule(page=st.integers(0, 1000), bits=st.binary(min_size=PAGE_BYTES, max_size=PAGE_BYTES))
    def load_page(self, page: int, bits: bytes) -> None:
        page %= self.map.page_count
        number = int.from_bytes(bits, "little")
        loaded = {page * PAGE_BITS + bit for bit in range(PAGE_BITS) if number >> bit & 1}
        self.map.load_page(page, bits)
        self.become(self.model | {block for block in loaded if block < self.bits()})

    @rule(shift=st.integers(0, 4), ranges=st.lists(st.tuples(OFFSETS, LENGTHS), max_size=3))
    def merge(self, shift: int, ranges: list[tuple[int, int]]) -> None:
        other = BlockMap(self.size_bytes, shift, 3)
        for offset, length in ranges:
            other.mark(*self.inside(offset, length))
        grown = set(self.model)
        for block in blocks_of(other):
            start = block << shift
            grown |= self.touched(start, min(1 << shift, self.size_bytes - start))
        assert self.map.merge(other) == len(grown) - len(self.model)
        self.become(grown)

    @rule()
    def take_changed(self) -> None:
        taken = self.map.take_changed()
        assert taken == sorted(taken)
        # A page that was changed and changed back may be told; one that differs must be.
        assert self.changed <= set(taken)
        assert not self.map.has_changes
        self.changed = set()

    @rule()
    def go_on_with_a_copy(self) -> None:
        original, self.map = self.map, self.map.copy()
        original.mark_all()
        original.clear_all()
        assert not self.map.has_changes
        self.changed = set()

    @rule(start=st.integers(0, MAX_BYTES), longest=st.integers(1, 40))
    def next_run(self, start: int, longest: int) -> None:
        found = self.map.next_run(start, longest)
        ahead = sorted(block for block in self.model if block >= start)
        if not ahead:
            assert found is None
            return
        first = last = ahead[0]
        while (
            last in self.model
            and last - first < longest
            and last // PAGE_BITS == (first // PAGE_BITS)
        ):
            last += 1
        assert found == (first, last)

    @rule(offset=OFFSETS, length=LENGTHS)
    def any_in(self, offset: int, length: int) -> None:
        offset, length = self.inside(offset, length)
        assert self.map.any_in(offset, length) == bool(self.model & self.touched(offset, length))

    @rule(offset=OFFSETS, length=LENGTHS)
    def extents(self, offset: int, length: int) -> None:
        offset, length = self.inside(offset, length)
        if not length:
            return
        found = list(self.map.extents(offset, length))
        expected = [byte >> self.shift in self.model for byte in range(offset, offset + length)]
        assert [is_set for count, is_set in found for _ in range(count)] == expected
        assert all(one[1] != other[1] for one, other in itertools.pairwise(found))

    @invariant()
    def the_bits_are_the_models(self) -> None:
        if not hasattr(self, "map"):
            return
        assert blocks_of(self.map) == self.model
        assert self.map.count == len(self.model)
        assert self.map.bits == self.bits()
        assert all(self.map.is_set(block) == (block in self.model) for block in range(self.bits()))
        assert self.map.set_bytes == sum(
            min(1 << self.shift, self.size_bytes - (block << self.shift)) for block in self.model
        )
        assert self.map.set_pages() == sorted({block // PAGE_BITS for block in self.model})
        assert not self.changed or self.map.has_changes


BlockMapMachine.TestCase.settings = settings(max_examples=150, deadline=None)
TestBlockMapAgainstASet = BlockMapMachine.TestCase


@given(ranges=st.lists(st.tuples(OFFSETS, LENGTHS), max_size=6), shift=st.integers(0, 4))
def test_pages_carried_over_one_by_one_make_the_same_map(
    ranges: list[tuple[int, int]], shift: int
) -> None:
    source = BlockMap(MAX_BYTES, shift, PAGE_BYTES)
    for offset, length in ranges:
        source.mark(offset, min(length, MAX_BYTES - offset))
    target = BlockMap(MAX_BYTES, shift, PAGE_BYTES)
    for page_no in range(source.page_count):
        target.load_page(page_no, source.page(page_no))
    assert blocks_of(target) == blocks_of(source)
    assert target.count == source.count


def test_bits_beyond_the_volumes_end_are_ignored() -> None:
    bitmap = BlockMap(10, 0, 4)
    bitmap.load_page(0, b"\xff" * 4)
    assert blocks_of(bitmap) == set(range(10))
    assert bitmap.count == 10


def test_a_huge_clean_map_has_no_pages() -> None:
    bitmap = BlockMap(1 << 60, 32, 4032)
    assert bitmap.set_pages() == []
    bitmap.mark((1 << 60) - 1, 1)
    assert bitmap.set_pages() == [bitmap.page_count - 1]


def test_a_cut_short_last_block_counts_for_what_it_has() -> None:
    bitmap = BlockMap(4096 + 512, 12, 4032)
    bitmap.mark_all()
    assert bitmap.set_bytes == 4096 + 512
    bitmap.clear(0, 4096)
    assert bitmap.set_bytes == 512
    bitmap.clear(4096, 512)
    assert bitmap.count == 0


def test_marking_beyond_the_end_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        BlockMap(4096, 12, 4032).mark(4096, 1)


def test_extents_of_a_range_look_at_no_page_behind_it() -> None:
    bitmap = BlockMap(MAX_BYTES, 0, PAGE_BYTES)
    bitmap.mark_all()
    del bitmap._in_page[2]
    assert list(bitmap.extents(3, 2 * PAGE_BITS - 3)) == [(2 * PAGE_BITS - 3, True)]
    with pytest.raises(KeyError):
        list(bitmap.extents(3, 2 * PAGE_BITS - 2))

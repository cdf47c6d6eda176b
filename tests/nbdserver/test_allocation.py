"""Holes of real files, in whole blocks, and what is said where they cannot be told."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdserver import allocation
from nbdserver.allocation import HOLE, Allocation, cut, next_data_of
from nbdserver.protocol import NBD_STATE_ZERO

KIB = 1 << 10
SIZE = 4096 * KIB
DATA = ((64 * KIB, 64 * KIB), (1024 * KIB, 8 * KIB))


@pytest.fixture
def sparse(tmp_path: Path) -> Iterator[int]:
    """A file of 4 MiB with data at 64…128 KiB and at 1024…1032 KiB."""
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, SIZE)
    descriptor = os.open(path, os.O_RDWR)
    for offset, length in DATA:
        os.pwrite(descriptor, b"d" * length, offset)
    # Some file systems tell delayed allocation as data only after it is decided.
    os.fsync(descriptor)
    yield descriptor
    os.close(descriptor)


def of(descriptor: int, block_bytes: int = 1) -> Allocation:
    return Allocation(next_data_of(descriptor, SIZE), block_bytes)


def test_extents_cover_the_range_with_holes_and_data(sparse: int) -> None:
    assert of(sparse).extents(0, SIZE, 100) == [
        (64 * KIB, HOLE),
        (64 * KIB, 0),
        (896 * KIB, HOLE),
        (8 * KIB, 0),
        (SIZE - 1032 * KIB, HOLE),
    ]


def test_extents_begin_and_end_where_they_are_asked_to(sparse: int) -> None:
    holes = of(sparse)
    assert holes.extents(100 * KIB, 100 * KIB, 100) == [(28 * KIB, 0), (72 * KIB, HOLE)]
    assert holes.extents(70 * KIB + 1, 5, 100) == [(5, 0)]
    assert holes.extents(SIZE - 1, 1, 100) == [(1, HOLE)]


def test_extents_stop_at_the_count_that_is_allowed(sparse: int) -> None:
    assert of(sparse).extents(0, SIZE, 1) == [(64 * KIB, HOLE)]
    assert len(of(sparse).extents(0, SIZE, 4)) == 4


def test_block_with_any_data_is_data(sparse: int) -> None:
    found = of(sparse, 64 * KIB).extents(0, SIZE, 100)
    assert found == [
        (64 * KIB, HOLE),
        (64 * KIB, 0),
        (896 * KIB, HOLE),
        (64 * KIB, 0),
        (SIZE - 1088 * KIB, HOLE),
    ]


def test_neighbours_are_never_alike_however_blocks_round() -> None:
    data = [(0, 1), (5, 6), (16, 17)]

    def next_data(offset: int) -> tuple[int, int] | None:
        for start, end in data:
            if end > offset:
                return max(start, offset), end
        return None

    assert Allocation(next_data, 4).extents(0, 32, 100) == [
        (8, 0),
        (8, HOLE),
        (4, 0),
        (12, HOLE),
    ]


def test_space_that_is_kept_is_zero_without_being_a_hole() -> None:
    kept = Allocation(lambda _: None, hole_status=NBD_STATE_ZERO)
    assert kept.extents(0, 100, 9) == [(100, 2)]
    assert kept.holes_now(0, 100) == [(100, 2)]


def test_read_is_told_of_holes_only_where_there_are_some(sparse: int) -> None:
    holes = of(sparse)
    assert holes.holes_now(0, 4096) == [(4096, HOLE)]
    assert holes.holes_now(64 * KIB, 64 * KIB) is None
    assert holes.is_known_data(64 * KIB, 64 * KIB)
    assert holes.holes_now(120 * KIB, 16 * KIB) == [(8 * KIB, 0), (8 * KIB, HOLE)]


def test_known_data_is_not_looked_for_again_until_forgotten(
    sparse: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def counted(offset: int) -> tuple[int, int] | None:
        looks.append(offset)
        return next_data_of(sparse, SIZE)(offset)

    holes = Allocation(counted)
    for _ in range(5):
        assert holes.holes_now(80 * KIB, 4096) is None
    assert len(looks) == 1
    holes.forget()
    assert holes.holes_now(80 * KIB, 4096) is None
    assert len(looks) == 2


def test_looking_stops_for_a_while_when_it_costs_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(_: int) -> None:
        clock[0] += 1.0

    holes = Allocation(slow)
    assert holes.holes_now(0, 100) == [(100, HOLE)]
    # One second was spent, a quarter of a second was saved up: three quarters are owed, and pay
    # back at a quarter of the time.
    assert holes.holes_now(0, 100) is None
    clock[0] += 2.9
    assert holes.holes_now(0, 100) is None
    clock[0] += 0.2
    assert holes.holes_now(0, 100) == [(100, HOLE)]


def test_more_parts_than_one_answer_takes_end_with_data() -> None:
    def every_other(offset: int) -> tuple[int, int]:
        start = offset + 1 - offset % 2 if offset % 2 == 0 else offset
        return start, start + 1

    found = Allocation(every_other).holes_now(0, 1000)
    assert found is not None
    assert len(found) == allocation.PARTS_MAX + 1
    assert found[-1] == (1000 - allocation.PARTS_MAX, 0)


def test_cut_file_is_no_hole(sparse: int) -> None:
    os.ftruncate(sparse, 100 * KIB)
    assert of(sparse).extents(2048 * KIB, 4096, 9) == [(4096, 0)]
    assert of(sparse).holes_now(2048 * KIB, 4096) is None


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_where_holes_cannot_be_told_all_is_data(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def unsupported(*_: int) -> int:
        raise OSError(number, "not here")

    monkeypatch.setattr(os, "lseek", unsupported)
    assert Allocation(next_data_of(-1, SIZE)).extents(0, SIZE, 9) == [(SIZE, 0)]


def test_error_of_the_medium_is_not_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: int) -> int:
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(os, "lseek", failing)
    broken = Allocation(next_data_of(-1, SIZE))
    with pytest.raises(OSError, match="the disk"):
        broken.extents(0, SIZE, 9)
    assert broken.holes_now(0, SIZE) is None


def test_data_is_cut_into_parts_with_lengths_for_holes() -> None:
    data = memoryview(b"aabbbcc")
    assert cut(data, [(2, 0), (3, HOLE), (2, 0)]) == [b"aa", 3, b"cc"]

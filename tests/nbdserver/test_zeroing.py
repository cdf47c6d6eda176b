"""The whole range reads as zeroes and not a byte beside it, whichever way is taken."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdserver import zeroing
from nbdserver.zeroing import Aim, Zeroing

SIZE = 5 << 20
RANGES = [
    (0, SIZE),
    (1, 1),
    (4095, 2),
    (4096, 4096),
    (1, 4095),
    (5000, 3 << 20),
    (SIZE - 1, 1),
    ((1 << 20) - 1, (1 << 20) + 2),
]


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "full"
    path.write_bytes(b"\xaa" * SIZE)
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


def zero(
    descriptor: int,
    offset: int,
    length: int,
    aim: Aim = Aim.ZEROES,
    *,
    may_punch: bool = True,
    device: bool = False,
) -> int:
    """Zero the range; how many steps that took."""
    zeroing = Zeroing(descriptor, offset, length, aim, may_punch=may_punch, device=device)
    steps = 1
    while not zeroing.step():
        steps += 1
    return steps


def expected(offset: int, length: int) -> bytes:
    return b"\xaa" * offset + bytes(length) + b"\xaa" * (SIZE - offset - length)


@pytest.mark.parametrize(("offset", "length"), RANGES)
@pytest.mark.parametrize("may_punch", [True, False])
@pytest.mark.parametrize("device", [True, False])
def test_range_is_zero_and_its_edges_are_exact(
    descriptor: int, offset: int, length: int, may_punch: bool, device: bool
) -> None:
    zero(descriptor, offset, length, may_punch=may_punch, device=device)
    assert os.pread(descriptor, SIZE + 1, 0) == expected(offset, length)


@pytest.fixture
def modes_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every mode that fallocate was asked for, where it is possible in none."""
    modes: list[int] = []

    def unsupported(_: int, mode: int, start: int, count: int) -> None:
        modes.append(mode)
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(zeroing, "fallocate", unsupported)
    return modes


@pytest.mark.parametrize(("offset", "length"), RANGES)
@pytest.mark.parametrize("device", [True, False])
def test_writing_takes_over_where_fallocate_is_not_possible(
    modes_asked: list[int], descriptor: int, offset: int, length: int, device: bool
) -> None:
    zero(descriptor, offset, length, device=device)
    assert os.pread(descriptor, SIZE + 1, 0) == expected(offset, length)
    assert modes_asked in ([], [0x03, 0x11])


def test_device_is_asked_for_whole_units_only(
    monkeypatch: pytest.MonkeyPatch, descriptor: int
) -> None:
    asked = []
    monkeypatch.setattr(
        zeroing, "fallocate", lambda _, mode, start, count: asked.append((start, count))
    )
    zero(descriptor, 1000, 10_000, device=True)
    assert asked == [(4096, 4096)]


def test_long_work_goes_step_by_step_in_either_way(
    monkeypatch: pytest.MonkeyPatch, modes_asked: list[int], descriptor: int
) -> None:
    monkeypatch.setattr(zeroing, "WRITE_STEP_BYTES", 1 << 20)
    zeroing_ = Zeroing(descriptor, 5, SIZE - 5, Aim.ZEROES, may_punch=True, device=False)
    positions = []
    while not zeroing_.step():
        positions.append(zeroing_.position)
        done = zeroing_.position
        assert os.pread(descriptor, done, 0) == b"\xaa" * 5 + bytes(done - 5)
        assert os.pread(descriptor, 1, done) == b"\xaa"
    assert positions == [5 + (i << 20) for i in range(1, 5)]
    monkeypatch.undo()
    monkeypatch.setattr(zeroing, "FALLOCATE_STEP_BYTES", 1 << 20)
    assert zero(descriptor, 0, SIZE) == 5


def test_punching_frees_space_and_zeroing_without_it_keeps_space(descriptor: int) -> None:
    full = os.fstat(descriptor).st_blocks
    zero(descriptor, 0, 1 << 20, may_punch=False)
    kept = os.fstat(descriptor).st_blocks
    zero(descriptor, 0, 1 << 20, may_punch=True)
    assert kept >= full
    assert os.fstat(descriptor).st_blocks <= full - (1 << 20) // 512


def test_trim_that_is_not_possible_changes_nothing(modes_asked: list[int], descriptor: int) -> None:
    assert zero(descriptor, 0, SIZE, Aim.TRIM) == 1
    assert os.pread(descriptor, SIZE, 0) == b"\xaa" * SIZE
    assert modes_asked == [0x03]


def test_trim_of_a_device_leaves_the_edges_alone(descriptor: int) -> None:
    zero(descriptor, 1000, 10_000, Aim.TRIM, device=True)
    assert os.pread(descriptor, SIZE, 0) == expected(4096, 4096)


@pytest.mark.parametrize(
    ("may_punch", "device", "modes"),
    [
        (True, False, [0x03, 0x11]),
        (False, False, [0x11]),
        (True, True, [0x03]),
        (False, True, []),
    ],
)
def test_fast_zeroing_that_is_not_possible_says_so_and_changes_nothing(
    modes_asked: list[int], descriptor: int, may_punch: bool, device: bool, modes: list[int]
) -> None:
    with pytest.raises(OSError, match="fast") as raised:
        zero(descriptor, 100, SIZE - 200, Aim.FAST_ZEROES, may_punch=may_punch, device=device)
    assert raised.value.errno == errno.ENOTSUP
    assert os.pread(descriptor, SIZE, 0) == b"\xaa" * SIZE
    assert modes_asked == modes


def test_fast_zeroing_of_less_than_a_unit_of_a_device_is_not_possible(descriptor: int) -> None:
    with pytest.raises(OSError, match="faster"):
        zero(descriptor, 100, 4000, Aim.FAST_ZEROES, device=True)
    assert os.pread(descriptor, SIZE, 0) == b"\xaa" * SIZE


@pytest.mark.parametrize("device", [True, False])
def test_fast_zeroing_is_exact_where_it_is_possible(descriptor: int, device: bool) -> None:
    zero(descriptor, 1000, 3 << 20, Aim.FAST_ZEROES, device=device)
    assert os.pread(descriptor, SIZE, 0) == expected(1000, 3 << 20)


def test_fast_zeroing_that_began_is_finished_by_writing(
    monkeypatch: pytest.MonkeyPatch, descriptor: int
) -> None:
    real = zeroing.fallocate
    calls = []

    def only_once(fd: int, mode: int, start: int, count: int) -> None:
        calls.append(start)
        if len(calls) > 1:
            raise OSError(errno.EOPNOTSUPP, "not here")
        real(fd, mode, start, count)

    monkeypatch.setattr(zeroing, "fallocate", only_once)
    monkeypatch.setattr(zeroing, "FALLOCATE_STEP_BYTES", 1 << 20)
    zero(descriptor, 100, SIZE - 200, Aim.FAST_ZEROES)
    assert os.pread(descriptor, SIZE, 0) == expected(100, SIZE - 200)


def test_error_of_the_medium_is_not_hidden_by_the_fallback(
    monkeypatch: pytest.MonkeyPatch, descriptor: int
) -> None:
    def failing(*_: int) -> None:
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(zeroing, "fallocate", failing)
    with pytest.raises(OSError, match="the disk"):
        zero(descriptor, 0, 4096)


def test_fallocate_reports_the_kernel_error() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        zeroing.fallocate(-1, 0, 0, 1)

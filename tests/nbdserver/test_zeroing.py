"""The whole range reads as zeroes and not a byte beside it, whichever way is taken."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdserver import zeroing

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


def expected(offset: int, length: int) -> bytes:
    return b"\xaa" * offset + bytes(length) + b"\xaa" * (SIZE - offset - length)


@pytest.mark.parametrize(("offset", "length"), RANGES)
@pytest.mark.parametrize("may_punch", [True, False])
@pytest.mark.parametrize("granularity_bytes", [1, 4096])
def test_range_is_zero_and_its_edges_are_exact(
    descriptor: int, offset: int, length: int, may_punch: bool, granularity_bytes: int
) -> None:
    zeroing.zero_range(
        descriptor, offset, length, may_punch=may_punch, granularity_bytes=granularity_bytes
    )
    assert os.pread(descriptor, SIZE + 1, 0) == expected(offset, length)


@pytest.mark.parametrize(("offset", "length"), RANGES)
@pytest.mark.parametrize("granularity_bytes", [1, 4096])
def test_writing_takes_over_where_fallocate_is_not_possible(
    monkeypatch: pytest.MonkeyPatch,
    descriptor: int,
    offset: int,
    length: int,
    granularity_bytes: int,
) -> None:
    modes = []

    def unsupported(_: int, mode: int, start: int, count: int) -> None:
        assert start % granularity_bytes == count % granularity_bytes == 0
        modes.append(mode)
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(zeroing, "fallocate", unsupported)
    zeroing.zero_range(
        descriptor, offset, length, may_punch=True, granularity_bytes=granularity_bytes
    )
    assert os.pread(descriptor, SIZE + 1, 0) == expected(offset, length)
    assert modes in ([], [0x03, 0x11])


def test_punching_frees_space_and_zeroing_without_it_keeps_space(descriptor: int) -> None:
    full = os.fstat(descriptor).st_blocks
    zeroing.zero_range(descriptor, 0, 1 << 20, may_punch=False)
    kept = os.fstat(descriptor).st_blocks
    zeroing.zero_range(descriptor, 0, 1 << 20, may_punch=True)
    assert kept >= full
    assert os.fstat(descriptor).st_blocks <= full - (1 << 20) // 512


def test_error_of_the_medium_is_not_hidden_by_the_fallback(
    monkeypatch: pytest.MonkeyPatch, descriptor: int
) -> None:
    def failing(*_: int) -> None:
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(zeroing, "fallocate", failing)
    with pytest.raises(OSError, match="the disk"):
        zeroing.zero_range(descriptor, 0, 4096, may_punch=True)


def test_fallocate_reports_the_kernel_error() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        zeroing.fallocate(-1, 0, 0, 1)

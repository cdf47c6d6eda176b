"""A device is blank only if every byte of it is zero, wherever the others are."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from repl.attach import blankness
from repl.attach.blankness import PIECE_BYTES, first_data

MIB = 1 << 20
SIZE_BYTES = 3 * PIECE_BYTES + MIB


def everything(size_bytes: int) -> Generator[tuple[int, int], None, None]:
    yield 0, size_bytes


def device(folder: Path, *places: int) -> str:
    path = folder / "device"
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
        for place in places:
            file.seek(place)
            file.write(b"x")
    return str(path)


def unheard(looked_bytes: int, size_bytes: int) -> None:
    raise AssertionError("it took no time")


@pytest.mark.parametrize(
    "place", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 4711, SIZE_BYTES - 1]
)
def test_one_byte_anywhere_is_found(tmp_path: Path, place: int) -> None:
    path = device(tmp_path, place, SIZE_BYTES - 1)
    assert first_data(path, everything, unheard) == place


def test_zeroes_are_nothing(tmp_path: Path) -> None:
    assert first_data(device(tmp_path), everything, unheard) is None


def test_only_what_may_hold_data_is_read_and_the_map_is_closed(tmp_path: Path) -> None:
    closed = []

    def extents(size_bytes: int) -> Generator[tuple[int, int], None, None]:
        assert size_bytes == SIZE_BYTES
        try:
            yield MIB, 10
            yield 2 * PIECE_BYTES, MIB
        finally:
            closed.append(True)

    path = device(tmp_path, 0, 2 * PIECE_BYTES + 5, SIZE_BYTES - 1)
    assert first_data(path, extents, unheard) == 2 * PIECE_BYTES + 5
    assert closed == [True]


def test_long_looking_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blankness, "FIRST_WORD_S", -1.0)
    told: list[tuple[int, int]] = []
    first_data(device(tmp_path), everything, lambda *progress: told.append(progress))
    assert told == [(0, SIZE_BYTES)]


def test_device_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    def longer(size_bytes: int) -> Generator[tuple[int, int], None, None]:
        yield 0, size_bytes + 1

    with pytest.raises(OSError, match=f"ends at byte {SIZE_BYTES}"):
        first_data(device(tmp_path), longer, unheard)

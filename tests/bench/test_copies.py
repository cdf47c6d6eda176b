"""Comparing two backing files."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.copies import first_difference

MIB = 1 << 20


def sparse(path: Path, size_bytes: int, **pieces: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for offset, data in pieces.values():
            file.seek(offset)
            file.write(data)
    return path


def test_holes_are_equal_to_written_zeroes(tmp_path: Path) -> None:
    one = sparse(tmp_path / "one", 1 << 40, zeroes=(5 * MIB, bytes(MIB)))
    other = sparse(tmp_path / "other", 1 << 40)
    assert first_difference(one, other) is None


@pytest.mark.parametrize("first_has_it", [True, False])
def test_one_byte_is_found_on_either_side(tmp_path: Path, first_has_it: bool) -> None:
    written = sparse(tmp_path / "one", 64 * MIB, byte=(40 * MIB + 7, b"x"))
    empty = sparse(tmp_path / "other", 64 * MIB)
    found = first_difference(*((written, empty) if first_has_it else (empty, written)))
    assert found is not None
    assert found <= 40 * MIB + 7 < found + MIB


def test_files_of_different_size_differ_where_one_ends(tmp_path: Path) -> None:
    one, other = sparse(tmp_path / "one", MIB), sparse(tmp_path / "other", 2 * MIB)
    assert first_difference(one, other) == MIB

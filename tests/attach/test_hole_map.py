"""Where a volume has data: told by our NBD server, and all of it where nothing is told."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from repl.attach import hole_map
from repl.attach.hole_map import data_extents
from tests.attach.fake_nbd import SIZE_BYTES, FakeNbd
from tests.nbdserver.serving import ServerProcess

KIB, MIB, TIB = 1 << 10, 1 << 20, 1 << 40
DATA_BYTES = 64 * KIB


def sparse(folder: Path, size_bytes: int, *places: int) -> Path:
    """Make a sparse file with `DATA_BYTES` of something at each place."""
    path = folder / "disk"
    with path.open("wb") as file:
        file.truncate(size_bytes)
        for place in places:
            file.seek(place)
            file.write(b"x" * DATA_BYTES)
    return path


def test_holes_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = sparse(tmp_path, 8 * MIB, 3 * MIB, 6 * MIB, 8 * MIB - DATA_BYTES)
    expected = [(3 * MIB, DATA_BYTES), (6 * MIB, DATA_BYTES), (8 * MIB - DATA_BYTES, DATA_BYTES)]
    with ServerProcess(file, tmp_path) as server:
        for address in (str(server.socket), f"127.0.0.1:{server.port}"):
            with closing(data_extents(address, "", 8 * MIB)) as found:
                assert list(found) == expected
        monkeypatch.setattr(hole_map, "ASKED_BYTES_MAX", MIB)
        assert list(data_extents(str(server.socket), "", 8 * MIB)) == expected


def test_new_terabyte_takes_a_moment(tmp_path: Path) -> None:
    with ServerProcess(sparse(tmp_path, TIB), tmp_path) as server:
        assert list(data_extents(str(server.socket), "", TIB)) == []


def test_all_is_data_where_nobody_tells(tmp_path: Path) -> None:
    assert list(data_extents(str(tmp_path / "absent"), "r0", MIB)) == [(0, MIB)]


def test_all_is_data_where_the_server_speaks_nonsense(tmp_path: Path) -> None:
    async def told() -> list[tuple[int, int]]:
        server = FakeNbd(tmp_path / "nbd.sock")
        await server.start()
        try:
            found = data_extents(str(server.path), "r0", SIZE_BYTES)
            return await asyncio.to_thread(list, found)
        finally:
            await server.stop()

    assert asyncio.run(told()) == [(0, SIZE_BYTES)]


def test_what_follows_a_lost_connection_is_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hole_map, "ASKED_BYTES_MAX", MIB)
    with ServerProcess(sparse(tmp_path, 8 * MIB, 3 * MIB), tmp_path) as server:
        found = data_extents(str(server.socket), "", 8 * MIB)
        assert next(found) == (3 * MIB, DATA_BYTES)
        server.stop()
        assert list(found) in ([(4 * MIB, 4 * MIB)], [(3 * MIB + DATA_BYTES, 5 * MIB - DATA_BYTES)])

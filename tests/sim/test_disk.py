"""The simulated disks lose what real ones may lose, and nothing else."""

from __future__ import annotations

import random

from tests.sim.disk import BLOCK_BYTES, DataDisk, Loss, SectorDisk


def test_power_loss_takes_only_what_was_not_synced() -> None:
    disk = SectorDisk(4096)
    disk.pwrite(0, b"a" * 512)
    disk.sync()
    disk.pwrite(0, b"b" * 512)
    disk.pwrite(512, b"c" * 512)
    disk.lose_power(Loss.ALL, random.Random(1))
    assert disk.pread(0, 1024) == b"a" * 512 + bytes(512)


def test_sync_covers_what_was_written_before_it_began() -> None:
    disk = SectorDisk(4096)
    disk.pwrite(0, b"a" * 512)
    mark = disk.begin_sync()
    disk.pwrite(0, b"b" * 512)
    disk.end_sync(mark)
    disk.lose_power(Loss.ALL, random.Random(1))
    assert disk.pread(0, 512) == b"a" * 512


def test_power_loss_can_keep_any_subset() -> None:
    kept = set()
    for seed in range(50):
        disk = SectorDisk(1024)
        disk.pwrite(0, b"x" * 1024)
        disk.lose_power(Loss.SOME, random.Random(seed))
        kept.add(bytes(disk.image))
    assert len(kept) == 4


def test_punched_blocks_are_holes_and_edges_are_zeroes() -> None:
    disk = DataDisk(4 * BLOCK_BYTES)
    disk.write(0, b"d" * 4 * BLOCK_BYTES)
    disk.zero(512, 3 * BLOCK_BYTES - 512, punch=True)
    assert disk.hole_end(0) == 0
    assert disk.hole_end(BLOCK_BYTES) == 3 * BLOCK_BYTES
    assert disk.pread(512, BLOCK_BYTES) == bytes(BLOCK_BYTES)

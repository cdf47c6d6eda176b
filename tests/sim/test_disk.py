"""The simulated disks lose what real ones may lose, and nothing else."""

from __future__ import annotations

import random

import pytest

from tests.sim.disk import BLOCK_BYTES, DataDisk, Loss, Operation, SectorDisk


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


def test_a_torn_sector_is_the_beginning_of_one_version_and_the_end_of_another() -> None:
    torn = set()
    for seed in range(50):
        disk = SectorDisk(512)
        disk.pwrite(0, b"x" * 512)
        disk.lose_power(Loss.SOME, random.Random(seed), tear=0.5)
        torn.add(bytes(disk.image).count(b"x"))
    assert {0, 512} < torn and len(torn) > 10


def test_a_failing_operation_fails_until_the_disk_is_mended() -> None:
    disk = DataDisk(BLOCK_BYTES)
    disk.failing.add(Operation.WRITE)
    with pytest.raises(OSError, match="does not write"):
        disk.write(0, b"d" * 512)
    assert disk.pread(0, 512) == bytes(512)
    disk.mend()
    disk.write(0, b"d" * 512)
    assert disk.pread(0, 512) == b"d" * 512


def test_stable_storage_shows_what_was_synced_last() -> None:
    disk = DataDisk(BLOCK_BYTES)
    disk.write(0, b"a" * 1024)
    disk.sync()
    disk.write(512, b"b" * 512)
    assert disk.durable(0, 1024) == b"a" * 1024
    assert disk.durable_sector(512) == b"a" * 512 and disk.pread(512, 512) == b"b" * 512

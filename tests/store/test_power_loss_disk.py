"""The recording disk itself: what it keeps and what it may lose."""

from __future__ import annotations

import random

from tests.store.power_loss_disk import SECTOR_BYTES, PowerLossDisk

A, B = b"a" * SECTOR_BYTES, b"b" * SECTOR_BYTES


def test_a_synced_write_survives_and_an_unsynced_one_may_not() -> None:
    disk = PowerLossDisk(bytes(4 * SECTOR_BYTES))
    disk.pwrite(0, A)
    disk.sync()
    disk.pwrite(0, B + B)
    assert disk.cut_after(3, None).pread(0, 2 * SECTOR_BYTES) == A + bytes(SECTOR_BYTES)
    assert disk.pread(0, 2 * SECTOR_BYTES) == B + B


def test_every_mixture_of_unsynced_sectors_can_come_out() -> None:
    disk = PowerLossDisk(bytes(2 * SECTOR_BYTES))
    disk.pwrite(0, A + A)
    seen = {disk.cut_after(1, random.Random(seed)).pread(0, 1024)[::512] for seed in range(64)}
    assert seen == {b"\0\0", b"\0a", b"a\0", b"aa"}

"""Cut the power at every step of random commits: the old or the new state, never a mixture."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repl.core.facts import Facts, Maps
from repl.core.outbox import Commit
from repl.store.metadata import Metadata
from tests.store.metadata_model import (
    NAME,
    SIZE_BYTES,
    Place,
    Volume,
    assert_covers,
    assert_exactly,
    new_disk,
    random_step,
    required,
    snapshot,
)
from tests.store.power_loss_disk import PowerLossDisk, Sync

#: Random mixtures of unsynced sectors tried at each cut, beside "all lost".
MIXTURES = 2


def new_volume(facts: Facts) -> Volume:
    return Volume(facts, Maps.empty(SIZE_BYTES, tuple(peer.name for peer in facts.peers)))


def check_cut(
    disk: PowerLossDisk,
    operations: int,
    commit: Commit,
    serials: tuple[int, int],
    before: tuple[Facts, dict[Place, int]],
    after: tuple[Facts, dict[Place, int]],
    choice: random.Random | None,
) -> PowerLossDisk:
    """Cut here and check what loads; return the disk after the cut."""
    survivor = disk.cut_after(operations, choice)
    loaded = Metadata.load(survivor, NAME)
    assert loaded.metadata.serial in serials
    facts_new = serials[0] < loaded.metadata.serial
    assert loaded.facts == (after if facts_new else before)[0]
    assert_covers(loaded, required(commit, before[1], after[1], facts_new=facts_new))
    if operations == len(disk.log):
        assert_exactly(loaded, *after)
    return survivor


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32))
def test_power_loss_at_every_step_keeps_the_old_or_the_new_state(seed: int) -> None:
    choice = random.Random(seed)
    disk, metadata = new_disk()
    volume = new_volume(metadata.facts)
    for _ in range(choice.randrange(1, 6)):
        before = (volume.facts, snapshot(volume.maps))
        commit = random_step(volume, choice)
        after = (volume.facts, snapshot(volume.maps))
        disk.start_recording()
        old_serial = metadata.serial
        metadata.carry_out(metadata.prepare(commit))
        serials = (old_serial, metadata.serial)
        assert not disk.log or isinstance(disk.log[-1], Sync)
        for operations in range(len(disk.log) + 1):
            if operations < len(disk.log) or not disk.log:
                check_cut(disk, operations, commit, serials, before, after, None)
            for _ in range(MIXTURES):
                check_cut(disk, operations, commit, serials, before, after, choice)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32))
def test_commits_after_crash_upon_crash_are_exact_again(seed: int) -> None:
    """What a crash left behind (torn pages, epochs of aborted commits) never comes back later."""
    choice = random.Random(seed)
    disk, metadata = new_disk()
    volume = new_volume(metadata.facts)
    for _ in range(12):
        before = (volume.facts, snapshot(volume.maps))
        commit = random_step(volume, choice)
        after = (volume.facts, snapshot(volume.maps))
        disk.start_recording()
        old_serial = metadata.serial
        metadata.carry_out(metadata.prepare(commit))
        serials = (old_serial, metadata.serial)
        if choice.random() < 0.5:
            operations = choice.randrange(len(disk.log) + 1)
            disk = check_cut(disk, operations, commit, serials, before, after, choice)
            loaded = Metadata.load(disk, NAME)
            metadata = loaded.metadata
            volume = Volume(loaded.facts, loaded.maps)
        else:
            assert_exactly(Metadata.load(disk, NAME), *after)


class FailingDisk(PowerLossDisk):
    """Every operation from number `fails_at` on raises, as a disk that went away does."""

    def __init__(self, disk: PowerLossDisk, fails_at: int) -> None:
        super().__init__(disk.image)
        self.fails_at = fails_at

    def pwrite(self, offset: int, data: bytes) -> None:
        self._count()
        super().pwrite(offset, data)

    def sync(self) -> None:
        self._count()
        super().sync()

    def _count(self) -> None:
        if len(self.log) >= self.fails_at:
            raise OSError(5, "the disk went away")


@pytest.mark.parametrize("fails_at", range(1, 8))
def test_after_a_failed_write_or_sync_nothing_is_written_again(fails_at: int) -> None:
    disk, _ = new_disk()
    failing = FailingDisk(disk, fails_at)
    metadata = Metadata.load(failing, NAME).metadata
    volume = new_volume(metadata.facts)
    choice = random.Random(4)

    def commit_often() -> None:
        for _ in range(8):
            metadata.carry_out(metadata.prepare(random_step(volume, choice)))

    with pytest.raises(OSError, match="went away"):
        commit_often()
    failing.fails_at = 1 << 30
    written = len(failing.log)
    with pytest.raises(OSError, match="earlier metadata write"):
        metadata.carry_out(metadata.prepare(random_step(volume, choice)))
    assert len(failing.log) == written

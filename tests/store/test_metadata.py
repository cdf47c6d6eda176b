"""Commits, closes and every kind of damage that is no crash."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from repl.core.facts import Maps, PeerRecord
from repl.core.lineage import Generation, Origin
from repl.core.outbox import Commit, MapName, MapPage
from repl.errors import Refused, ReplError
from repl.store import format as fmt
from repl.store.metadata import Metadata
from tests.store.metadata_model import (
    FACTS,
    NAME,
    SIZE_BYTES,
    STAMP,
    Place,
    Volume,
    generation,
    new_disk,
    random_step,
    snapshot,
)
from tests.store.power_loss_disk import PowerLossDisk, Sync, Write

DIRTY: Place = (MapName.DIRTY, "beta")
INTENTS: Place = (MapName.INTENTS, "")
REMAINING: Place = (MapName.REMAINING, "")
OPEN = replace(FACTS, clean=False)


def carry(metadata: Metadata, commit: Commit) -> None:
    metadata.carry_out(metadata.prepare(commit))


def new_volume() -> Volume:
    return Volume(FACTS, Maps.empty(SIZE_BYTES, ("beta",)))


def flip(disk: PowerLossDisk, offset: int) -> None:
    disk.image[offset] ^= 0x10


def slot_body(slot: int) -> int:
    """An offset inside the record of a superblock slot."""
    return fmt.superblock_offset(slot) + 100


def page_offset(map_id: int, page_no: int) -> int:
    region = fmt.Layout.for_volume(SIZE_BYTES).region(map_id)
    return region.offset + page_no * region.page_bytes


def test_what_was_created_is_loaded() -> None:
    disk, _ = new_disk()
    loaded = Metadata.load(disk, NAME)
    assert loaded.facts == FACTS
    assert loaded.metadata.stamp == STAMP
    assert loaded.reports == []
    assert list(loaded.maps.dirty) == ["beta"]
    assert not any(snapshot(loaded.maps).values())


def test_loaded_maps_count_as_unchanged() -> None:
    disk, metadata = new_disk()
    volume = new_volume()
    volume.mark(DIRTY, 0, 1 << 30)
    carry(metadata, volume.commit(None, []))
    dirty = Metadata.load(disk, NAME).maps.dirty["beta"]
    assert dirty.count == 1 << 18
    assert not dirty.has_changes


def test_a_commit_of_intents_only_costs_one_write_and_one_sync() -> None:
    disk, metadata = new_disk()
    volume = new_volume()
    volume.mark(INTENTS, 0, 1)
    carry(metadata, volume.commit(None, []))
    assert [type(entry) for entry in disk.log] == [Write, Sync]


def test_a_commit_with_nothing_in_it_touches_nothing() -> None:
    disk, metadata = new_disk()
    carry(metadata, Commit(1))
    assert disk.log == []


def test_steps_are_dirty_pages_then_superblock_then_intents() -> None:
    disk, metadata = new_disk()
    carry(metadata, Commit(1, OPEN))
    disk.start_recording()
    volume = new_volume()
    volume.number = 1
    for place in (DIRTY, REMAINING, INTENTS):
        volume.mark(place, 0, 1)
    carry(metadata, volume.commit(replace(OPEN, outdated=True), []))
    steps = [entry.offset if isinstance(entry, Write) else "sync" for entry in disk.log]
    dirty, remaining = page_offset(fmt.DIRTY_ID, 0), page_offset(fmt.REMAINING_ID, 0)
    superblock, intents = fmt.superblock_offset(0), page_offset(fmt.INTENTS_ID, 0)
    assert steps == [remaining, dirty, "sync", superblock, "sync", intents, "sync"]


def test_adjacent_pages_are_one_write() -> None:
    disk, metadata = new_disk()
    volume = new_volume()
    volume.mark(DIRTY, 0, SIZE_BYTES)
    carry(metadata, volume.commit(None, []))
    assert [type(entry) for entry in disk.log] == [Write, Sync]


def test_an_emptied_map_reads_as_zero_with_one_superblock_write() -> None:
    disk, metadata = new_disk()
    carry(metadata, Commit(1, OPEN))
    volume = new_volume()
    volume.number = 1
    volume.mark(DIRTY, 0, SIZE_BYTES)
    carry(metadata, volume.commit(None, []))
    disk.start_recording()
    volume.maps.dirty["beta"].clear_all()
    carry(metadata, volume.commit(OPEN, [DIRTY]))
    assert [type(entry) for entry in disk.log] == [Write, Sync]
    assert not any(snapshot(Metadata.load(disk, NAME).maps).values())


def test_pages_of_a_map_emptied_in_the_same_commit_are_kept() -> None:
    disk, metadata = new_disk()
    volume = new_volume()
    for place in (DIRTY, INTENTS):
        volume.mark(place, 0, SIZE_BYTES)
    carry(metadata, volume.commit(OPEN, []))
    for place, bitmap in ((DIRTY, volume.maps.dirty["beta"]), (INTENTS, volume.maps.intents)):
        bitmap.clear_all()
        volume.mark(place, 1 << 31, 1 << 22)
    carry(metadata, volume.commit(OPEN, [DIRTY, INTENTS]))
    assert snapshot(Metadata.load(disk, NAME).maps) == snapshot(volume.maps)


def test_a_new_peer_gets_a_slot_with_its_first_page() -> None:
    disk, metadata = new_disk()
    bits = b"\x01" + bytes(fmt.Layout.for_volume(SIZE_BYTES).region(fmt.DIRTY_ID).page_bytes - 65)
    carry(metadata, Commit(1, pages=[MapPage(MapName.DIRTY, "gamma", 2, bits)]))
    loaded = Metadata.load(disk, NAME)
    assert loaded.maps.dirty["gamma"].count == 1
    assert loaded.maps.dirty["beta"].count == 0
    assert loaded.facts == FACTS


def test_a_clean_close_leaves_two_equal_slots_and_reopens() -> None:
    disk, metadata = new_disk()
    carry(metadata, Commit(1, OPEN))
    carry(metadata, Commit(2, FACTS))
    first, second = (disk.pread(fmt.superblock_offset(slot), 4096) for slot in (0, 1))
    assert first == second
    loaded = Metadata.load(disk, NAME)
    assert loaded.reports == []
    carry(loaded.metadata, Commit(1, replace(OPEN, boot_id="next")))
    assert Metadata.load(disk, NAME).facts.boot_id == "next"


def test_commits_must_come_in_order() -> None:
    _, metadata = new_disk()
    metadata.prepare(Commit(2, OPEN))
    with pytest.raises(AssertionError):
        metadata.prepare(Commit(2, OPEN))


# Damage that is no crash.


@pytest.mark.parametrize("slot", [0, 1])
def test_a_bad_slot_after_a_clean_close_is_refused(slot: int) -> None:
    disk, metadata = new_disk()
    carry(metadata, Commit(1, OPEN))
    carry(metadata, Commit(2, FACTS))
    flip(disk, slot_body(slot))
    with pytest.raises(Refused) as caught:
        Metadata.load(disk, NAME)
    assert caught.value.code == "METADATA_CORRUPT"
    assert "replctl volume adopt r0" in caught.value.next_step


def test_an_old_slot_copied_back_after_a_clean_close_is_refused() -> None:
    disk, metadata = new_disk()
    carry(metadata, Commit(1, OPEN))
    old = disk.pread(fmt.superblock_offset(1), 4096)
    carry(metadata, Commit(2, FACTS))
    disk.pwrite(fmt.superblock_offset(1), old)
    with pytest.raises(Refused, match="cannot be trusted"):
        Metadata.load(disk, NAME)


def test_a_bad_newest_slot_after_a_crash_gives_the_older_state_and_a_report() -> None:
    disk, metadata = new_disk()
    carry(metadata, Commit(1, OPEN))
    carry(metadata, Commit(2, replace(OPEN, outdated=True)))
    flip(disk, slot_body(0))
    loaded = Metadata.load(disk, NAME)
    assert loaded.facts == OPEN
    assert ["slot 0" in report for report in loaded.reports] == [True]


def test_two_bad_slots_are_refused() -> None:
    disk, metadata = new_disk()
    carry(metadata, Commit(1, OPEN))
    for slot in (0, 1):
        flip(disk, slot_body(slot))
    with pytest.raises(Refused) as caught:
        Metadata.load(disk, NAME)
    assert caught.value.code == "METADATA_CORRUPT"


def test_a_rolled_back_pair_of_slots_is_refused() -> None:
    """Both slots lost their writes, and the marker knows that there was a later opening."""
    disk, metadata = new_disk()
    old = disk.pread(fmt.superblock_offset(0), 2 * fmt.SUPERBLOCK_SLOT_BYTES)
    for number in range(1, 6):
        carry(metadata, Commit(number, OPEN if number % 2 else FACTS))
    disk.pwrite(fmt.superblock_offset(0), old)
    with pytest.raises(Refused, match="cannot be trusted"):
        Metadata.load(disk, NAME)


def test_a_damaged_marker_is_reported_while_both_slots_are_whole() -> None:
    disk, metadata = new_disk()
    carry(metadata, Commit(1, OPEN))
    flip(disk, fmt.MARKER_OFFSET + 20)
    loaded = Metadata.load(disk, NAME)
    assert loaded.facts == OPEN
    assert "marker" in loaded.reports[0]
    carry(loaded.metadata, Commit(1, OPEN))
    assert Metadata.load(disk, NAME).reports == []


def test_a_damaged_marker_with_a_bad_slot_is_refused() -> None:
    disk, metadata = new_disk()
    carry(metadata, Commit(1, OPEN))
    flip(disk, fmt.MARKER_OFFSET + 20)
    flip(disk, slot_body(0))
    with pytest.raises(Refused, match="cannot be trusted"):
        Metadata.load(disk, NAME)


def test_a_zeroed_file_is_refused() -> None:
    disk, _ = new_disk()
    disk.image[:] = bytes(len(disk.image))
    with pytest.raises(Refused) as caught:
        Metadata.load(disk, NAME)
    assert caught.value.code == "METADATA_CORRUPT"


def test_another_volumes_file_is_refused() -> None:
    disk, _ = new_disk()
    with pytest.raises(Refused) as caught:
        Metadata.load(disk, "r1")
    assert caught.value.code == "METADATA_MISMATCH"


@pytest.mark.parametrize(
    ("map_id", "place"), [(fmt.DIRTY_ID, DIRTY), (fmt.REMAINING_ID, REMAINING), (0, INTENTS)]
)
def test_a_damaged_page_reads_as_all_ones_is_reported_and_repaired_once(
    map_id: int, place: Place
) -> None:
    disk, metadata = new_disk()
    volume = new_volume()
    volume.mark(place, 0, 1)
    carry(metadata, volume.commit(None, []))
    flip(disk, page_offset(map_id, 0) + 300)
    loaded = Metadata.load(disk, NAME)
    page_bits = (448 if map_id == 0 else 4032) * 8
    assert snapshot(loaded.maps)[place] == (1 << page_bits) - 1
    assert len(loaded.reports) == 1
    assert "read as all set" in loaded.reports[0]
    carry(loaded.metadata, Commit(1))
    again = Metadata.load(disk, NAME)
    assert again.reports == []
    assert snapshot(again.maps) == snapshot(loaded.maps)


def test_a_torn_rewrite_of_a_damaged_page_cannot_bring_an_older_page_back() -> None:
    """Sectors of two torn writes can together be the page from before the first one."""
    disk, metadata = new_disk()
    volume = new_volume()
    volume.mark(DIRTY, 0, 4096)
    carry(metadata, volume.commit(None, []))
    offset = page_offset(fmt.DIRTY_ID, 0)
    old = disk.pread(offset, 4096)
    # The first torn write: only the sector 7 of a page with more bits arrived.
    disk.pwrite(offset + 7 * 512, b"\xff" * 512)
    loaded = Metadata.load(disk, NAME)
    disk.start_recording()
    carry(loaded.metadata, Commit(1, OPEN))
    # The second one: every sector but the first goes back to what it was at the beginning.
    disk.pwrite(offset + 512, old[512:])
    assert Metadata.load(disk, NAME).maps.dirty["beta"].count == 4032 * 8


def test_a_torn_record_cannot_be_completed_by_a_later_torn_one() -> None:
    """The commit that the first crash undid must stay undone."""
    disk, metadata = new_disk()
    carry(metadata, Commit(1, OPEN))
    offset = fmt.superblock_offset(0)
    carry(metadata, Commit(2, replace(OPEN, outdated=True)))
    undone = disk.pread(offset, 4096)
    disk.pwrite(offset + 512, bytes(4096 - 512))
    loaded = Metadata.load(disk, NAME)
    assert loaded.facts == OPEN
    disk.start_recording()
    carry(loaded.metadata, Commit(1, replace(OPEN, cache_lost=True)))
    record_write = [entry.offset for entry in disk.log if isinstance(entry, Write)].index(offset, 1)
    assert record_write == 1
    # Power fails in the second record: all but its first sector look like the undone one's.
    after = disk.cut_after(2, None)
    after.pwrite(offset + 512, undone[512:])
    assert Metadata.load(after, NAME).facts == OPEN


def test_a_page_in_another_pages_place_reads_as_all_ones() -> None:
    disk, metadata = new_disk()
    volume = new_volume()
    volume.mark(DIRTY, 0, 1)
    carry(metadata, volume.commit(None, []))
    disk.pwrite(page_offset(fmt.DIRTY_ID, 1), disk.pread(page_offset(fmt.DIRTY_ID, 0), 4096))
    loaded = Metadata.load(disk, NAME)
    assert loaded.maps.dirty["beta"].count == 1 + 4032 * 8
    assert "wrong place" in loaded.reports[0]


def test_a_history_too_long_for_its_words_loses_the_words_and_keeps_the_history() -> None:
    disk, metadata = new_disk()
    lineage = tuple(
        replace(generation(number, number), permit="x" * 200) for number in range(250, 0, -1)
    )
    carry(metadata, Commit(1, replace(OPEN, lineage=lineage)))
    loaded = Metadata.load(disk, NAME).facts.lineage
    assert [entry.id for entry in loaded] == [entry.id for entry in lineage]
    assert loaded[0] == lineage[0]
    assert loaded[1] == replace(lineage[1], permit="")


def test_a_history_too_long_altogether_is_refused_and_changes_nothing() -> None:
    disk, metadata = new_disk()
    lineage = tuple(Generation(n, n, 1, (1,), False, Origin.ALONE, 0) for n in range(999, 0, -1))
    with pytest.raises(ReplError, match="no room"):
        metadata.prepare(Commit(1, replace(OPEN, lineage=lineage)))
    assert disk.log == []
    carry(metadata, Commit(1, OPEN))
    assert Metadata.load(disk, NAME).facts == OPEN


def test_loading_writes_nothing() -> None:
    disk, metadata = new_disk()
    volume = new_volume()
    carry(metadata, random_step(volume, random.Random(1)))
    flip(disk, page_offset(fmt.DIRTY_ID, 3) + 5)
    disk.start_recording()
    Metadata.load(disk, NAME)
    assert [type(entry) for entry in disk.log] == [Sync]


def test_a_fifth_peer_is_our_bug_and_not_a_lost_map() -> None:
    _, metadata = new_disk()
    peers = tuple(PeerRecord(f"p{number}") for number in range(5))
    with pytest.raises(AssertionError, match="no slot"):
        metadata.prepare(Commit(1, replace(OPEN, peers=peers)))

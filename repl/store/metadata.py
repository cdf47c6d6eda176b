"""The metadata file of one volume: loading it after any crash, and commits that no crash can split.

Owns the order of writes and syncs (FORMAT.md says why each is safe), epochs, serials and peer
slots. It never decides what a commit holds: the core does. `prepare` belongs to the event loop's
thread, `carry_out` blocks and runs in another one; one commit at a time is on its way. After a
failed write or sync nothing is ever written again: what the disk holds is unknown until the next
load.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol

from repl.core.blockmap import BlockMap
from repl.core.facts import Facts, Maps
from repl.core.outbox import Commit, MapName
from repl.store import refusals
from repl.store.format import (
    DIRTY_ID,
    FORMAT_VERSION,
    INTENTS_ID,
    MAP_COUNT,
    MARKER_OFFSET,
    PEER_SLOTS,
    REMAINING_ID,
    SECTOR_BYTES,
    SUPERBLOCK_SLOT_BYTES,
    Body,
    Layout,
    Marker,
    OtherVersion,
    PageKey,
    Superblock,
    encode_all_set,
    encode_marker,
    encode_page,
    encode_superblock,
    superblock_offset,
)
from repl.store.page_scan import PageScan, scan_pages
from repl.store.record_json import FormatError
from repl.store.stamp import Stamp
from repl.store.superblock_choice import Choice, choose_superblock

#: Adjacent pages are written together up to this many bytes.
WRITE_BYTES_MAX = 1 << 20
#: The number of the one commit that opening a store may make; the core's begin at 0 or above.
OPENING_COMMIT = -1


class MetadataFile(Protocol):
    """What the metadata needs of its file; a simulator gives its own disk."""

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes; what was never written is zeroes."""

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all of `data`; durable only after the next `sync`."""

    def sync(self) -> None:
        """Return when everything written is durable; raise OSError if that is not certain."""


@dataclass(frozen=True, slots=True)
class PageWrite:
    """One page of a prepared commit."""

    key: PageKey
    epoch: int
    bits: bytes


@dataclass(frozen=True, slots=True)
class Prepared:
    """A commit as it will be written: everything that `carry_out` needs, and nothing shared."""

    number: int
    #: Serial and bytes of the superblock record, if the commit has one.
    serial: int
    record: bytes
    #: Whether the record is the last of a clean close.
    clean: bool
    #: Damaged pages to be marked as all set before anything else, with their maps' old epochs.
    repairs: tuple[tuple[PageKey, int], ...]
    #: Pages to be durable before the record, and after it.
    early: tuple[PageWrite, ...]
    late: tuple[PageWrite, ...]


@dataclass(slots=True)
class _State:
    """What the loop's thread knows about the file, as of the last `prepare`."""

    body: Body
    serial: int
    #: Pages that are damaged on disk and read as all ones; the next commit repairs them first.
    damaged: set[PageKey] = field(default_factory=set)
    number: int = OPENING_COMMIT - 1


class Metadata:
    """An open metadata file. Made by `create` or `load`."""

    def __init__(
        self,
        file: MetadataFile,
        state: _State,
        *,
        newest_slot: int,
        other_torn: bool,
        marker_closed: bool,
    ) -> None:
        self._file = file
        self._state = state
        # The fields below belong to the thread that carries out commits.
        self._newest_slot = newest_slot
        self._other_torn = other_torn
        self._marker_closed = marker_closed
        self._carried_number = OPENING_COMMIT - 1
        self._usable = True

    @classmethod
    def create(cls, file: MetadataFile, name: str, facts: Facts, stamp: Stamp) -> Metadata:
        """Write the first record for a volume into an empty file, and return when it is durable.

        Every byte of the file must read as zero. A crash before the return may leave a file that
        does not load; whoever creates one gives it its name only afterwards.
        """
        slot_names = _with_slots(("",) * PEER_SLOTS, (peer.name for peer in facts.peers))
        epochs = (1,) * MAP_COUNT
        layout = Layout.for_volume(facts.size_bytes)
        body = Body(name, layout, stamp, epochs, slot_names, facts)
        record = encode_superblock(Superblock(1, body))
        file.pwrite(superblock_offset(0), record)
        file.pwrite(superblock_offset(1), record)
        file.pwrite(MARKER_OFFSET, encode_marker(Marker(facts.clean, 1)))
        file.sync()
        return cls(
            file, _State(body, 1), newest_slot=0, other_torn=False, marker_closed=facts.clean
        )

    @classmethod
    def load(cls, file: MetadataFile, name: str) -> Loaded:
        """Read the file back after a close or a crash; writes nothing.

        It syncs first: what a crashed process left in the cache would otherwise be read, believed,
        and lost in a later loss of power. Raises Refused (METADATA_CORRUPT, METADATA_FORMAT,
        METADATA_MISMATCH) and OSError.
        """
        file.sync()
        choice = _choose(file, name)
        body = choice.superblock.body
        if body.volume != name:
            raise refusals.other_volume(name, body.volume)
        peers = tuple(slot_name for slot_name in body.slot_names if slot_name)
        maps = Maps.empty(body.facts.size_bytes, peers)
        state = _State(body, choice.superblock.serial)
        reports = list(choice.reports)
        for map_id in range(MAP_COUNT):
            bitmap = _bitmap(maps, body.slot_names, map_id)
            region = body.layout.region(map_id)
            epoch = body.epochs[map_id]
            scan = scan_pages(file.pread, region, map_id, epoch, body.facts.node_id, bitmap)
            state.damaged.update(PageKey(map_id, page_no) for page_no in scan.damaged)
            if bitmap is not None:
                reports += _page_reports(_map_title(body.slot_names, map_id), scan)
                bitmap.take_changed()
        metadata = cls(
            file,
            state,
            newest_slot=choice.slot,
            other_torn=choice.other_torn,
            marker_closed=choice.marker_closed,
        )
        return Loaded(body.facts, maps, reports, metadata)

    @property
    def stamp(self) -> Stamp:
        """What is remembered of the backing."""
        return self._state.body.stamp

    @property
    def facts(self) -> Facts:
        """The facts of the newest superblock record, as of the last `prepare`."""
        return self._state.body.facts

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs by map id, as of the last `prepare`."""
        return self._state.body.epochs

    @property
    def serial(self) -> int:
        """The serial of the newest superblock record, as of the last `prepare`."""
        return self._state.serial

    def set_stamp(self, stamp: Stamp) -> None:
        """Remember the backing by this stamp from the next superblock record on."""
        self._state.body = replace(self._state.body, stamp=stamp)

    def prepare(self, commit: Commit) -> Prepared:
        """Turn a commit into what will be written. Call it in the order of the commits' numbers.

        Emptied maps get a new epoch; their pages in this very commit are written under it, before
        the superblock. A peer without a slot gets one, as an emptied map, and thereby a superblock
        record even if the commit brings no facts. Raises ReplError, with nothing changed, when the
        record does not fit.
        """
        state = self._state
        assert commit.number > state.number, (commit.number, state.number)
        facts = commit.facts or state.body.facts
        assert facts.node_id == state.body.facts.node_id
        assert facts.size_bytes == state.body.facts.size_bytes
        slot_names = _with_slots(state.body.slot_names, _peers_of(commit, facts))
        emptied = {_map_id(slot_names, *item) for item in commit.emptied}
        for slot, (before, after) in enumerate(zip(state.body.slot_names, slot_names, strict=True)):
            if before != after:
                emptied.add(DIRTY_ID + slot)
        epochs = tuple(
            epoch + (map_id in emptied) for map_id, epoch in enumerate(state.body.epochs)
        )
        body = replace(state.body, facts=facts, slot_names=slot_names, epochs=epochs)
        has_record = commit.facts is not None or bool(emptied)
        serial = state.serial + has_record
        record = _encode_record(Superblock(serial, body)) if has_record else b""

        bits = {
            PageKey(_map_id(slot_names, page.map, page.peer), page.page_no): page.bits
            for page in commit.pages
        }
        repairs = tuple((key, state.body.epochs[key.map_id]) for key in state.damaged)
        state.damaged = set()
        state.body, state.serial, state.number = body, serial, commit.number
        early: list[PageWrite] = []
        late: list[PageWrite] = []
        for key, page_bits in bits.items():
            after_record = key.map_id == INTENTS_ID and INTENTS_ID not in emptied
            (late if after_record else early).append(PageWrite(key, epochs[key.map_id], page_bits))
        return Prepared(
            commit.number,
            serial,
            record,
            clean=has_record and facts.clean,
            repairs=repairs,
            early=tuple(early),
            late=tuple(late),
        )

    def carry_out(self, prepared: Prepared) -> None:
        """Make a prepared commit durable; blocks. Raises OSError, after which nothing works.

        One at a time and in order. The steps are FORMAT.md's "How a commit is written".
        """
        if not self._usable:
            raise OSError(errno.EIO, "an earlier metadata write failed; no other follows")
        assert prepared.number > self._carried_number, "commits are carried out in order"
        self._usable = False
        self._repair(prepared)
        reopen = bool(prepared.record) and self._marker_closed
        if reopen:
            # The serial before this record's: both slots still hold it.
            marker = encode_marker(Marker(False, prepared.serial - 1))
            self._file.pwrite(MARKER_OFFSET, marker)
            self._marker_closed = False
        self._write_pages(prepared.early)
        if reopen or prepared.early:
            self._file.sync()
        if prepared.record:
            self._write_record(prepared)
        if prepared.late:
            self._write_pages(prepared.late)
            self._file.sync()
        if prepared.clean:
            self._write_record(prepared)
            self._file.pwrite(MARKER_OFFSET, encode_marker(Marker(True, prepared.serial)))
            self._file.sync()
            self._marker_closed = True
        self._carried_number = prepared.number
        self._usable = True

    def _repair(self, prepared: Prepared) -> None:
        """Make damage found at the load lasting, so that a torn rewrite cannot undo it.

        Sectors of a torn write and of a later torn write can together be a whole, older unit again.
        For a page that would be fewer bits than it was read as, for the superblock the record of a
        commit that a crash undid. Replacing the first sector, alone, rules both out.
        """
        layout, node_id = self._state.body.layout, self._state.body.facts.node_id
        for key, epoch in prepared.repairs:
            region = layout.region(key.map_id)
            offset = region.offset + key.page_no * region.page_bytes
            self._file.pwrite(offset, encode_all_set(key, epoch, node_id))
        clear_slot = bool(prepared.record) and self._other_torn
        if clear_slot:
            self._file.pwrite(superblock_offset(1 - self._newest_slot), bytes(SECTOR_BYTES))
            self._other_torn = False
        if prepared.repairs or clear_slot:
            self._file.sync()

    def _write_record(self, prepared: Prepared) -> None:
        slot = 1 - self._newest_slot
        self._file.pwrite(superblock_offset(slot), prepared.record)
        self._file.sync()
        self._newest_slot = slot

    def _write_pages(self, pages: Iterable[PageWrite]) -> None:
        layout, node_id = self._state.body.layout, self._state.body.facts.node_id
        run, run_offset = bytearray(), 0
        for page in sorted(pages, key=lambda page: (page.key.map_id, page.key.page_no)):
            region = layout.region(page.key.map_id)
            assert 0 <= page.key.page_no < region.page_count
            offset = region.offset + page.key.page_no * region.page_bytes
            if run and (offset != run_offset + len(run) or len(run) >= WRITE_BYTES_MAX):
                self._file.pwrite(run_offset, bytes(run))
                run.clear()
            if not run:
                run_offset = offset
            run += encode_page(page.key, page.epoch, node_id, page.bits)
        if run:
            self._file.pwrite(run_offset, bytes(run))


@dataclass(slots=True)
class Loaded:
    """What a metadata file held."""

    facts: Facts
    maps: Maps
    #: Sentences about damage that was found and how it was read; empty when all is whole.
    reports: list[str]
    metadata: Metadata


def _choose(file: MetadataFile, name: str) -> Choice:
    slots_raw = (
        file.pread(superblock_offset(0), SUPERBLOCK_SLOT_BYTES),
        file.pread(superblock_offset(1), SUPERBLOCK_SLOT_BYTES),
    )
    try:
        return choose_superblock(file.pread(MARKER_OFFSET, SECTOR_BYTES), slots_raw)
    except OtherVersion as error:
        raise refusals.other_format(name, error.version, FORMAT_VERSION) from error
    except FormatError as error:
        raise refusals.corrupt_metadata(name, str(error)) from error


def _encode_record(superblock: Superblock) -> bytes:
    """Encode; a record that is too long loses the permits of older generations (mere words)."""
    try:
        return encode_superblock(superblock)
    except FormatError:
        facts = superblock.body.facts
        short = (*facts.lineage[:1], *(replace(entry, permit="") for entry in facts.lineage[1:]))
    body = replace(superblock.body, facts=replace(facts, lineage=short))
    try:
        return encode_superblock(replace(superblock, body=body))
    except FormatError as error:
        raise refusals.no_room(body.volume, len(facts.lineage), str(error)) from error


def _peers_of(commit: Commit, facts: Facts) -> list[str]:
    names = [record.name for record in facts.peers]
    names += [page.peer for page in commit.pages if page.map is MapName.DIRTY]
    names += [peer for map_name, peer in commit.emptied if map_name is MapName.DIRTY]
    return names


def _with_slots(slot_names: tuple[str, ...], peers: Iterable[str]) -> tuple[str, ...]:
    """Return the slot table with a slot for each of the peers; the caller knows that they fit."""
    names = list(slot_names)
    for peer in peers:
        assert peer, "a dirty map belongs to a named peer"
        if peer not in names:
            assert "" in names, f"no slot is left for the dirty map of {peer}"
            names[names.index("")] = peer
    return tuple(names)


def _map_id(slot_names: tuple[str, ...], map_name: MapName, peer: str) -> int:
    if map_name is MapName.DIRTY:
        return DIRTY_ID + slot_names.index(peer)
    assert not peer, f"{map_name} has no peer"
    return INTENTS_ID if map_name is MapName.INTENTS else REMAINING_ID


def _bitmap(maps: Maps, slot_names: tuple[str, ...], map_id: int) -> BlockMap | None:
    if map_id == INTENTS_ID:
        return maps.intents
    if map_id == REMAINING_ID:
        return maps.remaining
    return maps.dirty.get(slot_names[map_id - DIRTY_ID])


def _map_title(slot_names: tuple[str, ...], map_id: int) -> str:
    if map_id == INTENTS_ID:
        return "write intents"
    if map_id == REMAINING_ID:
        return "remaining map"
    return f"dirty map of {slot_names[map_id - DIRTY_ID]}"


def _page_reports(title: str, scan: PageScan) -> list[str]:
    return [
        f"{title}: {count} page{'s' if count > 1 else ''} {problem}, read as all set"
        for problem, count in scan.problems.items()
    ]

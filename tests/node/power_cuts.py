"""Cuts the power after every step of a recorded run of two real engines, and judges what is left.

The recording holds, in the order in which they happened: writes to both copies and both metadata
files, the syncs, the frames that left for the peer and the replies that left for the client. The
judge keeps what is durable at each step: a write counts only once a sync that began after it has
ended. Metadata is also judged with any part of what was not synced yet. A sync can be taken out of
the recording afterwards, which must then be found.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from repl.core.facts import Facts, Maps
from repl.core.wire import Type
from repl.errors import Refused
from repl.store.metadata import Metadata
from tests.sim.laws import Laws
from tests.sim.violation import Rule, Violation
from tests.store.power_loss_disk import PowerLossDisk, Write

BLOCK_BYTES = 4096
#: Draws of what a power cut leaves of unsynced metadata, beside "nothing of it".
DRAWS = 3


@dataclass(frozen=True, slots=True)
class Begun:
    """Blocks that are about to be written to a node's copy, and the versions that they get."""

    node: str
    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Written:
    """The write has returned."""

    node: str
    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class SyncBegun:
    node: str
    number: int


@dataclass(frozen=True, slots=True)
class SyncEnded:
    """A sync of the copy; `number` is that of its beginning."""

    node: str
    number: int
    site: str


@dataclass(frozen=True, slots=True)
class MetaWritten:
    node: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class MetaSynced:
    node: str
    site: str


@dataclass(frozen=True, slots=True)
class FrameSent:
    """A frame's header, and its payload if the laws look at it, is on its way to the peer."""

    node: str
    kind: Type
    seq: int
    generation: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """The client is about to send a request: a write of one block, or a flush (`version` 0)."""

    cookie: int
    block: int
    version: int
    fua: bool


@dataclass(frozen=True, slots=True)
class Replied:
    cookie: int


Event = (
    Begun | Written | SyncBegun | SyncEnded | MetaWritten | MetaSynced | FrameSent | Asked | Replied
)


@dataclass
class Recording:
    """A run: what the metadata files held at its beginning, and what happened then."""

    volume: str
    size_bytes: int
    metadata: dict[str, bytes]
    events: list[Event]

    def sync_sites(self) -> set[tuple[str, str]]:
        """Node and place in the code of every sync that was recorded."""
        syncs = [event for event in self.events if isinstance(event, SyncEnded | MetaSynced)]
        return {(event.node, event.site) for event in syncs}

    def without_sync(self, node: str, site: str) -> Recording:
        """The same run as if the sync at that place in the code were not there."""
        kept = [
            event
            for event in self.events
            if not (
                isinstance(event, SyncEnded | MetaSynced)
                and (event.node, event.site) == (node, site)
            )
        ]
        return Recording(self.volume, self.size_bytes, self.metadata, kept)


@dataclass
class _Disks:
    """One node as the power cut finds it."""

    metadata: PowerLossDisk
    facts: Facts
    maps: Maps
    laws: Laws
    #: By block: what is surely there, and what may be there beside it, oldest first.
    durable: dict[int, int] = field(default_factory=dict)
    unsynced: dict[int, list[int]] = field(default_factory=dict)
    written: dict[int, int] = field(default_factory=dict)
    #: What cuts since the last metadata sync left.
    drawn: list[tuple[Facts, Maps]] = field(default_factory=list)
    #: By a sync's number: what had been written when it began.
    covered: dict[int, dict[int, int]] = field(default_factory=dict)

    def possible(self, block: int) -> set[int]:
        """The versions of which a power cut leaves one."""
        return {self.durable.get(block, 0), *self.unsynced.get(block, ())}


class Judge:
    """Walks through a recording; raises `Violation` at the first step that a cut would betray."""

    def __init__(self, recording: Recording, seed: int = 1) -> None:
        self._recording = recording
        self._choice = random.Random(seed)
        self._asked: dict[int, Asked] = {}
        self._acknowledged: dict[int, int] = {}
        #: By a flush's cookie: what had been acknowledged when it was asked for.
        self._owed: dict[int, dict[int, int]] = {}
        self._disks = {node: self._open(node, image) for node, image in recording.metadata.items()}

    def _open(self, node: str, image: bytes) -> _Disks:
        disk = PowerLossDisk(image)
        facts, maps = self._load(disk)
        return _Disks(disk, facts, maps, Laws(node, facts, maps))

    def _load(self, disk: PowerLossDisk) -> tuple[Facts, Maps]:
        try:
            loaded = Metadata.load(disk, self._recording.volume)
        except Refused as refused:
            raise Violation(
                Rule.METADATA, f"after a power cut: {refused.what} {refused.why}"
            ) from refused
        return loaded.facts, loaded.maps

    def judge(self) -> None:
        """Judge every step."""
        steps: dict[type[Event], Callable[..., None]] = {
            Begun: self._begun,
            Written: self._written,
            SyncBegun: self._sync_begun,
            SyncEnded: self._sync_ended,
            MetaWritten: self._meta_written,
            MetaSynced: self._meta_synced,
            FrameSent: self._frame_sent,
            Asked: self._request,
            Replied: self._replied,
        }
        for event in self._recording.events:
            steps[type(event)](event)

    # The copies.

    def _begun(self, event: Begun) -> None:
        disks = self._disks[event.node]
        for block, version in event.blocks:
            if not disks.maps.intents.any_in(block * BLOCK_BYTES, BLOCK_BYTES):
                raise Violation(
                    Rule.ORDER, f"{event.node}: block {block} is written without a durable intent"
                )
            disks.unsynced.setdefault(block, []).append(version)
        self._check_known(block for block, _ in event.blocks)

    def _written(self, event: Written) -> None:
        self._disks[event.node].written.update(event.blocks)

    def _sync_begun(self, event: SyncBegun) -> None:
        disks = self._disks[event.node]
        disks.covered[event.number] = dict(disks.written)

    def _sync_ended(self, event: SyncEnded) -> None:
        disks = self._disks[event.node]
        for block, version in disks.covered.pop(event.number).items():
            later = disks.unsynced.get(block, [])
            if version in later:
                disks.durable[block] = version
                del later[: later.index(version) + 1]

    # The metadata.

    def _meta_written(self, event: MetaWritten) -> None:
        disks = self._disks[event.node]
        disks.metadata.pwrite(event.offset, event.data)
        for left in self._left_by_a_cut(disks.metadata):
            facts, maps = self._load(left)
            disks.drawn.append((facts, maps))
            self._check_lineage(event.node, disks.facts, facts)
            self._check_known(self._touched(), {event.node: (facts, maps)})

    def _left_by_a_cut(self, disk: PowerLossDisk) -> Iterator[PowerLossDisk]:
        """What may be left of the metadata: any sectors, the last write alone, all but one."""
        for _ in range(DRAWS):
            yield disk.cut_after(len(disk.log), self._choice)
        writes = [operation for operation in disk.log if isinstance(operation, Write)]
        for kept in ([writes[-1]], *(writes[:n] + writes[n + 1 :] for n in range(len(writes)))):
            left = PowerLossDisk(disk.durable)
            for write in kept:
                left.pwrite(write.offset, write.data)
            yield left

    def _meta_synced(self, event: MetaSynced) -> None:
        disks = self._disks[event.node]
        disks.metadata.sync()
        before = disks.facts
        disks.facts, disks.maps = self._load(
            disks.metadata.cut_after(len(disks.metadata.log), None)
        )
        disks.laws.stored(disks.facts)
        # What is durable now needs no log.
        disks.metadata.start_recording()
        self._check_lineage(event.node, before, disks.facts)
        drawn, disks.drawn = disks.drawn, []
        for facts, maps in drawn:
            if facts == disks.facts != before and not _holds(maps, disks.maps):
                raise Violation(
                    Rule.DIRTY, f"{event.node}: a power cut leaves a record without its maps"
                )
        self._check_known(self._touched())

    def _check_lineage(self, node: str, old: Facts, new: Facts) -> None:
        known = {entry.id for entry in new.lineage}
        if old.lineage and old.generation.id not in known:
            raise Violation(
                Rule.LINEAGE, f"{node}: a power cut takes generation {old.generation.id:x} away"
            )

    def _touched(self) -> set[int]:
        return {
            block for disks in self._disks.values() for block in (*disks.durable, *disks.unsynced)
        }

    def _check_known(
        self, blocks: Iterable[int], instead: dict[str, tuple[Facts, Maps]] | None = None
    ) -> None:
        """Every block in which the copies may differ after the cut is in somebody's map."""
        stored = {node: (disks.facts, disks.maps) for node, disks in self._disks.items()}
        stored |= instead or {}
        for block in blocks:
            found = set().union(*(disks.possible(block) for disks in self._disks.values()))
            if len(found) > 1 and not any(
                _names(facts, maps, block) for facts, maps in stored.values()
            ):
                raise Violation(
                    Rule.DIRTY, f"block {block} may hold any of {sorted(found)}: in no map"
                )

    # What leaves.

    def _frame_sent(self, event: FrameSent) -> None:
        laws = self._disks[event.node].laws
        laws.sent((event.kind, event.seq, 0, 0, event.generation, 0, event.payload))

    def _request(self, event: Asked) -> None:
        self._asked[event.cookie] = event
        self._owed[event.cookie] = dict(self._acknowledged)

    def _replied(self, event: Replied) -> None:
        asked = self._asked.pop(event.cookie)
        owed = self._owed.pop(event.cookie) if asked.version == 0 else {}
        if asked.version:
            self._acknowledged[asked.block] = asked.version
        if asked.fua:
            owed[asked.block] = asked.version
        primaries = [disks for disks in self._disks.values() if disks.facts.is_primary]
        if len(primaries) != 1:
            raise Violation(
                Rule.TWO_PRIMARIES,
                f"{asked} is answered; {len(primaries)} nodes are stored as primary",
            )
        generation = primaries[0].facts.generation
        if generation.primary != primaries[0].facts.node_id or not generation.answered:
            raise Violation(
                Rule.ORDER, f"{asked} is answered under a generation that does not say so"
            )
        for node, disks in self._disks.items():
            if disks.facts.node_id not in generation.members:
                continue
            if asked.version and disks.written.get(asked.block, 0) < asked.version:
                raise Violation(Rule.LEDGER, f"{asked} is answered and {node} does not have it")
            for block, version in owed.items():
                if disks.durable.get(block, 0) < version:
                    raise Violation(
                        Rule.LEDGER, f"{asked} is answered; {node} may lose block {block}"
                    )


def _holds(found: Maps, promised: Maps) -> bool:
    """Whether every bit of the promised dirty and remaining maps is in those that were found."""
    pairs = [(found.remaining, promised.remaining)]
    pairs += [(found.dirty[peer], promised.dirty[peer]) for peer in promised.dirty]
    return all(ours.copy().merge(theirs) == 0 for ours, theirs in pairs)


def _names(facts: Facts, maps: Maps, block: int) -> bool:
    """Whether a comparison with this node would look at the block."""
    place = block * BLOCK_BYTES
    return (
        (facts.inconsistent and facts.everything_suspect)
        or maps.intents.any_in(place, BLOCK_BYTES)
        or maps.remaining.any_in(place, BLOCK_BYTES)
        or any(dirty.any_in(place, BLOCK_BYTES) for dirty in maps.dirty.values())
    )

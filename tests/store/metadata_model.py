"""What tests say about metadata: volumes, facts and commits drawn at random, and comparisons."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from repl.core.blockmap import BlockMap
from repl.core.facts import Facts, Maps, PeerRecord
from repl.core.lineage import Generation, Origin, extend
from repl.core.outbox import Commit, MapName, MapPage
from repl.store.format import Layout
from repl.store.metadata import Loaded, Metadata
from repl.store.stamp import BackingKind, Stamp
from tests.store.power_loss_disk import PowerLossDisk

#: Two pages of intents, 33 of a dirty map, the last of each cut short.
SIZE_BYTES = (4 << 30) + 12345 * 4096
NAME = "r0"
STAMP = Stamp(BackingKind.FILE, SIZE_BYTES, device=3, inode=7, taggable=True, tag="00ab")
FACTS = Facts(node_id=11, size_bytes=SIZE_BYTES, known_zeroes=True, peers=(PeerRecord("beta"),))

#: A map's place: which map, and whose if it is a dirty map.
Place = tuple[MapName, str]


def generation(counter: int, generation_id: int) -> Generation:
    return Generation(
        counter,
        generation_id,
        11,
        (11, 12) if generation_id % 2 else (11,),
        answered=generation_id % 3 == 0,
        origin=Origin.PROMOTED,
        made_at_s=1_700_000_000,
        permit="by an operator — “vouched”",
    )


def new_disk(facts: Facts = FACTS) -> tuple[PowerLossDisk, Metadata]:
    disk = PowerLossDisk(bytes(Layout.for_volume(facts.size_bytes).file_bytes))
    metadata = Metadata.create(disk, NAME, facts, STAMP)
    disk.start_recording()
    return disk, metadata


def places(maps: Maps) -> dict[Place, BlockMap]:
    found = {(MapName.INTENTS, ""): maps.intents, (MapName.REMAINING, ""): maps.remaining}
    found.update({(MapName.DIRTY, peer): bitmap for peer, bitmap in maps.dirty.items()})
    return found


def bits_of(bitmap: BlockMap) -> int:
    """All bits of a map as one number."""
    pages = b"".join(map(bitmap.page, range(bitmap.page_count))) if bitmap.count else b""
    return int.from_bytes(pages, "little")


def snapshot(maps: Maps) -> dict[Place, int]:
    return {place: bits_of(bitmap) for place, bitmap in places(maps).items()}


def copy_maps(maps: Maps) -> Maps:
    return Maps(
        maps.intents.copy(),
        maps.remaining.copy(),
        {peer: bitmap.copy() for peer, bitmap in maps.dirty.items()},
    )


@dataclass(slots=True)
class Volume:
    """A volume's state in memory, from which commits are made as the core makes them."""

    facts: Facts
    maps: Maps
    number: int = 0

    def mark(self, place: Place, offset: int, length: int) -> None:
        places(self.maps)[place].mark(offset, min(length, SIZE_BYTES - offset))

    def clear(self, place: Place, offset: int, length: int) -> None:
        places(self.maps)[place].clear(offset, min(length, SIZE_BYTES - offset))

    def commit(self, facts: Facts | None, emptied: list[Place]) -> Commit:
        """Take every changed page. An emptied map sends only the pages that have bits again."""
        self.number += 1
        commit = Commit(self.number, facts, emptied=emptied)
        for place, bitmap in places(self.maps).items():
            for page_no in bitmap.take_changed():
                if place in emptied and not any(bitmap.page(page_no)):
                    continue
                commit.pages.append(MapPage(*place, page_no, bitmap.page(page_no)))
        if facts is not None:
            self.facts = facts
        return commit


def random_step(volume: Volume, choice: random.Random) -> Commit:
    """Change maps and facts at random, as the core's rules allow, and return the commit."""
    emptied: list[Place] = []
    for place, bitmap in places(volume.maps).items():
        action = choice.choice(("none", "none", "mark", "mark", "clear", "empty", "refill"))
        if action in ("empty", "refill"):
            bitmap.clear_all()
            emptied.append(place)
        if action in ("mark", "refill"):
            for _ in range(choice.randrange(1, 4)):
                volume.mark(place, choice.randrange(SIZE_BYTES), choice.choice((1, 4096, 1 << 28)))
        if action == "clear":
            start = choice.randrange(SIZE_BYTES)
            volume.clear(place, start, choice.choice((1 << 21, 1 << 30)))
    kind = choice.choice(("none", "none", "lineage", "flags", "clean", "peer"))
    facts: Facts | None = None
    if kind == "lineage" or (kind == "none" and emptied):
        counter = volume.facts.lineage[0].counter + 1 if volume.facts.lineage else 1
        newest = generation(counter, choice.randrange(1, 1 << 63))
        facts = replace(volume.facts, lineage=extend(volume.facts.lineage, newest, ()), clean=False)
    elif kind == "flags":
        facts = replace(volume.facts, outdated=not volume.facts.outdated, clean=False)
    elif kind == "clean":
        facts = replace(volume.facts, clean=True)
    elif kind == "peer" and len(volume.facts.peers) < 3:
        name = f"peer{len(volume.facts.peers)}"
        facts = replace(volume.facts, peers=(*volume.facts.peers, PeerRecord(name)), clean=False)
        volume.maps.dirty[name] = BlockMap(
            SIZE_BYTES, volume.maps.remaining.block_shift, volume.maps.remaining.page_bytes
        )
        volume.mark((MapName.DIRTY, name), choice.randrange(SIZE_BYTES), 1 << 22)
    return volume.commit(facts, emptied)


def required(
    commit: Commit, old: dict[Place, int], new: dict[Place, int], *, facts_new: bool
) -> dict[Place, int]:
    """The bits that must be there after a crash inside this commit.

    A bit that a page rewrite clears is free from the commit's start: who clears it has the copy. A
    bit that goes because its map is emptied goes with the facts and not before.
    """
    needed = {}
    for place in new:
        if place in commit.emptied:
            needed[place] = new[place] if facts_new else old.get(place, 0)
        elif facts_new and place[0] is not MapName.INTENTS:
            needed[place] = new[place]
        else:
            needed[place] = old.get(place, 0) & new[place]
    return needed


def assert_covers(loaded: Loaded, needed: dict[Place, int]) -> None:
    found = snapshot(loaded.maps)
    for place, bits in needed.items():
        missing = bits & ~found.get(place, 0)
        assert not missing, (place, f"{missing.bit_count()} bits lost")


def assert_exactly(loaded: Loaded, facts: Facts, bits: dict[Place, int]) -> None:
    """Nothing more, nothing less; of damage only a slot that no record has replaced yet."""
    assert loaded.facts == facts
    found = snapshot(loaded.maps)
    assert found.keys() == bits.keys()
    assert not [place for place in bits if found[place] != bits[place]]
    assert all(report.startswith("superblock slot") for report in loaded.reports)

"""What a node knows durably about one volume: the record in the metadata superblock.

`Facts` is immutable; every change makes a new record, which reaches the disk through a `Commit`
(outbox.py) before anything that depends on it happens. The bitmaps that go with it are `Maps`.
The format on disk is FORMAT.md's business, the meaning of each field is here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from repl.core.blockmap import DIRTY_PAGE_BYTES, INTENT_PAGE_BYTES, BlockMap
from repl.core.lineage import Generation, Lineage

#: A dirty map never takes more than this (design §6); the block size grows to keep it so.
DIRTY_MAP_BYTES_MAX = 32 << 20
BLOCK_SHIFT_MIN = 12
#: Write intents: 1 MiB extents, 4 MiB from this volume size on.
LARGE_VOLUME_BYTES = 1 << 40
TOKENS_KEPT = 2


@dataclass(frozen=True, slots=True)
class PeerRecord:
    """What is remembered about one configured peer."""

    name: str
    #: The id that the peer showed at the last agreed contact; 0 before the first.
    node_id: int = 0
    #: Contact tokens, newest first, at most two (design §5, handshake step 1).
    tokens: tuple[int, ...] = ()
    #: G7: ids of the last generation the peer confirmed storing and of the last one offered to it;
    #: 0 when its dirty map has no valid base.
    base_from: int = 0
    base_to: int = 0
    #: Wall-clock time at which the last contact ended; 0 while there is contact, and when this node
    #: went down in the middle of one. Shown to people, never compared.
    contact_lost_s: int = 0


@dataclass(frozen=True, slots=True)
class Facts:
    """The durable record of one volume on one node."""

    node_id: int
    size_bytes: int
    #: Made with the first generation; 0 while the volume is fresh.
    volume_id: int = 0
    #: Current generation first; empty while fresh.
    lineage: Lineage = ()
    is_primary: bool = False
    #: Applied but unsynced data may be gone (power loss); see `Volume.open`.
    cache_lost: bool = False
    #: A process of this node ended without a clean stop since the copies were last known equal. A
    #: sync may have failed in it, and the mark that this copy failed may not have been stored.
    crashed: bool = False
    #: Half copied: the target of a resync that has not ended, or a failed copy.
    inconsistent: bool = False
    #: With `inconsistent`: nothing in this copy can be trusted (a disk error).
    everything_suspect: bool = False
    #: With `inconsistent`: id of the generation that is being copied to here; 0 after a disk error.
    source_generation: int = 0
    outdated: bool = False
    #: The backing was created by us and has never been written.
    known_zeroes: bool = False
    #: This node gave its right to be promoted to its peer when it stopped; void at next contact.
    released: bool = False
    #: The peer gave its right to be promoted to this node; void at the next contact.
    holds_release: bool = False
    #: Ids of generations that this node, as the kept side of a split-brain, has discarded.
    discarded: tuple[int, ...] = ()
    #: The last close was a clean one; false while the volume is open.
    clean: bool = True
    #: The kernel's boot id at the last open; empty when unknown.
    boot_id: str = ""
    peers: tuple[PeerRecord, ...] = ()

    @property
    def fresh(self) -> bool:
        """Whether this copy holds no data generation yet."""
        return not self.lineage

    @property
    def generation(self) -> Generation:
        """The current generation of a volume that is not fresh."""
        return self.lineage[0]

    @property
    def alone(self) -> bool:
        """Whether the in-sync set is this node only."""
        return bool(self.lineage) and self.lineage[0].members == (self.node_id,)

    def peer(self, name: str) -> PeerRecord:
        """Return the record of a configured peer; an unknown name is our bug."""
        return next(record for record in self.peers if record.name == name)


def block_shift_for(size_bytes: int) -> int:
    """Return log2 of the dirty block size, so that a map takes at most 32 MiB."""
    shift = BLOCK_SHIFT_MIN
    while (size_bytes >> shift) > DIRTY_MAP_BYTES_MAX * 8:
        shift += 1
    return shift


def extent_shift_for(size_bytes: int) -> int:
    """Return log2 of the write-intent extent size."""
    return 22 if size_bytes > LARGE_VOLUME_BYTES else 20


@dataclass(slots=True)
class Maps:
    """The bitmaps of one volume in memory, the truth between two commits."""

    intents: BlockMap
    #: Blocks of this copy that a resync in progress has still to bring (or may have to).
    remaining: BlockMap
    #: By peer name: blocks that the peer may lack.
    dirty: dict[str, BlockMap] = field(default_factory=dict)

    @classmethod
    def empty(cls, size_bytes: int, peers: tuple[str, ...]) -> Maps:
        """Return clean maps of the right granularity for a volume of this size."""
        block_shift = block_shift_for(size_bytes)

        def blank() -> BlockMap:
            return BlockMap(size_bytes, block_shift, DIRTY_PAGE_BYTES)

        return cls(
            intents=BlockMap(size_bytes, extent_shift_for(size_bytes), INTENT_PAGE_BYTES),
            remaining=blank(),
            dirty={name: blank() for name in peers},
        )

"""What one turn of the core asks its engine to do, in the order in which it must happen.

The ordering law: *commit → disk ∥ send → reply*. The core keeps it by never emitting an effect
whose commit is not durable yet: a write to a cold extent is held inside the core until
`metadata_done`, and only then appears under `disk` and `send`. So an engine may carry out the
fields of one outbox in the order written here, start a commit in a thread, and go on with the next
turn meanwhile; at most one commit is under way at a time.

Extents, never bytes: payloads stay in the engine's buffers, under the op that came with them.
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, MutableSequence
from dataclasses import dataclass, field

from repl.core.facts import Facts
from repl.core.verdict import Verdict
from repl.core.wire import Type
from repl.events import Note

#: Names one client request (or one received frame) for as long as it is in flight. Opaque here.
Op = Hashable


class MapName(enum.Enum):
    """Which bitmap a page belongs to. A dirty map's page also names its peer."""

    INTENTS = "intents"
    REMAINING = "remaining"
    DIRTY = "dirty"


@dataclass(frozen=True, slots=True)
class MapPage:
    """The bits of one page as they were when the commit was made."""

    map: MapName
    peer: str  # "" unless map is DIRTY
    page_no: int
    bits: bytes


@dataclass(slots=True)
class Commit:
    """One metadata transaction. Its three steps are durable one after the other (FORMAT.md):

    1. `pages` of dirty and remaining maps; 2. the superblock, if `facts` is given, with a new epoch
    for every map in `emptied`; 3. `pages` of the intent map. A step with nothing to write is
    skipped, so a commit that only sets intents costs one sync.
    """

    number: int
    facts: Facts | None = None
    pages: list[MapPage] = field(default_factory=list)
    #: Maps whose every older page must read as zero from this commit on: (map, peer).
    emptied: list[tuple[MapName, str]] = field(default_factory=list)


#: (op, kind, offset, length): a client's write or zeroing, to be done here; answer `disk_done(op)`.
DiskJob = tuple[Op, "WriteKind", int, int]
#: (peer, type, seq, offset, length, flags, payload): a received frame, to be applied here in this
#: order; answer `applied(peer, seq)`, or `compared(...)` for a DIGEST frame.
ApplyJob = tuple[str, Type, int, int, int, int, object]
#: (chunk, offset, length, digest, peer): blocks to read for a resync; answer `chunk_read(...)`.
#: Chunk numbers are never reused in one process, so that a late answer cannot be mistaken.
CopyJob = tuple[int, int, int, bool, str]
#: (type, seq, offset, length, generation, flags, source): a frame for a peer. `source` is the
#: payload's bytes, None, or the `Op` (or chunk number) whose bytes at `offset` are the payload.
SendJob = tuple[Type, int, int, int, int, int, object]


class WriteKind(enum.IntEnum):
    """What a client write does. Trimmed and zeroed ranges both read as zeroes on every node."""

    WRITE = 0
    ZERO = 1
    TRIM = 2


class Outbox:
    """The effects of one turn; empty fields ask for nothing.

    No dataclass: one is made each turn, and a generated initializer is never compiled.
    """

    __slots__ = (
        "abandon_clients",
        "answers",
        "apply",
        "changed",
        "commit",
        "copies",
        "disk",
        "drop",
        "forget",
        "notes",
        "reads",
        "replies",
        "send",
        "sync",
    )

    def __init__(self) -> None:
        self.commit: Commit | None = None
        self.send: dict[str, list[SendJob]] = {}
        self.disk: list[DiskJob] = []
        self.apply: list[ApplyJob] = []
        self.reads: list[Op] = []
        self.copies: list[CopyJob] = []
        #: Number of a sync of the backing to start after all of the above; 0 for none.
        self.sync = 0
        #: (Declared wide so that a checker can put a list of its own here in a compiled build too.)
        self.replies: MutableSequence[Op] = []
        #: Requests of abandoned clients of which nothing happened: release their payloads.
        self.forget: list[Op] = []
        #: Close every client connection without an answer: their clients re-send elsewhere.
        self.abandon_clients = False
        #: Connections to close: (peer, reason).
        self.drop: list[tuple[str, str]] = []
        #: Answers to operators' requests: (request number, verdict).
        self.answers: list[tuple[int, Verdict]] = []
        #: Events, and sentences for the log.
        self.notes: list[Note] = []
        #: What status shows has changed.
        self.changed = False

    @property
    def empty(self) -> bool:
        """Whether nothing is asked for."""
        return not (
            self.send
            or self.disk
            or self.apply
            or self.reads
            or self.copies
            or self.replies
            or self.commit
            or self.sync
            or self.forget
            or self.abandon_clients
            or self.drop
            or self.answers
            or self.notes
            or self.changed
        )

"""What clients were promised, sector by sector, and the judge of every copy that is served.

A sector may hold the last write that must have survived, or any write that was in flight then or
later; nothing else. An acknowledged write must survive as long as one node still has it: a loss of
power takes from a node what was not made durable there for good.
"""

from __future__ import annotations

import enum
import struct

from tests.sim.disk import SECTOR_BYTES

_TOKEN = struct.Struct("<QQ")
_REPEATS = SECTOR_BYTES // _TOKEN.size
_ZEROES = bytes(SECTOR_BYTES)


class OpKind(enum.Enum):
    """What a client asks for."""

    WRITE = "write"
    ZERO = "zero"
    TRIM = "trim"
    FLUSH = "flush"
    READ = "read"


NODES = frozenset({"alpha", "beta"})
WRITES = frozenset({OpKind.WRITE, OpKind.ZERO, OpKind.TRIM})


class Violation(AssertionError):
    """The simulated system broke a promise."""


def sector_bytes(version: int, sector: int) -> bytes:
    """The contents that a version gives to a sector; 0 is all zeroes."""
    if not version:
        return _ZEROES
    return _TOKEN.pack(version, sector) * _REPEATS


def payload_of(version: int, offset: int, length: int) -> bytes:
    """The payload of a write: every sector shows its version and where it belongs."""
    first = offset // SECTOR_BYTES
    return b"".join(
        sector_bytes(version, sector) for sector in range(first, first + length // SECTOR_BYTES)
    )


class Op:
    """One request of one client. Compared by identity, as the core's ops are."""

    __slots__ = (
        "acked",
        "ended",
        "fua",
        "holders",
        "kind",
        "length",
        "losable",
        "number",
        "offset",
        "owner",
        "payload",
        "permanent",
        "submitted",
    )

    def __init__(self, number: int, kind: OpKind, offset: int, length: int, fua: bool) -> None:
        self.number = number
        self.kind = kind
        self.offset = offset
        self.length = length
        self.fua = fua
        self.payload = payload_of(number, offset, length) if kind is OpKind.WRITE else b""
        self.owner: object = None
        self.submitted = 0
        #: When it was answered or given up; None while it is in flight.
        self.ended: int | None = None
        self.acked = False
        #: Nodes that hold an acknowledged write, in their cache at least.
        self.holders: set[str] = set()
        self.permanent = False
        self.losable = False

    @property
    def version(self) -> int:
        return self.number if self.kind is OpKind.WRITE else 0

    def __repr__(self) -> str:
        fua = " fua" if self.fua else ""
        return f"{self.kind.value} v{self.number} {self.offset}+{self.length}{fua}"


class Ledger:
    """The history of all requests."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._moment = 0
        start = Op(0, OpKind.ZERO, 0, size_bytes, False)
        start.ended, start.acked, start.permanent = 0, True, True
        #: Per sector, the writes that it may still show, in the order of their submission.
        self._sectors: list[list[Op]] = [[start] for _ in range(size_bytes // SECTOR_BYTES)]
        #: Acknowledged writes that a loss of power can still take, oldest first.
        self._volatile: dict[Op, None] = {}
        self._power_lost: dict[str, int] = {}
        #: Nodes that lack an acknowledged write: it was answered without them.
        self.behind: set[str] = set()
        self.acked_writes = 0
        self.acked_flushes = 0
        #: Of these, writes that were answered without one of the nodes.
        self.acked_alone = 0
        self._parent: Ledger | None = None
        #: What the parent had acknowledged alone when this line began.
        self._parent_acked = 0
        #: The parent had acknowledged writes that this line lacks, and nobody gave them up.
        self._lacks = False
        #: Its copy gave it up, and was allowed to.
        self.ended = False

    def _now(self) -> int:
        self._moment += 1
        return self._moment

    @property
    def moment(self) -> int:
        return self._moment

    def submitted(self, op: Op) -> None:
        """A client sent it."""
        op.submitted = self._now()
        if op.kind in WRITES:
            first = op.offset // SECTOR_BYTES
            for sector in range(first, first + op.length // SECTOR_BYTES):
                self._sectors[sector].append(op)

    def answered(self, op: Op, holders: set[str]) -> None:
        """A client got its answer: from now on it counts on it."""
        if op.ended is not None:
            raise Violation(f"{op} was answered twice, or after its client was gone")
        op.ended = self._now()
        op.acked = True
        if op.kind is OpKind.FLUSH:
            self.acked_flushes += 1
            self._make_permanent(before=op.submitted)
        elif op.kind in WRITES:
            self.acked_writes += 1
            self.behind |= NODES - holders
            self.acked_alone += holders != NODES
            # What a node applied before it lost power is in no cache any more.
            op.holders = {node for node in holders if self._power_lost.get(node, 0) < op.submitted}
            op.losable = not op.holders
            if op.fua:
                op.permanent, op.losable = True, False
            elif op.holders:
                self._volatile[op] = None

    def given_up(self, op: Op) -> None:
        """It will never be answered and can have no effect from now on."""
        if op.ended is None:
            op.ended = self._now()

    def power_lost(self, node: str) -> None:
        """What was only in this node's cache is gone."""
        self._power_lost[node] = self._now()
        for op in list(self._volatile):
            op.holders.discard(node)
            if not op.holders:
                op.losable = True
                del self._volatile[op]

    def _make_permanent(self, before: int) -> None:
        for op in list(self._volatile):
            assert op.ended is not None
            if op.ended < before:
                op.permanent = True
                del self._volatile[op]

    def durable_everywhere(self, before: int) -> None:
        """A join or a settle ended: what was acknowledged before is durable on every member."""
        self._make_permanent(before)

    def went_alone(self, node: str) -> None:
        """The node stored a generation of its own: what it holds is durable there (G3)."""
        for op in list(self._volatile):
            if node in op.holders:
                op.permanent = True
                del self._volatile[op]

    # Judging.

    def check(self, image: bytes | bytearray, what: str, start: int = 0) -> None:
        """Raise `Violation` unless every sector of the image (at `start`) may be read now."""
        first = start // SECTOR_BYTES
        for index in range(len(image) // SECTOR_BYTES):
            place = index * SECTOR_BYTES
            self._check_sector(first + index, image[place : place + SECTOR_BYTES], what)

    def _check_sector(self, sector: int, found: bytes | bytearray, what: str) -> None:
        history = self._sectors[sector]
        if len(history) == 1:
            if found == sector_bytes(history[0].version, sector):
                return
        else:
            self._prune(sector)
            history = self._sectors[sector]
        for op in self._allowed(history):
            if found == sector_bytes(op.version, sector):
                return
        allowed = [repr(op) for op in self._allowed(history)]
        raise Violation(
            f"{what}: sector {sector} (byte {sector * SECTOR_BYTES}) shows "
            f"{_describe(found, sector)}, allowed: {'; '.join(allowed)}"
        )

    def _allowed(self, history: list[Op]) -> list[Op]:
        surviving = max((op.submitted for op in history if op.acked and not op.losable), default=0)
        return [op for op in history if op.ended is None or op.ended >= surviving]

    def _prune(self, sector: int) -> None:
        history = self._sectors[sector]
        surviving = max((op.submitted for op in history if op.permanent), default=0)
        self._sectors[sector] = [op for op in history if op.ended is None or op.ended >= surviving]

    def narrow(self, image: bytes | bytearray) -> None:
        """All is quiet, equal and durable: what is there now is what there was all along."""
        for sector, history in enumerate(self._sectors):
            if len(history) > 1:
                place = sector * SECTOR_BYTES
                found = image[place : place + SECTOR_BYTES]
                self._sectors[sector] = [
                    op for op in self._allowed(history) if found == sector_bytes(op.version, sector)
                ][-1:]
                self._sectors[sector][0].permanent = True
                self._volatile.pop(self._sectors[sector][0], None)

    # Lines of copies (lines.py).

    def fork(self, image: bytes | bytearray, *, lacks: bool) -> Ledger:
        """Begin the line of a copy that is promoted as it is.

        `lacks`: this line acknowledged writes that the copy does not hold and nobody gave up.
        """
        line = Ledger(self.size_bytes)
        line._moment = self._moment
        line._power_lost = dict(self._power_lost)
        line.lose_history(image)
        line._parent, line._parent_acked, line._lacks = self, self.acked_alone, lacks
        return line

    def _origins(self) -> dict[Ledger, int]:
        """This line and those that it comes from, with what each had acknowledged alone of it."""
        origins, line = {self: self.acked_alone}, self
        while line._parent is not None:
            origins[line._parent] = line._parent_acked
            line = line._parent
        return origins

    def comes_from(self, line: Ledger) -> bool:
        """Whether this line is that one, or began as a copy of it."""
        return line in self._origins()

    def gives_up(self, kept: Ledger) -> bool:
        """Whether a copy of this line may be made like one of `kept` without anybody's word.

        It may if all that it acknowledged was known to the other line when that one began, or given
        up by an operator then; what it acknowledged apart from it must be kept.
        """
        theirs = kept._origins()
        for line, acked in self._origins().items():
            if line in theirs:
                branch = next((child for child in theirs if child._parent is line), None)
                lacks = branch is not None and branch._lacks
                return line.ended or (acked <= theirs[line] and not lacks)
            if acked and not line.ended:
                return False
        return True

    def lose_history(self, image: bytes | bytearray) -> None:
        """An operator accepted the loss of data: what this copy holds is the truth from now on."""
        self._volatile.clear()
        for sector in range(len(self._sectors)):
            place = sector * SECTOR_BYTES
            version = _version(image[place : place + SECTOR_BYTES])
            truth = Op(version, OpKind.WRITE if version else OpKind.ZERO, 0, 0, False)
            truth.submitted = truth.ended = self._moment
            truth.acked = truth.permanent = True
            in_flight = [op for op in self._sectors[sector] if op.ended is None]
            self._sectors[sector] = [truth, *in_flight]


def _version(found: bytes | bytearray) -> int:
    version: int = _TOKEN.unpack_from(found)[0]
    return version


def _describe(found: bytes | bytearray, sector: int) -> str:
    version, shown = _TOKEN.unpack_from(found)
    if found == sector_bytes(version, sector):
        return f"v{version}" if version else "zeroes"
    return f"foreign bytes (version {version}, sector {shown})"

"""What clients were promised, sector by sector, and the judge of every copy that is served.

A sector may hold the last write that must have survived, or any write that was in flight then or
later; nothing else. An acknowledged write must survive as long as one node still has it: a loss of
power takes from a node what was not made durable there for good.

There is one ledger for as long as nobody gives up data. When an operator does (he vouches for a
peer that acknowledged writes alone, or accepts a loss by name), the copy that is promoted goes on
under a ledger of its own, made by `fork` of what that copy holds; the other copy keeps the old one,
and `gives_up` says whether it may ever be overwritten without another word.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterable

from tests.sim.disk import SECTOR_BYTES
from tests.sim.violation import Rule, Violation

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
        "ledger",
        "length",
        "losable",
        "number",
        "offset",
        "only_on",
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
        #: The ledger that it was submitted under.
        self.ledger: Ledger | None = None
        self.submitted = 0
        #: When it was answered or given up; None while it is in flight.
        self.ended: int | None = None
        self.acked = False
        #: Nodes that hold an acknowledged write, in their cache at least.
        self.holders: set[str] = set()
        #: No loss of power can take it; with `only_on`, as long as this node's disk lives.
        self.permanent = False
        self.only_on = ""
        self.losable = False

    def sector(self, sector: int) -> bytes:
        """What it gives to one of its sectors."""
        if self.kind is not OpKind.WRITE:
            return _ZEROES
        place = sector * SECTOR_BYTES - self.offset
        return self.payload[place : place + SECTOR_BYTES]

    def again(self) -> Op:
        """The same request, re-sent on another connection."""
        return Op(self.number, self.kind, self.offset, self.length, self.fua)

    def __repr__(self) -> str:
        fua = " fua" if self.fua else ""
        return f"{self.kind.value} v{self.number} {self.offset}+{self.length}{fua}"


class _Sector:
    """The writes that a sector may still show, in the order of their submission."""

    __slots__ = ("ops", "settled")

    def __init__(self) -> None:
        self.ops: list[Op] = []
        #: Whether it may still show what it held before all of them.
        self.settled = True


class Ledger:
    """The history of all requests to one line of copies."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._moment = 0
        #: What every sector without an entry in `_open` holds, and the others held before.
        self._settled = bytearray(size_bytes)
        self._open: dict[int, _Sector] = {}
        #: Acknowledged writes that a loss of power can still take, oldest first.
        self._volatile: dict[Op, None] = {}
        #: Those that are permanent on one node only.
        self._singly: dict[Op, None] = {}
        self._power_lost: dict[str, int] = {}
        #: Nodes that lack an acknowledged write: it was answered without them.
        self.behind: set[str] = set()
        self.acked_writes = 0
        self.acked_flushes = 0
        #: By node: acknowledged writes that it does not hold.
        self._without = dict.fromkeys(sorted(NODES), 0)
        #: Writes that were answered without one of the nodes.
        self.acked_alone = 0
        self._parent: Ledger | None = None
        self._node = ""
        #: What the parent had acknowledged without each node when this line began.
        self._parent_without: dict[str, int] = {}
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
        op.ledger = self
        op.submitted = self._now()
        if op.kind in WRITES:
            first = op.offset // SECTOR_BYTES
            for sector in range(first, first + op.length // SECTOR_BYTES):
                history = self._open.get(sector)
                if history is None:
                    history = self._open[sector] = _Sector()
                history.ops.append(op)

    def answered(self, op: Op, holders: set[str]) -> list[Op]:
        """A client got its answer: from now on it counts on it. Return what is permanent by it."""
        if op.ended is not None:
            raise Violation(Rule.OPS, f"{op} was answered twice, or after its client was gone")
        op.ended = self._now()
        op.acked = True
        only_on = min(holders) if len(holders) == 1 else ""
        if op.kind is OpKind.FLUSH:
            self.acked_flushes += 1
            return self._make_permanent(op.submitted, only_on)
        if op.kind in WRITES:
            self.acked_writes += 1
            self.acked_alone += holders != NODES
            for node in NODES - holders:
                self.behind.add(node)
                self._without[node] += 1
            # What a node applied before it lost power is in no cache any more.
            op.holders = {node for node in holders if self._power_lost.get(node, 0) < op.submitted}
            op.losable = not op.holders
            if op.fua:
                op.losable = False
                self._fix(op, only_on)
                return [op]
            if op.holders:
                self._volatile[op] = None
        return []

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
        for op in self._singly:
            if op.only_on != node:
                op.holders.discard(node)

    def copy_lost(self, node: str) -> None:
        """This node's copy is worth nothing any more, what was durable there included."""
        self.power_lost(node)
        for op in [op for op in self._singly if op.only_on == node]:
            del self._singly[op]
            op.permanent, op.only_on = False, ""
            op.holders.discard(node)
            if op.holders:
                self._volatile[op] = None
            else:
                op.losable = True

    def _make_permanent(self, before: int, only_on: str = "") -> list[Op]:
        made = [op for op in self._volatile if op.ended is not None and op.ended < before]
        for op in made:
            del self._volatile[op]
            self._fix(op, only_on)
        return made

    def _fix(self, op: Op, only_on: str) -> None:
        op.permanent, op.only_on = True, only_on
        if only_on:
            self._singly[op] = None

    def durable_everywhere(self, until: int) -> None:
        """A join or a settle ended: what was acknowledged by then is durable on every member."""
        self._make_permanent(until + 1)
        for op in [op for op in self._singly if op.ended is not None and op.ended <= until]:
            del self._singly[op]
            op.only_on = ""

    def went_alone(self, node: str) -> None:
        """The node stored a generation of its own: what it holds is durable there (G3)."""
        for op in list(self._volatile):
            if node in op.holders:
                del self._volatile[op]
                self._fix(op, node)

    def left_to(self, heir: str, *, by: str) -> None:
        """A node gives its copy up: what it holds is said to be durable on the heir's (the caller
        looks whether it is). Raises `Violation` where the heir does not even hold it."""
        for op in [op for op in (*self._volatile, *self._singly) if by in op.holders]:
            if heir not in op.holders or op.only_on == by:
                text = f"{by} gives up its copy; {heir} lacks {op}, which was acknowledged"
                raise Violation(Rule.LEDGER, text)
            if op in self._volatile:
                del self._volatile[op]
                self._fix(op, heir)

    def kept_by(self, nodes: list[str]) -> bool:
        """Whether one of these nodes' caches has all that is acknowledged and not yet durable."""
        return all(any(node in op.holders for node in nodes) for op in self._volatile)

    # Judging.

    def check(
        self, image: bytes | bytearray, what: str, start: int = 0, *, durable: bool = False
    ) -> None:
        """Raise `Violation` unless every sector of the image (at `start`) may be read now.

        With `durable` only what no loss of power may take has to be there.
        """
        first, last = start // SECTOR_BYTES, (start + len(image)) // SECTOR_BYTES
        expected = self._settled[start : start + len(image)]
        for sector in self._open_in(first, last):
            place = (sector - first) * SECTOR_BYTES
            found = image[place : place + SECTOR_BYTES]
            self._check_sector(sector, found, what, durable)
            expected[place : place + SECTOR_BYTES] = found
        if expected != image:
            for place in range(0, len(image), SECTOR_BYTES):
                found = image[place : place + SECTOR_BYTES]
                if found != expected[place : place + SECTOR_BYTES]:
                    sector = first + place // SECTOR_BYTES
                    wanted = _describe(expected[place : place + SECTOR_BYTES], sector)
                    raise self._wrong(sector, found, [wanted], what)

    def check_lasts(self, op: Op, image: bytes | bytearray, what: str) -> None:
        """Raise `Violation` unless this image of its range holds the write, or a later one."""
        permanent, op.permanent = op.permanent, True
        try:
            self.check(image, what, op.offset, durable=True)
        finally:
            op.permanent = permanent

    def check_written(
        self, read: Callable[[int], bytes | bytearray], what: str, *, durable: bool
    ) -> None:
        """The same for every sector that was written since all was quiet, given by `read`."""
        for sector in self._open:
            self._check_sector(sector, read(sector * SECTOR_BYTES), what, durable)

    def _open_in(self, first: int, last: int) -> Iterable[int]:
        """The sectors of a range that show anything but what is settled."""
        if last - first < len(self._open):
            return [sector for sector in range(first, last) if sector in self._open]
        return [sector for sector in self._open if first <= sector < last]

    def _check_sector(
        self, sector: int, found: bytes | bytearray, what: str, durable: bool
    ) -> None:
        history = self._open[sector]
        if history.ops and found == history.ops[-1].sector(sector):
            return  # nothing can supersede the last write
        self._prune(history)
        settled, allowed = self._allowed(history, durable)
        place = sector * SECTOR_BYTES
        before = self._settled[place : place + SECTOR_BYTES]
        if settled and found == before:
            return
        if any(found == op.sector(sector) for op in allowed):
            return
        shown = [f"{op!r}{' acked' if op.acked else ''}" for op in allowed]
        if settled:
            shown.insert(0, _describe(before, sector))
        raise self._wrong(sector, found, shown, what)

    def _wrong(
        self, sector: int, found: bytes | bytearray, allowed: list[str], what: str
    ) -> Violation:
        return Violation(
            Rule.LEDGER,
            f"{what}: sector {sector} (byte {sector * SECTOR_BYTES}) shows "
            f"{_describe(found, sector)}, allowed: {'; '.join(allowed)}",
        )

    def _allowed(self, history: _Sector, durable: bool) -> tuple[bool, list[Op]]:
        surviving = max(
            (
                op.submitted
                for op in history.ops
                if op.permanent or (op.acked and not op.losable and not durable)
            ),
            default=0,
        )
        ops = [op for op in history.ops if op.ended is None or op.ended >= surviving]
        return history.settled and not surviving, ops

    def _prune(self, history: _Sector) -> None:
        surviving = max(
            (op.submitted for op in history.ops if op.permanent and not op.only_on), default=0
        )
        if surviving:
            history.settled = False
            history.ops = [op for op in history.ops if op.ended is None or op.ended >= surviving]

    def narrow(self, image: bytes | bytearray) -> None:
        """All is quiet, equal and durable: what is there now is what there was all along."""
        self.check(image, "all is quiet")
        self._settled[:] = image
        self._open = {
            sector: still
            for sector, history in self._open.items()
            if (still := _in_flight_only(history)).ops
        }
        self._volatile.clear()
        self._singly.clear()

    # Lines of copies.

    def fork(self, node: str, image: bytes | bytearray, *, lacks: bool) -> Ledger:
        """Begin the line of the copy of this node, which is promoted as it is.

        `lacks`: this line acknowledged writes that the copy does not hold and nobody gave up.
        """
        line = Ledger(self.size_bytes)
        line._moment = self._moment
        line._power_lost = dict(self._power_lost)
        line._settled[:] = image[: self.size_bytes]
        line._parent, line._node, line._lacks = self, node, lacks
        line._parent_without = dict(self._without)
        return line

    def _origins(self) -> dict[Ledger, dict[str, int]]:
        """This line and those that it comes from, with what each had answered without a node by the
        time at which this one left it."""
        origins, line = {self: self._without}, self
        while line._parent is not None:
            origins[line._parent] = line._parent_without
            line = line._parent
        return origins

    def comes_from(self, line: Ledger) -> bool:
        """Whether this line is that one, or began as a copy of it."""
        return line in self._origins()

    def gives_up(self, kept: Ledger) -> bool:
        """Whether a copy under this ledger may be overwritten by one under `kept`.

        It may if all that it acknowledged was either known to the other line when that one began,
        or given up by an operator then. What was acknowledged apart from it must be kept.
        """
        theirs = kept._origins()
        for line, without in self._origins().items():
            if line is kept:
                return True
            if line in theirs:
                if line.ended:
                    return True
                branch = next(child for child in theirs if child._parent is line)
                then = branch._parent_without[branch._node]
                return without[branch._node] <= then and not branch._lacks
            if line.acked_writes and not line.ended:
                return False
        return True

    def lose_history(self, image: bytes | bytearray) -> None:
        """An operator accepted the loss of data: what this copy holds is the truth from now on."""
        self._volatile.clear()
        self._singly.clear()
        self._settled[:] = image[: self.size_bytes]
        self._open = {
            sector: still
            for sector, history in self._open.items()
            if (still := _in_flight_only(history)).ops
        }


def _in_flight_only(history: _Sector) -> _Sector:
    left = _Sector()
    left.ops = [op for op in history.ops if op.ended is None]
    return left


def _describe(found: bytes | bytearray, sector: int) -> str:
    version, shown = _TOKEN.unpack_from(found)
    if found == sector_bytes(version, sector):
        return f"v{version}" if version else "zeroes"
    return f"foreign bytes (version {version}, sector {shown})"

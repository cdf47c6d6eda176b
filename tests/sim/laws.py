"""The ordering law, checked at every effect: nothing leaves a node before what it rests on is
durable there. Watches the commits themselves, not what the core believes about them."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, cast

from repl.core.facts import Facts, Maps
from repl.core.outbox import Commit, MapName, SendJob
from repl.core.wire import Type
from tests.sim.ledger import Op
from tests.sim.violation import Rule, Violation

if TYPE_CHECKING:
    from repl.core.volume import Volume


#: Frames by which a side gives a right or a copy away.
_LAST_WORDS = frozenset({Type.DISCARD, Type.DISCARDED, Type.RESOLVE_ANSWER, Type.LEAVE})
#: The in-sync set, and whether the copy was inconsistent.
Decided = tuple[tuple[int, ...], bool]


class Replies(list[object]):
    """An outbox's replies that remember under which in-sync set each was decided, and whether the
    copy was whole.

    Both may change in memory later in the same turn; that does not touch what was decided.
    """

    def __init__(self, volume: Volume, decided: dict[object, Decided]) -> None:
        super().__init__()
        self._volume = volume
        self._decided = decided

    def append(self, op: object) -> None:
        facts = self._volume.facts
        self._decided[op] = (facts.generation.members, facts.inconsistent)
        super().append(op)

    def __iadd__(self, ops: Iterable[object]) -> Replies:  # type: ignore[misc]
        for op in ops:
            self.append(op)
        return self


class Laws:
    """What is durable in one node's metadata, and the effects that need it."""

    def __init__(self, name: str, facts: Facts, maps: Maps) -> None:
        self._name = name
        self.facts = facts
        self._known = {entry.id for entry in facts.lineage}
        self._shift = maps.intents.block_shift
        self._intents: dict[int, int] = {
            page_no: int.from_bytes(maps.intents.page(page_no), "little")
            for page_no in range(maps.intents.page_count)
        }
        self._page_bits = maps.intents.page_bytes * 8
        self._decided: dict[object, Decided] = {}
        #: As many extents may be under an intent on disk while the commit under way goes on.
        self.marked = 0
        #: Extents of the largest request that was made here.
        self._largest = 0

    def _broken(self, text: str) -> Violation:
        return Violation(Rule.ORDER, f"{self._name}: {text}")

    # What becomes durable.

    def commit_begins(self, commit: Commit) -> None:
        """From now on, bits that the commit clears may be clear on disk, those it sets be set."""
        self.marked = sum(bits.bit_count() for bits in self._intents.values())
        for page in commit.pages:
            if page.map is MapName.INTENTS:
                bits = int.from_bytes(page.bits, "little")
                self.marked += (bits & ~self._intents[page.page_no]).bit_count()
                self._intents[page.page_no] &= bits

    def commit_done(self, commit: Commit) -> None:
        """All of the commit is durable."""
        for page in commit.pages:
            if page.map is MapName.INTENTS:
                self._intents[page.page_no] = int.from_bytes(page.bits, "little")
        if commit.facts is not None:
            old = self.facts
            self.stored(commit.facts)
            self._lineage_grows(old, self.facts)

    def stored(self, facts: Facts) -> None:
        """This is what a restart would read."""
        self.facts = facts
        self._known = {entry.id for entry in facts.lineage}

    def _lineage_grows(self, old: Facts, new: Facts) -> None:
        if not old.lineage:
            return
        if old.generation.id in self._known:
            return
        # Only a fork that answered nothing is ever given up, and then the copy is a target.
        older = {entry.id for entry in old.lineage}
        if not new.inconsistent or not new.lineage or new.generation.id not in older:
            raise Violation(Rule.LINEAGE, f"{self._name}: the lineage went back")

    def requested(self, offset: int, length: int) -> None:
        """A client wants to change this range."""
        extents = ((offset + length - 1) >> self._shift) - (offset >> self._shift) + 1
        self._largest = max(self._largest, extents)

    def check_bound(self, limit: int) -> None:
        """A crash of this primary would leave no more suspects than the bound says."""
        allowed = limit if self._largest <= limit else limit + self._largest
        if self.marked > allowed:
            text = f"{self._name}: {self.marked} extents are under an intent, {limit} may be"
            raise Violation(Rule.BOUND, text)

    # What rests on it.

    def data_written(self, offset: int, length: int) -> None:
        """Data reaches the disk: its extents are durable intents."""
        for extent in range(offset >> self._shift, ((offset + length - 1) >> self._shift) + 1):
            page_no, bit = divmod(extent, self._page_bits)
            if not self._intents[page_no] >> bit & 1:
                raise self._broken(f"{offset}+{length} is written, extent {extent} has no intent")

    def watch(self, volume: Volume) -> None:
        """Note the replies of the turn that begins."""
        volume.outbox.replies = cast("list[Hashable]", Replies(volume, self._decided))

    def answered(self, op: Op) -> tuple[int, ...]:
        """A client is answered: the mark and the role are durable. Return who must hold it."""
        members, inconsistent = self._decided.pop(op)
        facts = self.facts
        if not facts.lineage or facts.generation.primary != facts.node_id:
            raise self._broken(f"{op} answered; the stored primary is another node")
        if not facts.is_primary:
            raise self._broken(f"{op} answered; the role is not stored")
        if not facts.generation.answered:
            raise self._broken(f"{op} answered before the generation's mark is stored")
        if facts.generation.members != members:
            raise self._broken(f"{op} answered for a set that is not stored yet")
        if facts.inconsistent or inconsistent:
            text = f"{self._name}: {op} answered from an inconsistent copy"
            raise Violation(Rule.INCONSISTENT, text)
        return members

    def forgotten(self, op: Op) -> None:
        """Nobody is told of this request's end."""
        self._decided.pop(op, None)

    def sent(self, job: SendJob) -> None:
        """A frame leaves: what it says is stored."""
        kind, seq, _offset, _length, generation, _flags, source = job
        facts = self.facts
        if generation and generation not in self._known:
            raise self._broken(f"{Type(kind).name} under a generation not stored")
        if kind in (Type.HELLO, Type.GENERATION):
            assert isinstance(source, bytes)
            lineage = json.loads(source)["lineage"]
            if [entry["id"] for entry in lineage] != [entry.id for entry in facts.lineage]:
                raise self._broken(f"{Type(kind).name} shows what is not stored")
        elif kind == Type.GENERATION_STORED and [entry.id for entry in facts.lineage[:1]] != [seq]:
            raise self._broken("it confirms a generation that it has not stored")
        elif kind == Type.PROMOTE_ANSWER:
            assert isinstance(source, bytes)
            if json.loads(source)["agree"] and facts.is_primary:
                raise self._broken("it agrees while it is stored as primary")
        elif kind in _LAST_WORDS:
            self._gives_up(kind, seq, source)

    def _gives_up(self, kind: int, seq: int, source: object) -> None:
        """The same for frames by which a side gives a right or a copy away."""
        facts = self.facts
        if kind == Type.DISCARD and seq not in facts.discarded:
            raise self._broken("it tells that it is kept, which is not stored")
        if kind == Type.DISCARDED and (seq == facts.generation.id or not facts.inconsistent):
            raise self._broken("it gave nothing up that is stored, and says so")
        if kind == Type.RESOLVE_ANSWER:
            assert isinstance(source, bytes)
            if json.loads(source)["agree"] and not facts.outdated:
                raise self._broken("it agrees to be given up, which is not stored")
        if kind == Type.LEAVE:
            assert isinstance(source, bytes)
            if not (facts.released or facts.inconsistent):
                raise self._broken("it leaves without having stored the release")
            stored = facts.outdated or facts.everything_suspect
            if json.loads(source)["outdated"] and not stored:
                raise self._broken("it says that it is outdated, which is not stored")

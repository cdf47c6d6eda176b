"""The ordering law, checked at every effect: nothing leaves a node before what it rests on is
durable there. Watches the commits themselves, not what the core believes about them."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING, cast

from repl.core.facts import Facts, Maps
from repl.core.outbox import Commit, MapName, SendJob
from repl.core.wire import Type
from tests.sim.ledger import Op, Violation

if TYPE_CHECKING:
    from repl.core.volume import Volume


class Replies(list[object]):
    """An outbox's replies that remember under which in-sync set each was decided.

    The set may change in memory later in the same turn; that does not touch what was decided.
    """

    def __init__(self, volume: Volume, decided: dict[object, tuple[int, ...]]) -> None:
        super().__init__()
        self._volume = volume
        self._decided = decided

    def append(self, op: object) -> None:
        self._decided[op] = self._volume.facts.generation.members
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
        self._shift = maps.intents.block_shift
        self._intents: dict[int, int] = {
            page_no: int.from_bytes(maps.intents.page(page_no), "little")
            for page_no in range(maps.intents.page_count)
        }
        self._page_bits = maps.intents.page_bytes * 8
        self._decided: dict[object, tuple[int, ...]] = {}

    def commit_begins(self, commit: Commit) -> None:
        """From now on, bits that the commit clears may be clear on disk."""
        for page in commit.pages:
            if page.map is MapName.INTENTS:
                self._intents[page.page_no] &= int.from_bytes(page.bits, "little")

    def commit_done(self, commit: Commit) -> None:
        """All of the commit is durable."""
        for page in commit.pages:
            if page.map is MapName.INTENTS:
                self._intents[page.page_no] = int.from_bytes(page.bits, "little")
        if commit.facts is not None:
            old, self.facts = self.facts, commit.facts
            self._lineage_grows(old, self.facts)

    def _lineage_grows(self, old: Facts, new: Facts) -> None:
        if not old.lineage:
            return
        ids = [entry.id for entry in new.lineage]
        if old.generation.id in ids:
            return
        # Only a fork that answered nothing is ever given up, and then the copy is a target.
        if not new.inconsistent or not ids or ids[0] not in [e.id for e in old.lineage]:
            raise Violation(f"{self._name}: the lineage went back")

    def data_written(self, offset: int, length: int) -> None:
        """Data reaches the disk: its extents are durable intents."""
        for extent in range(offset >> self._shift, ((offset + length - 1) >> self._shift) + 1):
            page_no, bit = divmod(extent, self._page_bits)
            if not self._intents[page_no] >> bit & 1:
                raise Violation(
                    f"{self._name}: {offset}+{length} is written, extent {extent} has no intent"
                )

    def watch(self, volume: Volume) -> None:
        """Note the replies of the turn that begins."""
        volume.outbox.replies = cast("list[Hashable]", Replies(volume, self._decided))

    def answered(self, op: Op, volume: Volume) -> tuple[int, ...]:
        """A client is answered: the mark and the role are durable. Return who must hold it."""
        decided = self._decided.pop(op)
        facts = self.facts
        if not facts.lineage or facts.generation.primary != facts.node_id:
            raise Violation(f"{self._name}: {op} answered; the stored primary is another node")
        if not facts.is_primary:
            raise Violation(f"{self._name}: {op} answered; the role is not stored")
        if not facts.generation.answered:
            raise Violation(f"{self._name}: {op} answered before the generation's mark is stored")
        if facts.generation.members != decided:
            raise Violation(f"{self._name}: {op} answered for a set that is not stored yet")
        if facts.inconsistent or volume.facts.inconsistent:
            raise Violation(f"{self._name}: {op} answered from an inconsistent copy")
        return decided

    def sent(self, job: SendJob) -> None:
        """A frame leaves: what it says is stored."""
        kind, seq, _offset, _length, generation, _flags, source = job
        facts = self.facts
        known = {entry.id for entry in facts.lineage}
        if generation and generation not in known:
            raise Violation(f"{self._name}: {Type(kind).name} under a generation not stored")
        if kind in (Type.HELLO, Type.GENERATION):
            assert isinstance(source, bytes)
            lineage = json.loads(source)["lineage"]
            if [entry["id"] for entry in lineage] != [entry.id for entry in facts.lineage]:
                raise Violation(f"{self._name}: {Type(kind).name} shows what is not stored")
        if kind == Type.GENERATION_STORED and facts.generation.id != seq:
            raise Violation(f"{self._name}: it confirms a generation that it has not stored")
        if kind == Type.PROMOTE_ANSWER:
            assert isinstance(source, bytes)
            if json.loads(source)["agree"] and facts.is_primary:
                raise Violation(f"{self._name}: it agrees while it is stored as primary")
        if kind == Type.DISCARD and seq not in facts.discarded:
            raise Violation(f"{self._name}: it tells that it is kept, which is not stored")
        if kind == Type.DISCARDED and (seq == facts.generation.id or not facts.inconsistent):
            raise Violation(f"{self._name}: it gave nothing up that is stored, and says so")
        if kind == Type.RESOLVE_ANSWER:
            assert isinstance(source, bytes)
            if json.loads(source)["agree"] and not facts.outdated:
                raise Violation(f"{self._name}: it agrees to be given up, which is not stored")
        if kind == Type.LEAVE and not (facts.released or facts.inconsistent):
            raise Violation(f"{self._name}: it leaves without having stored the release")
        if kind == Type.LEAVE:
            assert isinstance(source, bytes)
            stored = facts.outdated or facts.everything_suspect
            if json.loads(source)["outdated"] and not stored:
                raise Violation(f"{self._name}: it says that it is outdated, which is not stored")

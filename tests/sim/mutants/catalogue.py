"""The list of deliberate bugs. Each is one line of the product made wrong.

`old` stands exactly once in the file (`near` names a line before it where that takes more than one
line); `killed_by` are the rules whose checkers may find it. A mutant that dies of anything else
fails its test, since nothing would then be known about the checkers.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.sim.violation import Rule

#: Seeds within which a mutant must be found.
SEEDS_MAX = 150


@dataclass(frozen=True, slots=True)
class Mutant:
    """One deliberate bug."""

    name: str
    file: str
    old: str
    new: str
    killed_by: frozenset[Rule]
    #: A text somewhere before `old`, to tell it from equal lines further up.
    near: str = ""
    #: In `make test`; the others are slow tests.
    quick: bool = False

    def apply(self, text: str) -> str:
        """Return the file's text with the bug in it; raises ValueError if it does not apply."""
        start = text.find(self.near) if self.near else 0
        if start < 0:
            raise ValueError(f"{self.name}: {self.file} has no {self.near!r}")
        end = text.find("\n    def ", start + len(self.near)) if self.near else len(text)
        end = len(text) if end < 0 else end
        if text.count(self.old, start, end) != 1:
            count = text.count(self.old, start, end)
            raise ValueError(f"{self.name}: {self.file} has {count} times {self.old!r}")
        place = text.index(self.old, start)
        return text[:place] + self.new + text[place + len(self.old) :]


def _mutant(
    name: str, file: str, old: str, new: str, *rules: Rule, near: str = "", quick: bool = False
) -> Mutant:
    return Mutant(name, file, old, new, frozenset(rules), near, quick)


#: Whoever loses track of where the copies differ is found by one of these.
_DATA = (Rule.DIRTY, Rule.EQUAL, Rule.LEDGER)

MUTANTS: tuple[Mutant, ...] = (
    # Intents.
    _mutant(
        "write-without-an-intent",
        "repl/core/writes.py",
        "if volume.intents.touch(write.offset, write.length, write.number):",
        "if volume.intents.touch(write.offset, write.length, write.number) or True:",
        Rule.ORDER,
        quick=True,
    ),
    _mutant(
        "apply-without-an-intent",
        "repl/core/receiver.py",
        "if self._volume.intents.touch(offset, length, seq):",
        "if self._volume.intents.touch(offset, length, seq) or True:",
        Rule.ORDER,
    ),
    _mutant(
        "apply-a-run-of-writes-without-intents",
        "repl/core/receiver.py",
        "if not touch(offset, length, seq):",
        "if not touch(offset, length, seq) and not length:",
        Rule.ORDER,
        quick=True,
    ),
    _mutant(
        "clear-an-intent-under-a-write-in-flight",
        "repl/core/intents.py",
        "if last <= number and extent not in self.coming",
        "if extent not in self.coming",
        Rule.ORDER,
        Rule.DIRTY,
    ),
    _mutant(
        "clear-intents-before-they-are-covered-everywhere",
        "repl/core/upkeep.py",
        "volume.writes.barrier(\n            Waiter.UPKEEP, lambda: "
        "self._checkpoint_durable(number, generation, clear_there)\n        )",
        "self._checkpoint_durable(number, generation, clear_there)",
        *_DATA,
    ),
    _mutant(
        "clear-intents-with-the-dirty-bits-only-in-memory",
        "repl/core/upkeep.py",
        "self._cleared(cleared, with_maps=bool(outside))",
        "self._cleared(cleared, with_maps=False)",
        *_DATA,
    ),
    _mutant(
        "clear-the-intent-of-an-extent-that-is-written-again",
        "repl/core/intents.py",
        "if extent not in self.hot:",
        "if True:",
        Rule.ORDER,
        *_DATA,
        near="def clear_suspects",
    ),
    _mutant(
        "let-no-write-wait-for-room",
        "repl/core/room.py",
        "admitted = not self.waiting and self._intents.has_room(missing)",
        "admitted = True",
        Rule.BOUND,
    ),
    _mutant(
        "take-the-room-before-it-is-durable",
        "repl/core/intents.py",
        "taken = len(self.hot) + self.clearing",
        "taken = len(self.hot)",
        Rule.BOUND,
    ),
    _mutant(
        "make-room-before-it-is-covered-everywhere",
        "repl/core/upkeep.py",
        "session.require_durable(barrier, settled=False)",
        "barrier.peer_done(session.name)",
        *_DATA,
    ),
    _mutant(
        "make-room-with-the-dirty-bits-only-in-memory",
        "repl/core/upkeep.py",
        "self._cleared(cleared, with_maps=True)",
        "self._cleared(cleared, with_maps=False)",
        *_DATA,
    ),
    # Acknowledgements.
    _mutant(
        "acknowledge-before-the-peer",
        "repl/core/writes.py",
        "        write.waiting += 1\n        session.awaiting.append((seq, write))",
        "        session.awaiting.append((seq, write))",
        Rule.LEDGER,
        quick=True,
    ),
    _mutant(
        "acknowledge-before-it-is-applied",
        "repl/core/receiver.py",
        "self._session.send(Type.ACK, self.applied_seq, self._durable_seq)",
        "self._session.send(Type.ACK, self._last_seq, self._durable_seq)",
        Rule.LEDGER,
        Rule.PROTOCOL,
    ),
    _mutant(
        "answer-before-the-mark-is-stored",
        "repl/core/writes.py",
        "answered = generation.answered and not self.taking_back",
        "answered = not self.taking_back",
        Rule.ORDER,
        quick=True,
    ),
    _mutant(
        "answer-from-the-cache-beside-a-member-that-gives-way",
        "repl/core/writes.py",
        "elif self.sync_first or write.sync_first:",
        "elif False:",
        Rule.LEDGER,
    ),
    _mutant(
        "answer-a-flush-without-the-peer",
        "repl/core/session.py",
        "while self._barriers and self._barriers[0][0] <= self.durable_seq:",
        "while self._barriers:",
        Rule.LEDGER,
        quick=True,
    ),
    _mutant(
        "answer-a-fua-write-like-any-other",
        "repl/core/writes.py",
        "if write.fua:",
        "if False:",
        Rule.LEDGER,
    ),
    _mutant(
        "answer-a-flush-without-the-own-disk",
        "repl/core/writes.py",
        "self._volume.syncs.request(barrier.local_done)",
        "barrier.local_done()",
        Rule.LEDGER,
        Rule.DIRTY,
    ),
    # Dirty maps.
    _mutant(
        "forget-recent-writes-when-the-connection-ends",
        "repl/core/session.py",
        "dirty.mark(offset, length)",
        "dirty.any_in(offset, length)",
        *_DATA,
        quick=True,
    ),
    _mutant(
        "forget-writes-that-an-absent-peer-misses",
        "repl/core/writes.py",
        "session.volume.maps.dirty[session.name].mark(write.offset, write.length)",
        "session.volume.maps.dirty[session.name].any_in(write.offset, write.length)",
        *_DATA,
    ),
    _mutant(
        "clear-a-map-when-the-peer-connects",
        "repl/core/session.py",
        "self.move(Phase.GREETING)",
        "self.move(Phase.GREETING); self.volume.maps.dirty[self.name].clear_all()",
        *_DATA,
    ),
    # Copies and comparisons.
    _mutant(
        "leave-out-the-targets-own-intents",
        "repl/core/receiver.py",
        "volume.intents.mark_suspects_in(remaining)",
        "pass",
        *_DATA,
    ),
    _mutant(
        "leave-out-the-sources-own-intents",
        "repl/core/source.py",
        "volume.intents.mark_suspects_in(self._compare)",
        "pass",
        *_DATA,
    ),
    _mutant(
        "send-a-chunk-after-the-write-that-made-it-stale",
        "repl/core/source.py",
        "chunk.stale = True",
        "chunk.stale = False",
        *_DATA,
        near="def write_launched",
    ),
    _mutant(
        "find-no-difference-in-a-comparison",
        "repl/node/applying.py",
        "if mine != theirs:",
        "if False:",
        *_DATA,
    ),
    _mutant(
        "take-frames-while-one-waits-for-its-commit",
        "repl/core/receiver.py",
        "while self._inbox and not self._held and self._alive:",
        "while self._inbox and self._alive:",
        Rule.ORDER,
        Rule.PROTOCOL,
        Rule.LEDGER,
        Rule.EQUAL,
    ),
    _mutant(
        "take-a-run-of-writes-while-one-waits-for-its-commit",
        "repl/core/receiver.py",
        "if self._held or self._inbox or not session.receiving:",
        "if not session.receiving:",
        Rule.ORDER,
        Rule.PROTOCOL,
        Rule.LEDGER,
        Rule.EQUAL,
    ),
    _mutant(
        "judge-membership-once-for-ever",
        "repl/core/session.py",
        "if facts is not self._judged[0] or stored is not self._judged[1]:",
        "if self._judged[0] is None:",
        *_DATA,
        Rule.PROTOCOL,
        Rule.ORDER,
    ),
    _mutant(
        "overwrite-a-payload-that-is-still-needed",
        "repl/link/connection.py",
        "if self._start == self._end and not self._kept:",
        "if self._start == self._end:",
        Rule.LEDGER,
        Rule.EQUAL,
    ),
    _mutant(
        "take-a-frame-with-a-wrong-checksum",
        "repl/core/wire.py",
        "if found != checksum:",
        "if False:",
        Rule.LEDGER,
        Rule.EQUAL,
        Rule.PROTOCOL,
    ),
    # Generations.
    _mutant(
        "confirm-a-generation-before-it-is-stored",
        "repl/core/receiver.py",
        "volume.commits.request(lambda: self._generation_stored(entries[0].id))",
        "volume.commits.request(); self._generation_stored(entries[0].id)",
        Rule.ORDER,
    ),
    _mutant(
        "answer-before-the-loss-is-stored",
        "repl/core/changes.py",
        "volume.commits.request(lambda: self._lose_stored(absent), with_maps=True)",
        "self._lose_stored(absent); volume.commits.request(with_maps=True)",
        Rule.ORDER,
        Rule.CONVERGENCE,
    ),
    _mutant(
        "go-on-alone-without-a-sync",
        "repl/core/changes.py",
        "self._volume.syncs.request(lambda: self._lose_synced(lost, permit, agreed))",
        "self._lose_synced(lost, permit, agreed)",
        Rule.LEDGER,
        quick=True,
    ),
    _mutant(
        "promote-without-a-sync",
        "repl/core/changes.py",
        "self._volume.syncs.request(lambda: self._promote_synced(origin, permit, then, asked))",
        "self._promote_synced(origin, permit, then, asked)",
        Rule.LEDGER,
    ),
    _mutant(
        "join-without-a-sync-at-the-target",
        "repl/core/changes.py",
        "elif here[0] and session.durable_seq >= wanted:",
        "elif here[0]:",
        Rule.LEDGER,
        Rule.DIRTY,
    ),
    # Roles.
    _mutant(
        "resume-alone-while-a-member-is-out-of-reach",
        "repl/core/roles.py",
        "if target_waits or (session is None and sole_survivor(volume)):",
        "if target_waits or session is None:",
        Rule.TWO_PRIMARIES,
        Rule.KEPT,
        Rule.LEDGER,
        Rule.CONVERGENCE,
    ),
    _mutant(
        "agree-to-a-promotion-while-primary",
        "repl/core/roles.py",
        "if volume.is_primary:",
        "if False:",
        Rule.TWO_PRIMARIES,
        Rule.PROTOCOL,
        Rule.ORDER,
        near="def _objection",
    ),
    _mutant(
        "keep-a-release-after-contact",
        "repl/core/contact.py",
        "volume.change_peer(known, released=False, holds_release=False)",
        "volume.change_peer(known)",
        Rule.TWO_PRIMARIES,
        Rule.KEPT,
        Rule.LEDGER,
        Rule.CONVERGENCE,
    ),
    _mutant(
        "promote-an-inconsistent-copy",
        "repl/core/promotion.py",
        "if facts.inconsistent:",
        "if False:",
        Rule.INCONSISTENT,
        Rule.LEDGER,
    ),
    _mutant(
        "promote-without-evidence",
        "repl/core/promotion.py",
        "if facts.holds_release:",
        "if True:",
        Rule.TWO_PRIMARIES,
        Rule.KEPT,
        Rule.LEDGER,
        quick=True,
    ),
    _mutant(
        "forget-that-a-loss-of-power-took-the-cache",
        "repl/core/volume.py",
        "cache_lost=facts.cache_lost or lost,",
        "cache_lost=facts.cache_lost,",
        Rule.LEDGER,
    ),
    _mutant(
        "forget-that-the-process-crashed",
        "repl/core/handshake.py",
        "return not mine.crashed",
        "return mine.crashed",
        Rule.LEDGER,
    ),
    _mutant(
        "forget-that-this-copy-failed",
        "repl/core/volume.py",
        "inconsistent=True, everything_suspect=True, is_primary=False, source_generation=0",
        "is_primary=False, source_generation=0",
        Rule.ORDER,
        *_DATA,
    ),
    _mutant(
        "give-up-a-copy-before-the-other-one-is-durable",
        "repl/core/full_compare.py",
        "if self._volume.facts.inconsistent:",
        "if True:",
        Rule.LEDGER,
        near="def poll",
    ),
    _mutant(
        "give-up-a-copy-as-soon-as-the-connection-ends",
        "repl/core/full_compare.py",
        "self._step = _Step.PARTED",
        "self._give_up_claim()",
        Rule.LEDGER,
        near="def poll",
    ),
    # The metadata file.
    _mutant(
        "overwrite-the-newest-superblock",
        "repl/store/metadata.py",
        "slot = 1 - self._newest_slot",
        "slot = self._newest_slot",
        Rule.METADATA,
        Rule.LINEAGE,
    ),
    _mutant(
        "skip-the-sync-of-the-superblock",
        "repl/store/metadata.py",
        "        self._file.sync()\n        self._newest_slot = slot",
        "        self._newest_slot = slot",
        Rule.METADATA,
        Rule.LEDGER,
        Rule.DIRTY,
        Rule.LINEAGE,
        Rule.PROTOCOL,
    ),
)

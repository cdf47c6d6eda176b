"""One replicated volume: the core's only public object (design §4).

Method calls in, one `Outbox` out per turn. Pure: time comes with `turn(now_s)`, randomness with the
constructor, and nothing here knows what a payload holds. The parts: `writes.py` (client requests),
`session.py`, `receiver.py` and `source.py` (a peer), `changes.py` (generations), `roles.py` (who is
primary), `commits.py` (what is durable). README.md in this folder is the contract in prose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from repl.core import adopting, chronicle, contact, pacing, routing, splitbrain
from repl.core.absence import Absence
from repl.core.blockmap import runs_of
from repl.core.changes import Changes
from repl.core.commits import Commits, Syncs
from repl.core.facts import Facts, Maps, PeerRecord
from repl.core.intents import Intents
from repl.core.outbox import Op, Outbox, WriteKind
from repl.core.pacing import Pacing, Wish
from repl.core.permits import Alone, Manual, Provider
from repl.core.promotion import PromoteRequest
from repl.core.roles import Roles, sole_survivor
from repl.core.session import Session
from repl.core.states import DiskState, Phase, Role
from repl.core.timeouts import AWAY_S, Timeouts
from repl.core.upkeep import Upkeep
from repl.core.verdict import Verdict
from repl.core.wire import Frame, Type, encode_body
from repl.core.writes import ClientWrites
from repl.events import Note, event

#: Bytes written and not synced that start a sync here without being asked (design §7).
BACKGROUND_SYNC_BYTES = 512 << 20
#: Looked up every turn: an attribute of an enumeration costs several times more.
_DOWN = Phase.DOWN


class Volume:
    """The replication state of one volume on one node."""

    def __init__(
        self,
        name: str,
        node: str,
        facts: Facts,
        maps: Maps,
        *,
        boot_id: str,
        random_id: Callable[[], int],
        now_s: float,
        wall_clock_s: int,
        timeouts: Timeouts | None = None,
        wish: Wish | None = None,
        provider: Provider | None = None,
    ) -> None:
        self.name = name
        self.node = node
        self.facts = facts
        self.maps = maps
        self.size_bytes = facts.size_bytes
        self.random_id = random_id
        self.now = now_s
        self.wall_clock_s = self.opened_wall_s = wall_clock_s
        self.timeouts = timeouts or Timeouts()
        self.outbox = Outbox()
        #: Why the local copy failed; empty while it is good.
        self.failed = ""
        #: Which write finds no room on the backing's filesystem; empty while none waits for room.
        self.full = ""
        #: Who holds the export, as the engine last said; for people, here and on the peer.
        self.client_names: list[str] = []
        self.is_primary = False
        self._freezes: set[str] = set()
        self._closing: Callable[[], None] | None = None  # waits for the sync of a clean stop
        self._chunk_number = 0
        self.commits = Commits(facts, maps, lambda old, new: chronicle.stored(self, old, new))
        self.syncs = Syncs()
        self.intents = Intents(maps.intents)
        self.writes = ClientWrites(self)
        self.changes = Changes(self)
        self.sessions = {record: Session(self, record) for record in maps.dirty}
        self.upkeep = Upkeep(self)
        self.absence = Absence(self)
        self.pacing = Pacing(wish or Wish(), now_s)
        self.alone = Alone(self, provider or Manual())
        resume = bool(facts.lineage) and facts.is_primary
        resume = resume and facts.generation.primary == facts.node_id and not facts.inconsistent
        self.roles = Roles(self, resume)
        self._open(boot_id)

    def _open(self, boot_id: str) -> None:
        facts = self.facts
        lost = not facts.clean and bool(facts.lineage) and facts.boot_id != boot_id
        if not boot_id and not facts.clean:
            lost = True
        # A first open after an unclean close: intents that a crash left are dirty for every peer
        # that is not a member; a member is settled with.
        self.change_facts(
            clean=False,
            boot_id=boot_id,
            cache_lost=facts.cache_lost or lost,
            crashed=facts.crashed or not (facts.clean or facts.fresh),
            peers=contact.without_bases(facts, self.sessions),
        )
        for session in self.sessions.values():
            if not session.is_member and facts.lineage:
                self.intents.mark_suspects_in(self.maps.dirty[session.name])
        self.commits.request(self._opened, with_maps=True)

    def _opened(self) -> None:
        if self.facts.fresh and not self.sessions and self.facts.known_zeroes:
            self.changes.adopt(lambda: None)
        else:
            self.roles.try_resume(None)

    # A turn.

    def turn(self, now_s: float, wall_clock_s: int) -> None:
        """Begin a turn: the time, by a monotonic and by the wall clock."""
        assert now_s >= self.now, "time never goes back"
        away_s, self.now = now_s - self.now, now_s
        self.wall_clock_s = wall_clock_s
        if away_s > AWAY_S:
            self.absence.ended(away_s)

    def take(self) -> Outbox:
        """End a turn: take steps that waited for this turn's inputs, and return all effects. An
        empty outbox is not the caller's to keep: it serves the next turn."""
        self.changes.poll()
        self.roles.poll()
        if self.alone.question is not None:
            self.alone.poll()
        for session in self.sessions.values():
            if session.source is not None:
                session.source.advance()
                if session.source is not None:
                    session.source.try_end()
            if session.phase is not _DOWN and not self.failed:
                # What a failed copy has applied or synced last is nothing to rely on.
                session.receiver.acknowledge()
        if self.writes.room.waiting:
            self.upkeep.make_room()
        if self.syncs.unsynced_bytes >= BACKGROUND_SYNC_BYTES:
            self.syncs.request_for_nobody()
        box = self.outbox
        box.commit = self.commits.take(self.facts)
        if self.failed:
            # Nothing reaches a copy that failed, whatever was on its way to it.
            self.writes.never_done([op for op, *_ in box.disk])
            box.apply, box.disk, box.copies = [], [], []
        else:
            box.sync = self.syncs.take()
        if not box.empty:
            self.outbox = Outbox()
        return box

    def tick(self) -> None:
        """Look at the clock: timeouts, pings, G4, background watermarks, checkpoints."""
        self.upkeep.tick()

    # Client requests (only while this node serves; the engine asks `serving`).

    @property
    def serving(self) -> bool:
        """Whether client requests are accepted (they may still wait, frozen)."""
        return self.is_primary and not self.failed

    @property
    def frozen(self) -> bool:
        """Whether client requests wait."""
        return not self.is_primary or bool(self._freezes or self.failed)

    def client_write(self, op: Op, kind: WriteKind, offset: int, length: int, fua: bool) -> None:
        """A write, trim or zeroing inside the volume, its payload complete."""
        if self.is_primary and not self.failed:
            self.writes.write(op, kind, offset, length, fua)
        else:
            self._refuse_client(op)

    def client_flush(self, op: Op) -> None:
        """A flush: all that was answered before must be durable on every member."""
        if self.serving:
            self.writes.flush(op)
        else:
            self._refuse_client(op)

    def client_read(self, op: Op) -> None:
        """A read; it comes back under `Outbox.reads` when it may be done."""
        if self.serving:
            self.writes.read(op)
        else:
            self._refuse_client(op)

    def forget(self, op: Op) -> None:
        """A request whose client will get no answer: its payload and place are given back."""
        self.outbox.forget.append(op)

    def _refuse_client(self, op: Op) -> None:
        """A request where nothing is served: silence and a closed connection, never an error."""
        self.outbox.abandon_clients = True
        self.forget(op)

    def disk_done(self, op: Op) -> None:
        """The write of this op is in the local backing."""
        self.writes.disk_done(op)

    # Results of this node's own disk.

    def sync_done(self, number: int) -> None:
        """The backing is durable as of the start of this sync."""
        self.upkeep.synced_at_s = self.now
        self.syncs.done(number)

    def metadata_done(self, number: int) -> None:
        """The commit is durable."""
        self.commits.done(number)

    def disk_failed(self, reason: str) -> None:
        """A read, write or sync of the backing failed: this copy is failed, for good (design §7).

        Nothing is acknowledged any more. The mark is stored where possible, and an in-sync peer is
        told that this node will not be promoted.
        """
        if self.failed:
            return
        self.tell("DISK_FAILED", f"the local copy failed: {reason}", reason=reason)
        self.change_facts(
            inconsistent=True, everything_suspect=True, is_primary=False, source_generation=0
        )
        self.roles.resume_pending = False
        self.roles.disk_failed()
        self.outbox.abandon_clients = self.is_primary
        self.writes.abandon()
        self.is_primary = False
        self.failed = reason
        self.commits.request(self._failure_stored)
        if self._closing is not None:
            self.commits.request(self._closing)  # its sync may be the one that failed
            self._closing = None

    def _failure_stored(self) -> None:
        for session in self.sessions.values():
            if session.phase is Phase.ESTABLISHED:
                session.send_control(Type.LEAVE, {"outdated": True})
            else:
                session.drop(f"the local copy failed: {self.failed}")

    def no_space(self, reason: str) -> None:
        """The backing takes no new blocks: nothing is lost, and what needs room waits (design §7).

        A primary's write stays in flight until the engine reports it done. A receiver lets go of
        its peers instead, so that the primary goes on without this copy: nothing behind the frame
        that found no room is applied, and that frame is not acknowledged.
        """
        if self.full or self.failed:
            return
        self.full = reason
        self.tell("DISK_FULL", f"no space is left for the local copy: {reason}", reason=reason)
        if not self.is_primary:
            for session in self.sessions.values():
                if session.connected:
                    session.drop("no space is left for the local copy")
                    self._dismiss(session.name)
        self.outbox.changed = True

    def space_back(self) -> None:
        """Nothing waits for room any more."""
        if self.full:
            self.full = ""
            self.tell("DISK_HAS_ROOM", "the local copy has room again")
            self.outbox.changed = True

    def _dismiss(self, peer: str) -> None:
        """Say why this copy takes no connection now, as the last frame on one."""
        if self.failed:
            code, sentence = "DISK_FAILED", f"its copy failed: {self.failed[:400]}"
        else:
            code, sentence = "DISK_FULL", f"its copy has no space left: {self.full[:400]}"
        body = encode_body({"code": code, "sentence": sentence})
        self.outbox.send.setdefault(peer, []).append((Type.GOODBYE, 0, 0, 0, 0, 0, body))

    def chunk_read(self, peer: str, number: int, hole_end: int, digests: bytes | None) -> None:
        """A `CopyJob` is done: `hole_end` > 0 if the chunk is a hole up to there."""
        source = self.sessions[peer].source
        if source is not None:
            source.chunk_read(number, hole_end, digests)

    def applied(self, peer: str, seq: int) -> None:
        """A frame of the peer's stream is in the local backing."""
        self.sessions[peer].receiver.applied(seq)

    def compared(self, peer: str, seq: int, offset: int, length: int, different: bytes) -> None:
        """A DIGEST frame was compared: bit n of `different` says that its n-th block differs."""
        session = self.sessions[peer]
        session.receiver.applied(seq)
        session.send(Type.DIFFERENT, seq, offset, length, 0, different)
        shift = self.maps.remaining.block_shift
        blocks = (length + (1 << shift) - 1) >> shift
        for differs, first, last in runs_of(different, blocks):
            if not differs:
                start = offset + (first << shift)
                size = min(offset + length, offset + (last << shift)) - start
                session.receiver.brought(seq, start, size)

    # Peers.

    def peer_up(self, peer: str) -> None:
        """A connection to the peer exists; nothing of an earlier one is left in the engine."""
        if self.failed or (self.full and not self.is_primary):
            self._dismiss(peer)
            self.outbox.drop.append((peer, "the local copy takes nothing"))
            return
        self.sessions[peer].up()

    def peer_down(self, peer: str, reason: str, *, broken: bool = False) -> None:
        """The connection to the peer ended; `broken` if its bytes were damaged."""
        self.sessions[peer].down(reason, broken=broken)

    def peer_frames(self, peer: str, frames: list[Frame]) -> None:
        """Verified frames arrived, in order. Raises PeerError for one that breaks the protocol:
        drop the peer. Those before it count."""
        routing.route(self, peer, frames)

    # Operators.

    def promote(self, number: int, request: PromoteRequest) -> None:
        """Ask for promotion; the verdict comes under `Outbox.answers` with this number."""
        self.roles.promote(number, request)

    def demote(self, number: int, *, drop_clients: bool) -> None:
        """Ask for demotion; clients that hold the export are the engine's to check first."""
        self.roles.demote(number, drop_clients=drop_clients)

    def adopt(self, number: int) -> None:
        """Declare this fresh copy the one: a first generation with the set {me}."""
        adopting.adopt(self, number)

    def resolve(self, number: int, keep: str) -> None:
        """End a split-brain: the copy on node `keep` is kept, the other one gives up its own."""
        splitbrain.order(self, number, keep)

    def leave(self, number: int) -> None:
        """Prepare a clean stop: hand over, drain, sync. Then `close`."""
        self.roles.leave(number)

    def close(self, then: Callable[[], None]) -> None:
        """End a clean stop: sync, then the last commit, which says that the close was clean."""
        if self.failed:
            # The mark that this copy failed must outlive the process; nothing else can be synced.
            self.commits.request(then)
        else:
            self._closing = then
            self.syncs.request(self._closed)

    def _closed(self) -> None:
        then, self._closing = self._closing, None
        if then is not None:
            self.change_facts(clean=True)
            self.commits.request(then, with_maps=True)

    # What the parts ask of the whole.

    def change_facts(self, **changes: Any) -> None:
        """Change the record in memory; ask `commits` where something needs it durable."""
        self.facts = replace(self.facts, **changes)

    def change_peer(self, record: PeerRecord, **changes: Any) -> None:
        """Replace one peer's record (and other fields with it), if anything changes."""
        peers = tuple(record if old.name == record.name else old for old in self.facts.peers)
        changed = replace(self.facts, peers=peers, **changes)
        if changed != self.facts:
            self.facts = changed

    def set_base(self, peer: str, generation_id: int) -> None:
        """G7: the peer has confirmed storing this generation; 0 makes its map's base void."""
        record = self.facts.peer(peer)
        self.change_peer(replace(record, base_from=generation_id, base_to=generation_id))

    def offer(self, peer: str) -> None:
        """G7: the current generation goes, or may have gone, to this peer."""
        record = self.facts.peer(peer)
        self.change_peer(replace(record, base_to=self.facts.generation.id))

    def next_chunk(self) -> int:
        """Return a number for a resync chunk, never used before in this process."""
        self._chunk_number += 1
        return self._chunk_number

    def commit_intents(self, then: Callable[[], None]) -> None:
        """Call `then` once the extents that are `coming` now are durable intents."""
        extents = tuple(self.intents.coming)

        def stored() -> None:
            self.intents.stored(extents)
            then()

        self.commits.request(stored)

    def freeze(self, reason: str) -> None:
        """Hold client requests that come from now on."""
        self._freezes.add(reason)

    def thaw(self, reason: str) -> None:
        """Undo one `freeze`; held requests go on when none is left."""
        self._freezes.discard(reason)
        self.writes.release_held()

    def become_primary(self) -> None:
        """The role itself; everything that it needs is stored already."""
        assert self.commits.stored.is_primary and not self.is_primary
        assert self.commits.stored.generation.primary == self.facts.node_id
        self.is_primary = True
        self.tell("ROLE_PRIMARY", f"{self.node} is primary of {self.name}")
        self.writes.release_held()
        self.send_status()

    def become_secondary(self) -> None:
        """The role itself, after or (by force) before it is stored."""
        self.is_primary = False
        self.absence.forget()
        self.upkeep.checkpoint_given_up()
        self.intents.connection_ended()
        self.tell("ROLE_SECONDARY", f"{self.node} is secondary of {self.name}")
        self.send_status()

    def clear_intents(self) -> None:
        """All that was written is durable here and on every established member."""
        if all(session.settled for session in self.sessions.values()):
            self.intents.clear_suspects()
            if self.intents.clear_up_to(self.writes.number):
                for session in self.sessions.values():
                    session.clear_intents_there(session.sent_seq)

    def member_sessions(self) -> list[Session]:
        """The peers in the current in-sync set, connected or not."""
        return [session for session in self.sessions.values() if session.is_member]

    def established_members(self) -> list[Session]:
        """The members that are connected and have everything."""
        return [session for session in self.member_sessions() if session.settled]

    def connection_ended(self, session: Session, was: Phase) -> None:
        """A session went down; what was asked of it fails, G4 begins when an answer is needed."""
        self.roles.connection_ended(session)
        self.absence.connection_ended(session)
        if was is Phase.JOINING and not self.changes.busy:
            self.thaw("joining")

    def peer_established(self, session: Session) -> None:
        """Both copies are equal: a pending resume goes on."""
        self.roles.peer_established(session)
        self.send_status()
        if not self.is_primary:
            self.roles.try_resume(session)

    def send_status(self) -> None:
        """Tell connected peers this node's role and disk state; shown to people only."""
        for session in self.sessions.values():
            if session.phase is not Phase.DOWN:
                body = {"role": self.role_text, "disk_state": self.disk_state_text}
                session.send_control(Type.STATUS, body | pacing.wish_to_json(self.pacing.own))

    @property
    def role_text(self) -> str:
        """The role's public spelling."""
        role = Role.PRIMARY if self.is_primary else Role.SECONDARY
        return str(role.value)

    @property
    def disk_state_text(self) -> str:
        """The disk state's public spelling (design §8, §11)."""
        facts = self.facts
        if self.failed:
            return DiskState.FAILED.value
        if facts.inconsistent or facts.fresh:
            return DiskState.INCONSISTENT.value
        if facts.outdated:
            return DiskState.OUTDATED.value
        settled = all(session.settled for session in self.member_sessions())
        if self.is_primary or settled or sole_survivor(self):
            doubtful = facts.cache_lost and not facts.alone
            state = DiskState.CONSISTENT if doubtful else DiskState.UP_TO_DATE
            return str(state.value)
        return DiskState.CONSISTENT.value

    def answer(self, number: int, verdict: Verdict) -> None:
        """Answer an operator's request."""
        self.outbox.answers.append((number, verdict))

    def note(self, level: str, text: str) -> None:
        """Say something to the log."""
        self.outbox.notes.append(Note(level, text))

    def tell(self, code: str, text: str, **fields: Any) -> None:
        """Tell an event (`repl/events.py`) to whoever follows; it reaches the log too."""
        self.outbox.notes.append(event(code, text, fields))

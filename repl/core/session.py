"""One peer of a volume: its connection's phase, the handshake, and the stream sent to it.

The session outlives its connections: between them it keeps what waits for the peer. Sequence
numbers, watermarks and the phase belong to one connection and die with it. What arrives from the
peer's own stream is `receiver.py`'s, copying towards it `source.py`'s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from repl.core import chronicle, contact, pacing, wire
from repl.core import hello as hellos
from repl.core.barrier import Barrier, Waiter
from repl.core.facts import Facts
from repl.core.giving_up import give_up_unanswered
from repl.core.handshake import AWAITED, MIRROR, SOURCE_ACTIONS, Action, Decision, decide
from repl.core.hello import Hello
from repl.core.liveness import Liveness
from repl.core.outbox import SendJob
from repl.core.pacing import Wish
from repl.core.probation import Probation
from repl.core.progress import Progress
from repl.core.receiver import Receiver
from repl.core.source import Source
from repl.core.splitbrain import SplitBrain
from repl.core.states import MIRRORING, RECEIVING, Phase, check_transition
from repl.core.wire import Fields, PeerError, Type
from repl.core.writes import Write

if TYPE_CHECKING:
    from repl.core.volume import Volume


class Session:
    """Everything about one configured peer. All methods run within a turn of the volume."""

    def __init__(self, volume: Volume, name: str) -> None:
        self.volume = volume
        self.name = name
        self.phase = Phase.DOWN
        self._in_mirroring_phase = self._in_receiving_phase = False
        #: The facts in memory and the stored ones that `is_member` saw, and what it found.
        self._judged: tuple[Facts | None, Facts | None, bool] = (None, None, False)
        #: When the peer ceased to be established, by the volume's clock.
        self.down_since_s = volume.now
        #: Wall-clock times between which the peer was last away, None if it never was; for people.
        self.last_away: tuple[int, int] | None = None
        #: Since when an acknowledgement waits for this member, which is not settled.
        self.needed_since_s: float | None = None
        #: G5: whether the peer's next join has to wait.
        self.probation = Probation(volume.now)
        #: Payload bytes of copies and digests sent since the start, without mirrored writes.
        self.resync_sent_bytes = 0
        self.decision: Decision | None = None
        #: What was told of this peer, so that a repetition is told to the log only.
        self.told = chronicle.Told()
        #: Connections that ended because the peer's bytes were damaged or broke the protocol.
        self.broken_connections = 0
        #: Why the peer refused the last connection, and its code; empty once it says hello.
        self.refusal = self.refusal_code = ""
        #: Acknowledgements that wait for this member while it is away or being settled.
        self.orphans: list[Write] = []
        self._orphan_barriers: list[Barrier] = []
        self._reset()

    def _reset(self) -> None:
        self.my_hello: Hello | None = None
        self.their_hello: Hello | None = None
        self._decided = False
        self._decision_sent = False
        #: The handshake of this connection came to something that both sides recorded.
        self.met = False
        self._their_decision: tuple[str, int] | None = None
        self.source: Source | None = None
        #: What this connection does about a split-brain; None unless there is one.
        self.split: SplitBrain | None = None
        self.receiver = Receiver(self)
        self.progress = Progress(self.volume.now)
        self.sent_seq = 0
        self.acked_seq = 0
        self.durable_seq = 0
        self._sync_asked_seq = 0
        #: What was sent when the last checkpoint was due.
        self._rested_seq = 0
        #: Writes that wait for this member's ack, and ranges beyond its durable watermark;
        #: `writes.replicate` fills both.
        self.awaiting: deque[tuple[int, Write]] = deque()
        self.recent: deque[tuple[int, int, int]] = deque()
        self._barriers: deque[tuple[int, Barrier]] = deque()
        #: The peer has stored the current generation (it shows it, or confirmed it).
        self.confirmed = False
        self.peer_status: dict[str, str] = {}
        #: How the peer wants copies to be held back.
        self.their_wish = Wish()
        self.live = Liveness(self.volume.now)

    # What the rest of the core asks.

    @property
    def connected(self) -> bool:
        """Whether a connection exists, whatever it is good for."""
        return self.phase is not Phase.DOWN

    @property
    def shows_data(self) -> bool:
        """Whether the connected peer has said that it holds a generation of the volume."""
        return self.their_hello is not None and not self.their_hello.fresh

    @property
    def node_id(self) -> int:
        """The peer's node id as last shown, 0 if never."""
        return self.volume.facts.peer(self.name).node_id

    @property
    def is_member(self) -> bool:
        """Whether the peer is in the in-sync set: the stored one, or the one being stored.

        A peer that is being left out is waited for until the generation without it is durable, one
        that joins from the moment its generation is made (G2, G4, G5).
        """
        facts, stored = self.volume.facts, self.volume.commits.stored
        if facts is not self._judged[0] or stored is not self._judged[1]:
            # Both are immutable: what they say needs to be looked at once.
            me = self.node_id
            member = any(each.lineage and me in each.generation.members for each in (facts, stored))
            self._judged = facts, stored, member
        return self._judged[2]

    @property
    def mirroring(self) -> bool:
        """Whether this node, as primary, sends its writes to the peer."""
        return self._in_mirroring_phase and self.volume.is_primary

    @property
    def receiving(self) -> bool:
        """Whether numbered frames of the peer's stream may arrive."""
        return self._in_receiving_phase and not self.volume.is_primary

    @property
    def settled(self) -> bool:
        """Whether the peer has all that this node has, so that its watermark covers everything."""
        return self.phase is Phase.ESTABLISHED

    def move(self, phase: Phase) -> None:
        """Take a step of the table in `states.py`."""
        check_transition(self.phase, phase)
        self.phase = phase
        self._in_mirroring_phase = phase in MIRRORING
        self._in_receiving_phase = phase in RECEIVING
        self.volume.outbox.changed = True

    # Connection life.

    def up(self) -> None:
        """A connection exists; nothing of an earlier one is left in this node's engine."""
        assert self.phase is Phase.DOWN
        self._reset()
        self.move(Phase.GREETING)
        self.greet()

    def greet(self) -> None:
        """Send the hello once all facts are stored and no generation is being made."""
        if self.phase is not Phase.GREETING or self.my_hello or self.volume.changes.busy:
            return
        if self.volume.writes.disk_owes:
            return  # `ClientWrites.disk_done` greets when the disk lets go of the last of them
        self.volume.commits.when_stored(self.volume.facts, self._send_hello)

    def _send_hello(self) -> None:
        if self.phase is not Phase.GREETING or self.my_hello:
            return
        if self.volume.changes.busy or self.volume.facts is not self.volume.commits.stored:
            self.greet()
            return
        self.my_hello = self._build_hello()
        self.send_control(Type.HELLO, hellos.to_json(self.my_hello))
        self._try_decide()

    def down(self, reason: str, *, broken: bool = False) -> None:
        """The connection ended (`broken`: what arrived made no sense): what the peer may have lost
        becomes dirty for it."""
        if self.phase is Phase.DOWN:
            return
        volume = self.volume
        was, progress = self.phase, self.progress
        self.move(Phase.DOWN)
        volume.writes.lost(self.name)
        if was in (Phase.ESTABLISHED, Phase.JOINING):
            self.down_since_s = volume.now
        dirty = volume.maps.dirty[self.name]
        # Frames that the engine was not given yet are discarded: they were not acknowledged.
        volume.outbox.apply = [job for job in volume.outbox.apply if job[0] != self.name]
        for _seq, offset, length in self.recent:
            dirty.mark(offset, length)
        self.orphans += [write for _seq, write in self.awaiting]
        for _seq, barrier in self._barriers:
            self._keep_waiting(barrier)
        if self.orphans or self._orphan_barriers:
            self.need()
        contact.lost(self)
        self.receiver.ended()
        if self.source is not None:
            self.source.ended()
        if self.split is not None:
            self.split.ended()
        self._reset()
        self.broken_connections += broken
        chronicle.connection_ended(self, was, reason, progress, broken=broken)
        volume.connection_ended(self, was)

    def drop(self, reason: str, *, broken: bool = False) -> None:
        """Close the connection from this side; `broken` as for `down`."""
        if self.phase is Phase.DOWN:
            return
        self.volume.outbox.send.pop(self.name, None)
        self.volume.outbox.drop.append((self.name, reason))
        self.down(reason, broken=broken)

    def on_this_connection(self, act: Callable[[], None]) -> Callable[[], None]:
        """Wrap what is to be done later, so that it never happens on another connection."""
        receiver = self.receiver

        def guarded() -> None:
            if self.receiver is receiver and self.connected:
                act()

        return guarded

    def broke_protocol(self, error: PeerError) -> None:
        """What the peer sent earlier turns out to be wrong: drop it, in whatever turn this is."""
        self.drop(f"it broke the protocol: {error}", broken=True)

    # Handshake.

    def _build_hello(self) -> Hello:
        volume = self.volume
        dirt = volume.maps.dirty[self.name].count + volume.maps.remaining.count
        return hellos.build(
            node=volume.node,
            volume=volume.name,
            peer=self.name,
            facts=volume.facts,
            block_shift=volume.maps.remaining.block_shift,
            primary=volume.is_primary,
            has_dirt=bool(dirt or volume.intents.suspect),
        )

    def on_hello(self, body: dict[str, Any]) -> None:
        """The peer's facts arrived."""
        if self.phase is not Phase.GREETING or self.their_hello is not None:
            raise PeerError("HELLO: not expected now")
        self.refusal = self.refusal_code = ""
        self.their_hello = hellos.from_json(body)
        if self.their_hello.volume != self.volume.name:
            raise PeerError(f"HELLO: it is about the volume {self.their_hello.volume!r}")
        self._try_decide()

    def _try_decide(self) -> None:
        if not (self.my_hello and self.their_hello) or self._decided:
            return
        mine, theirs = self.my_hello, self.their_hello
        if replace(self._build_hello(), has_dirt=mine.has_dirt) != mine:
            self.drop("this side's facts changed during the handshake")
            return
        decision = decide(mine, theirs)
        if contact.retires_member(self, decision):
            return
        self.decision = decision
        self._decided = True
        volume = self.volume
        chronicle.decided(self, decision)
        token = 0
        if decision.action not in (Action.REFUSE, Action.WAIT, Action.SPLIT_BRAIN):
            token = contact.record(self, theirs)
        body = {"action": decision.action.value, "rule": decision.rule, "token": token}
        volume.commits.when_stored(volume.facts, lambda: self._send_decision(mine, body))

    def _send_decision(self, mine: Hello, body: dict[str, Any]) -> None:
        if self.phase is not Phase.GREETING or self.my_hello is not mine:
            return
        self.send_control(Type.DECISION, body)
        self._decision_sent = True
        try:
            self._try_act()
        except PeerError as error:
            self.broke_protocol(error)

    def on_decision(self, fields: Fields) -> None:
        """The peer's decision arrived; it must be the mirror image of this side's."""
        if self.phase is not Phase.GREETING or self._their_decision is not None:
            raise PeerError("DECISION: not expected now")
        self._their_decision = fields.text("action"), fields.number("token")
        self._try_act()

    def _try_act(self) -> None:
        if not self._decision_sent or self._their_decision is None:
            return
        assert self.decision is not None and self.their_hello is not None
        theirs, token = self._their_decision
        if MIRROR[self.decision.action].value != theirs:
            raise PeerError(
                f"the two sides decided {self.decision.action.value} and {theirs}, "
                "which do not fit together"
            )
        contact.accept(self, token)
        self._act(self.decision.action)

    def _act(self, action: Action) -> None:
        volume = self.volume
        if action in contact.WAITS_AT:
            self.move(contact.WAITS_AT[action])
            if action is Action.SPLIT_BRAIN:
                self.split = SplitBrain(self)
                self.split.begin()
        elif action is Action.YIELD:
            give_up_unanswered(self)
        elif action is Action.PART:
            volume.changes.part(self)
        elif action in SOURCE_ACTIONS:
            contact.made(self)
            self.move(Phase.SOURCE_STARTING)
            self.source = Source(self, action)
            self.source.start()
        elif volume.is_primary:
            # design §5, ancestor row: a primary here acknowledged nothing that the other lacks.
            volume.roles.step_down(f"{self.name} has newer writes; this node becomes its target")
        else:
            contact.made(self)
            self.move(Phase.TARGET_STARTING)
        if self.connected and action not in AWAITED:  # last: who steps down answers nobody before
            volume.absence.shook_hands(self)

    # The stream to the peer.

    def send(
        self,
        kind: Type,
        seq: int = 0,
        offset: int = 0,
        length: int = 0,
        flags: int = 0,
        source: object = None,
    ) -> None:
        """Queue a frame; its payload is `source` (see `SendJob`)."""
        volume = self.volume
        # Nothing is given out under a generation that is not stored (G3).
        generation = volume.commits.generation_id
        job: SendJob = (kind, seq, offset, length, generation, flags, source)
        jobs = volume.outbox.send.get(self.name)
        if jobs is None:
            volume.outbox.send[self.name] = [job]
        else:
            jobs.append(job)
        self.live.sent_s = volume.now

    def ping(self) -> int:
        """Make the peer show that it lives; return the ping's number."""
        self.live.ping_sent(self.volume.now)
        self.send(Type.PING)
        return self.live.pinged()

    def rested(self) -> Callable[[], None]:
        """Note what is sent by now; return how to tell the peer that everything sent until the
        last call is durable. It does nothing on another connection."""
        seq, self._rested_seq = self._rested_seq, self.sent_seq
        return self.on_this_connection(lambda: self.clear_intents_there(seq))

    def clear_intents_there(self, seq: int) -> None:
        """Everything up to this number is durable on both sides: the peer may clear intents."""
        self.send(Type.CLEAR_INTENTS, seq)

    def send_control(self, kind: Type, body: dict[str, Any]) -> None:
        """Queue a control frame with a JSON body."""
        self.send(kind, source=wire.encode_body(body))

    def send_numbered(
        self, kind: Type, offset: int, length: int, flags: int, source: object
    ) -> int:
        """Queue a frame of the ordered stream and return its number."""
        seq = self.sent_seq = self.sent_seq + 1
        if self.live.unapplied_since_s is None:
            self.live.unapplied_since_s = self.volume.now
        self.send(kind, seq, offset, length, flags, source)
        return seq

    def require_durable(self, barrier: Barrier, *, settled: bool = True) -> None:
        """Tell the barrier when all that was sent until now is durable there, and it is settled."""
        if settled and not self.settled:
            self._keep_waiting(barrier)
        else:
            self._barriers.append((self.sent_seq, barrier))
            self.ask_sync()
            self.release_durable()

    def release_durable(self) -> None:
        """Tell barriers whose frames are durable there. A flush of nothing waits until it knows the
        generation under which that would be an answer; upkeep is none."""
        while self._barriers and self._barriers[0][0] <= self.durable_seq:
            if not self.confirmed and self._barriers[0][1].waiter is not Waiter.UPKEEP:
                break
            self._barriers.popleft()[1].peer_done(self.name)

    def _keep_waiting(self, barrier: Barrier) -> None:
        """The peer is not settled: a client's flush waits for it, upkeep does not."""
        if barrier.waiter is Waiter.UPKEEP:
            self.volume.upkeep.checkpoint_given_up()
        else:
            self._orphan_barriers.append(barrier)
            self.need()

    @property
    def client_waits(self) -> bool:
        """Whether a client's request waits for this member to answer, or to leave the set."""
        flushes = (barrier.waiter is Waiter.CLIENT for barrier in self._orphan_barriers)
        return not self.volume.writes.silent and (bool(self.orphans) or any(flushes))

    def ask_sync(self) -> None:
        """Ask the peer to make everything sent until now durable."""
        if self._sync_asked_seq < self.sent_seq:
            self._sync_asked_seq = self.sent_seq
            if self.live.unsynced_since_s is None:
                self.live.unsynced_since_s = self.volume.now
            self.send(Type.SYNC, self.sent_seq)

    def on_ack(self, applied: int, durable: int) -> None:
        """Cumulative: the peer has applied, and made durable, everything up to these numbers."""
        if not (self.acked_seq <= applied <= self.sent_seq) or not (
            self.durable_seq <= durable <= applied
        ):
            raise PeerError(f"ACK: {applied}/{durable} does not follow from what was sent")
        if applied > self.acked_seq:
            self.acked_seq = applied
            if self.volume.writes.sync_first:
                self.volume.writes.applied_there(self.name, applied)
            left = applied < self.sent_seq
            self.live.unapplied_since_s = self.volume.now if left else None
            awaiting, one_done = self.awaiting, self.volume.writes.one_done
            while awaiting and awaiting[0][0] <= applied:
                one_done(awaiting.popleft()[1])
        if durable > self.durable_seq:
            self.durable_seq = durable
            # Under load a newer sync is always asked for; each one that ends is an answer.
            ended = durable >= self._sync_asked_seq
            self.live.unsynced_since_s = None if ended else self.volume.now
            while self.recent and self.recent[0][0] <= durable:
                self.recent.popleft()
            self.release_durable()
        if self.source is not None:
            self.source.acked(applied, durable)

    def on_status(self, fields: Fields) -> None:
        """What the peer shows of itself, and how it wants copies to be held back."""
        self.peer_status = {
            "role": fields.text("role", 40),
            "disk_state": fields.text("disk_state", 40),
        }
        self.their_wish = pacing.wish_from(fields)
        self.volume.outbox.changed = True

    # The peer entered or left the set.

    def release_orphans(self) -> None:
        """What waited for this peer waits no more: it is equal now, or it left the set."""
        self.needed_since_s = None
        orphans, self.orphans = self.orphans, []
        for write in orphans:
            self.volume.writes.one_done(write)
        barriers, self._orphan_barriers = self._orphan_barriers, []
        for barrier in barriers:
            if self.is_member and self.settled:
                self.require_durable(barrier)
            else:
                barrier.peer_done(self.name)

    def forget_waiters(self) -> None:
        """Nothing that waits for this peer will be answered any more."""
        self.orphans.clear()
        self._orphan_barriers.clear()
        self.needed_since_s = None
        self.awaiting.clear()
        self._barriers.clear()

    def need(self) -> None:
        """An acknowledgement waits for this member while it is not settled (G4 begins so)."""
        if self.needed_since_s is None:
            self.needed_since_s = self.volume.now

    def established(self) -> None:
        """Both copies are equal and both sides have stored it."""
        self.move(Phase.ESTABLISHED)
        chronicle.in_sync(self)
        self.source = None
        self.confirmed = True
        contact.settled(self)
        self.release_orphans()
        self.volume.peer_established(self)

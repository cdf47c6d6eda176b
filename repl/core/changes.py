"""Making a generation: G3 to G6 as procedures, at most one at a time (design §5).

Every procedure goes sync → facts in memory → commit → announce, and looks again at who is connected
at the moment it fixes the in-sync set. What waits (pending acknowledgements, held requests) is
released only after the commit. `poll` is called once a turn and takes the steps that wait for
others.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from repl.core import hello as hellos
from repl.core.handshake import Action
from repl.core.lineage import Generation, Origin, extend
from repl.core.outbox import MapName
from repl.core.states import Phase
from repl.core.wire import PeerError, Type

if TYPE_CHECKING:
    from repl.core.session import Session
    from repl.core.volume import Volume

Step = Callable[[], None]


class Kind(enum.Enum):
    """Which procedure is under way."""

    LOSE = "losing a peer"
    JOIN = "adding a peer"
    PROMOTE = "promotion"
    CREATE = "first generation"


class Changes:
    """The generation change under way, if any."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.kind: Kind | None = None
        self._step: Step | None = None
        self._joining: Session | None = None

    @property
    def busy(self) -> bool:
        """Whether a generation is being made; hellos and further changes wait."""
        return self.kind is not None

    def poll(self) -> None:
        """Take the step that waits for something, if it has come."""
        if self._step is not None:
            self._step()

    # G4: go on without a member.

    def lose_unanswered(self, session: Session) -> None:
        """A member did not answer in time: go on without it as soon as that is permitted (§8).

        Until then nothing is acknowledged, and the member may come back; this is asked again.
        """
        permit = self._volume.alone.permit(session)
        if permit:
            session.probation.dropped(self._volume.now)
            self.lose([session], permit)

    def part(self, session: Session) -> None:
        """Handshake row "forced beside a primary": what was acknowledged here the other copy may
        lack, although its history names it. From now on the two histories say so."""
        if self.busy:
            session.drop("another change is under way: the handshake begins anew")
        else:
            self.lose([session], f"{session.name} was promoted as it was", agreed=True)

    def lose(self, lost: list[Session], permit: str, *, agreed: bool = False) -> None:
        """Make the generation without these members, then release what waited for them.

        Its mark says that it answered where replies wait for it, or where the peer itself agreed
        to be left behind.
        """
        assert self._volume.is_primary and not self.busy
        self.kind = Kind.LOSE
        for session in lost:
            session.drop("this node goes on without it")
        self._volume.note("warning", f"going on without {', '.join(s.name for s in lost)}")
        self._volume.syncs.request(lambda: self._lose_synced(lost, permit, agreed))

    def _lose_synced(self, lost: list[Session], permit: str, agreed: bool) -> None:
        volume = self._volume
        # A second loss during the sync belongs to the same change.
        absent = [s for s in volume.member_sessions() if s in lost or not s.connected]
        gone = {session.node_id for session in absent}
        members = tuple(m for m in volume.facts.generation.members if m not in gone)
        # Looked at now: the clients that waited when this began may have been closed since, and
        # nobody is answered as long as this node does not know whether it was superseded.
        waits = any(session.client_waits for session in absent) and not volume.absence.doubtful
        answered = agreed or waits
        self._extend(members, volume.facts.node_id, Origin.ALONE, permit, answered)
        if waits and not agreed:
            volume.writes.marked_ahead = volume.facts.generation.id
        volume.commits.request(lambda: self._lose_stored(absent), with_maps=True)

    def _lose_stored(self, lost: list[Session]) -> None:
        self._end()
        for session in lost:
            session.release_orphans()

    # G5: add a peer whose copy has become equal.

    def join(self, session: Session) -> None:
        """The copy is done and durable on both sides; make the peer a member."""
        if self.busy:
            return
        volume = self._volume
        if session.source is not None and session.source.action is Action.FIRST_CONTACT_SOURCE:
            self._first_contact(session)
            return
        if session.is_member:
            # Stored before, never confirmed: the same generation is announced again.
            session.move(Phase.JOINING)
            announce = session.on_this_connection(lambda: self.announce(session))
            volume.commits.when_stored(volume.facts, announce)
            return
        self.kind = Kind.JOIN
        self._joining = session
        session.move(Phase.JOINING)
        volume.freeze("joining")
        self._step = self._join_drained

    def _join_drained(self) -> None:
        session, volume = self._joining, self._volume
        assert session is not None
        if session.phase is not Phase.JOINING:
            self._join_aborted()
        elif volume.writes.drained:
            session.ask_sync()
            wanted, here = session.sent_seq, [False]
            volume.syncs.request(lambda: here.__setitem__(0, True))
            self._step = lambda: self._join_durable(session, wanted, here)

    def _join_durable(self, session: Session, wanted: int, here: list[bool]) -> None:
        volume = self._volume
        if session.phase is not Phase.JOINING:
            self._join_aborted()
        elif here[0] and session.durable_seq >= wanted:
            self._step = None
            assert not volume.maps.dirty[session.name].count, "G5: a peer joins with an empty map"
            # From the sessions, not from the old set: ids of replaced disks are retired here.
            staying = {member.node_id for member in volume.member_sessions()}
            members = tuple(sorted({volume.facts.node_id, session.node_id, *staying}))
            self._extend(members, volume.facts.generation.primary, Origin.JOINED, "", False)
            volume.offer(session.name)
            volume.commits.request(lambda: self._join_stored(session), with_maps=True)

    def _join_aborted(self) -> None:
        self._end()
        self._volume.thaw("joining")

    def _join_stored(self, session: Session) -> None:
        self._end()
        if session.phase is Phase.JOINING:
            self.announce(session)
        else:
            self._volume.thaw("joining")

    def announce(self, session: Session) -> None:
        """Give the stored current generation to a connected peer."""
        facts = self._volume.commits.stored
        body: dict[str, Any] = {
            "volume_id": facts.volume_id,
            "lineage": [hellos.generation_to_json(entry) for entry in facts.lineage],
        }
        session.confirmed = False
        if session.node_id in facts.generation.members:
            # A target that is no member takes note of it, and has nothing to confirm.
            session.live.unconfirmed_since_s = self._volume.now
        session.send_control(Type.GENERATION, body)

    def confirmed(self, session: Session, generation_id: int) -> None:
        """The peer has stored the generation that was announced to it."""
        volume = self._volume
        if session.phase not in (Phase.JOINING, Phase.ESTABLISHED):
            raise PeerError("GENERATION_STORED: nothing was announced")
        if not volume.facts.lineage or generation_id != volume.facts.generation.id:
            return
        session.confirmed = True
        session.live.unconfirmed_since_s = None
        session.release_durable()
        volume.set_base(session.name, generation_id)
        if session.phase is Phase.JOINING:
            volume.intents.clear_suspects()
            volume.change_facts(cache_lost=False, crashed=False, outdated=False)
            volume.commits.empty(MapName.DIRTY, session.name)
            volume.writes.sync_first.pop(session.name, None)
            session.probation.joined(volume.now)
            session.established()
            session.clear_intents_there(session.durable_seq)
            volume.thaw("joining")
        volume.commits.request()

    def _first_contact(self, session: Session) -> None:
        volume = self._volume
        self.kind = Kind.CREATE
        session.move(Phase.JOINING)
        members = tuple(sorted({volume.facts.node_id, session.node_id}))
        self._create(members, primary=0, origin=Origin.FIRST_CONTACT, answered=False)
        volume.offer(session.name)
        volume.commits.request(lambda: self._join_stored(session), with_maps=True)

    # First generation by an operator's word, or of a volume without peers.

    def adopt(self, then: Step) -> None:
        """This copy is the one: the first generation with the set {me}."""
        assert self._volume.facts.fresh and not self.busy
        self.kind = Kind.CREATE
        self._volume.syncs.request(lambda: self._adopt_synced(then))

    def _adopt_synced(self, then: Step) -> None:
        me = self._volume.facts.node_id
        self._create((me,), primary=me, origin=Origin.ADOPTED, answered=True)
        self._volume.commits.request(lambda: self._finish(then), with_maps=True)

    def _create(
        self, members: tuple[int, ...], primary: int, origin: Origin, answered: bool
    ) -> None:
        volume = self._volume
        first = Generation(
            1, volume.random_id(), primary, members, answered, origin, volume.wall_clock_s
        )
        volume.change_facts(volume_id=volume.random_id(), lineage=(first,), known_zeroes=False)

    # G6: promotion (`roles.py` found the evidence).

    def promote(
        self, origin: Origin, permit: str, then: Step, asked: Session | None = None
    ) -> None:
        """Make the generation that names this node primary; `asked` has agreed to it."""
        assert not self.busy
        self.kind = Kind.PROMOTE
        self._volume.syncs.request(lambda: self._promote_synced(origin, permit, then, asked))

    def _promote_synced(
        self, origin: Origin, permit: str, then: Step, asked: Session | None
    ) -> None:
        volume = self._volume
        staying = [] if origin is Origin.DATA_LOST else volume.established_members()
        if asked is not None and asked.is_member and asked not in staying:
            # Its connection broke since it agreed: leaving it behind is for G4, and its permit.
            staying.append(asked)
        me = volume.facts.node_id
        for session in volume.sessions.values():
            if session not in staying and session.phase is not Phase.SOURCE:
                # What it leaves out gets this node's uncleared intents with the same commit.
                volume.intents.mark_all_in(volume.maps.dirty[session.name])
        members = tuple(sorted({me, *(session.node_id for session in staying)}))
        current = volume.facts.generation
        unchanged = members == current.members == (me,) and current.primary == me
        if origin is not Origin.PROMOTED or not unchanged:
            # G1 the other way round: where nothing changes, a lone node's lineage does not grow.
            self._extend(members, me, origin, permit, False)
        volume.change_facts(
            is_primary=True,
            outdated=False,
            released=False,
            holds_release=False,
            known_zeroes=False,
        )
        if origin is Origin.DATA_LOST:
            self._forget_doubts()
        for session in staying:
            volume.offer(session.name)
        volume.commits.request(lambda: self._promote_stored(staying, then), with_maps=True)

    def _forget_doubts(self) -> None:
        """`--lose-data`: this copy is the truth from now on, and no map of others is valid."""
        volume = self._volume
        volume.change_facts(
            inconsistent=False,
            everything_suspect=False,
            source_generation=0,
            cache_lost=False,
            crashed=False,
        )
        volume.commits.empty(MapName.REMAINING)
        for name in volume.sessions:
            volume.set_base(name, 0)

    def _promote_stored(self, staying: list[Session], then: Step) -> None:
        volume = self._volume
        volume.intents.connection_ended()
        for session in volume.sessions.values():
            if session.phase is Phase.SOURCE or (
                session in staying and session.phase is Phase.ESTABLISHED
            ):
                self.announce(session)
        self._finish(then)

    # Shared.

    def _extend(
        self, members: tuple[int, ...], primary: int, origin: Origin, permit: str, answered: bool
    ) -> None:
        """Put a new generation in front, in memory (G1); what ages out is needed by nobody."""
        volume = self._volume
        facts = volume.facts
        newest = Generation(
            counter=facts.generation.counter + 1,
            id=volume.random_id(),
            primary=primary,
            members=members,
            answered=answered,
            origin=origin,
            made_at_s=volume.wall_clock_s,
            permit=permit,
        )
        keep = [identifier for peer in facts.peers for identifier in (peer.base_from, peer.base_to)]
        volume.change_facts(lineage=extend(facts.lineage, newest, keep))

    def _finish(self, then: Step) -> None:
        self._end()
        then()

    def _end(self) -> None:
        self.kind = None
        self._step = None
        self._joining = None
        for session in self._volume.sessions.values():
            session.greet()

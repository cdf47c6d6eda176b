"""Becoming primary and ceasing to be: promotion, resuming, demotion, leaving (design §8).

Each is a procedure of a few steps; `poll` is called once a turn and takes the step that waits for
something. One procedure at a time; a forced step-down ends whatever was under way.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

from repl.core import chronicle, lineage
from repl.core.barrier import Waiter
from repl.core.facts import Facts
from repl.core.lineage import Origin
from repl.core.promotion import PromoteRequest, judge
from repl.core.states import Phase
from repl.core.verdict import granted, refused
from repl.core.wire import Fields, PeerError, Type

if TYPE_CHECKING:
    from repl.core.full_compare import Comparison
    from repl.core.session import Session
    from repl.core.volume import Volume


class Task(enum.Enum):
    """Which procedure is under way."""

    ASKING = "asking the peer to agree"
    PROMOTING = "becoming primary"
    DEMOTING = "demoting"
    LEAVING = "leaving"
    COMPARING = "giving up its copy for a full comparison"


class Roles:
    """The role procedure under way, if any, and whether a resume is pending."""

    def __init__(self, volume: Volume, resume_pending: bool) -> None:
        self._volume = volume
        #: This node was primary when it stopped without a clean stop, and waits to be it again.
        self.resume_pending = resume_pending
        self.task: Task | None = None
        self._step: Callable[[], None] | None = None
        self._number = 0
        #: Counts the procedures that ended: what one of them waited for does nothing any more.
        self._ended = 0
        self._reason, self._request = "", PromoteRequest()
        #: A clean stop that waits for the procedure under way.
        self._leave_number = 0
        self._asked: Session | None = None
        self._ask_number = 0
        self._granted: Callable[[], None] | None = None
        #: The peer to whose promotion this node agreed, until its generation comes.
        self._agreed: Session | None = None
        #: The order to compare the whole copy, until its claim is given up.
        self._comparison: Comparison | None = None

    @property
    def agreed(self) -> bool:
        """Whether this node agreed to a promotion of which it has not heard more."""
        return self._agreed is not None

    @property
    def busy(self) -> bool:
        """Whether a procedure is under way."""
        return self.task is not None or self._agreed is not None

    def poll(self) -> None:
        """Take the step that waits for something, if it has come."""
        if self._step is not None:
            self._step()
        if self._leave_number and self.task is None:
            number, self._leave_number = self._leave_number, 0
            self.leave(number)

    # Promotion.

    def promote(self, number: int, request: PromoteRequest) -> None:
        """An operator asks; the answer comes as a verdict with the request's number."""
        volume = self._volume
        if volume.is_primary and not self.busy:
            volume.answer(number, granted("this node is primary already"))
            return
        evidence = judge(volume, request)
        if not evidence.verdict.ok:
            volume.answer(number, evidence.verdict)
            return
        self._number = number
        origin, permit = _origin(request), evidence.verdict.reason
        self._reason, self._request = permit, request
        if request.lose_data:
            for session in volume.sessions.values():
                session.drop("an operator promotes this copy as it is")
        self._granted = lambda: self._go(origin, permit, evidence.ask)
        if evidence.ask is not None:
            self._ask(evidence.ask, resume=False)
        else:
            self._granted()

    def _ask(self, session: Session, *, resume: bool) -> None:
        self.task = Task.ASKING
        self._asked = session
        self._ask_number += 1
        generation = self._volume.commits.stored.generation.id
        session.send_control(
            Type.PROMOTE_ASK,
            {"number": self._ask_number, "generation": generation, "resume": resume},
        )

    def on_ask(self, session: Session, fields: Fields) -> None:
        """The peer wants to be primary: agree only if this node cannot be (design §8)."""
        number = fields.number("number")
        refusal = self._objection(session, fields.number("generation"))
        if refusal:
            no = {"number": number, "agree": False, "reason": refusal}
            session.send_control(Type.PROMOTE_ANSWER, no)
            return
        volume = self._volume
        if self.task is Task.ASKING:
            self._refuse_own(f"{session.name} asked at the same time and has the lower node id")
        self._agreed = None if fields.flag("resume") else session
        self.resume_pending = False
        if volume.facts.is_primary:
            volume.change_facts(is_primary=False)
        yes = {"number": number, "agree": True, "reason": ""}
        agree = session.on_this_connection(lambda: session.send_control(Type.PROMOTE_ANSWER, yes))
        volume.commits.when_stored(volume.facts, agree)

    def _objection(self, session: Session, generation_id: int) -> str:
        volume = self._volume
        if not volume.commits.stored.lineage:
            return f"{volume.node} holds no data yet"
        if volume.is_primary:
            return f"{volume.node} is primary; demote it first: replctl demote {volume.name}"
        if session.phase not in (Phase.ESTABLISHED, Phase.TARGET):
            return f"{volume.node} has not finished the handshake"
        if self.task is Task.ASKING and volume.facts.node_id < session.node_id:
            return f"{volume.node} is being promoted itself"
        standing_back = self._comparison is not None and self._comparison.stands_back
        if standing_back or self.task in (Task.PROMOTING, Task.DEMOTING, Task.LEAVING):
            assert self.task is not None
            return f"{volume.node} is {self.task.value}"
        stored = volume.commits.stored
        if session.phase is Phase.ESTABLISHED and stored.generation.id != generation_id:
            return f"{volume.node} holds another generation"
        return ""

    def on_answer(self, session: Session, fields: Fields) -> None:
        """The peer agreed or said why not."""
        agree, reason = fields.flag("agree"), fields.text("reason")
        number = fields.number("number")
        if not 0 < number <= self._ask_number:
            raise PeerError("PROMOTE_ANSWER: nothing was asked")
        if self.task is not Task.ASKING or number != self._ask_number:
            # This node has withdrawn the question meanwhile, in the peer's favour.
            if agree:
                session.drop("it agreed to a question that was withdrawn")
            return
        if not agree:
            self._refuse_own(reason)
            return
        assert self._granted is not None
        self._granted()

    def _refuse_own(self, reason: str) -> None:
        number, self._number = self._number, 0
        self._end()
        next_step = f"replctl wait {self._volume.name} --for promotable"
        if number:
            self._volume.answer(number, refused("PROMOTE_PEER_REFUSED", reason, next_step))

    def _go(self, origin: Origin, permit: str, asked: Session | None) -> None:
        volume = self._volume
        joining = any(session.phase is Phase.JOINING for session in volume.sessions.values())
        if volume.changes.busy or joining:
            self._step = lambda: self._go(origin, permit, asked)
            self.task = Task.PROMOTING
            return
        self.task = Task.PROMOTING
        self._step = None
        volume.changes.promote(origin, permit, self._during(self._promoted), asked)

    def _promoted(self) -> None:
        number, self._number = self._number, 0
        self.resume_pending = False
        self._end()
        chronicle.promoted(self._volume, self._request, self._reason)
        self._volume.become_primary()
        self._volume.absence.became_primary()
        if number:
            self._volume.answer(number, granted(self._reason))

    def followed_generation(self, session: Session) -> None:
        """A connected primary's new generation is stored here."""
        if self._agreed is session:
            self._agreed = None
        self.resume_pending = False
        self._volume.offer(session.name)

    def peer_established(self, session: Session) -> None:
        """Both copies are equal: an agreement given before has come to its end."""
        if self._agreed is session:
            self._agreed = None

    # Resuming after a restart.

    def try_resume(self, session: Session | None) -> None:
        """Become primary again, in the same generation, if design §8 lets it."""
        volume = self._volume
        if not self.resume_pending or self.busy or volume.is_primary:
            return
        facts = volume.facts
        if session is not None and session.phase is Phase.ESTABLISHED:
            self._granted = self._resumed
            self._ask(session, resume=True)
        else:
            target_waits = session is not None and session.phase is Phase.SOURCE and facts.alone
            if target_waits or (session is None and sole_survivor(volume)):
                self._resumed()

    def _resumed(self) -> None:
        self.resume_pending = False
        self._end()
        self._volume.tell("RESUMED", "resuming as primary after a restart")
        self._volume.intents.connection_ended()
        self._volume.become_primary()
        self._volume.absence.became_primary()

    # Demotion.

    def demote(self, number: int, *, drop_clients: bool) -> None:
        """Drain, flush, let members confirm, then store that this node is primary no more."""
        volume = self._volume
        if not volume.is_primary and self.task is None:
            self.resume_pending = False
            if volume.facts.is_primary:
                volume.change_facts(is_primary=False)
            volume.commits.request(lambda: volume.answer(number, granted("it was not primary")))
            return
        if self.busy or (volume.full and volume.changes.busy):
            volume.answer(number, refused("VOLUME_BUSY", "another change is in progress"))
            return
        if volume.full:
            self._demote_without_draining(number)
            return
        self._number = number
        self._begin_demotion(Task.DEMOTING, drop_clients, self._demoted)

    def _demote_without_draining(self, number: int) -> None:
        """Writes wait for room that may never come. They were not answered and are let go; what
        they may have reached is marked by intents here and there, and is compared at once."""
        volume = self._volume
        self.step_down("it is demoted while writes wait for room on its disk")
        reason = "writes that waited for room were not carried out"
        volume.commits.request(lambda: volume.answer(number, granted(reason)))

    def _begin_demotion(self, task: Task, drop_clients: bool, then: Callable[[], None]) -> None:
        volume = self._volume
        self.task = task
        volume.freeze("demoting")
        if drop_clients:
            volume.outbox.abandon_clients = True
            volume.writes.go_silent()
        for session in volume.sessions.values():
            if session.phase is Phase.GREETING:
                session.drop("demotion does not wait for a handshake")
        self._step = lambda: self._demotion_drained(then)

    def _demotion_drained(self, then: Callable[[], None]) -> None:
        if self._volume.writes.drained and not self._volume.changes.busy:
            self._step = None
            flushed = self._during(lambda: self._demotion_flushed(then))
            self._volume.writes.barrier(Waiter.ROLE, flushed)

    def _demotion_flushed(self, then: Callable[[], None]) -> None:
        self._step = lambda: self._demotion_confirmed(then)

    def _demotion_confirmed(self, then: Callable[[], None]) -> None:
        volume = self._volume
        waiting = [s for s in volume.established_members() if not s.confirmed]
        if waiting or volume.changes.busy:
            return
        self._step = None
        volume.clear_intents()
        volume.change_facts(is_primary=False)
        volume.commits.request(self._during(lambda: self._stepped_down(then)), with_maps=True)

    def _stepped_down(self, then: Callable[[], None]) -> None:
        volume = self._volume
        volume.become_secondary()
        # Nobody whose request came after the drain gets an answer here; nothing of it happened.
        volume.outbox.abandon_clients = True
        volume.writes.drop_held()
        volume.writes.silent = False
        volume.thaw("demoting")
        then()

    def _demoted(self) -> None:
        number, self._number = self._number, 0
        self._end()
        self._volume.answer(number, granted("all writes are on every copy that is in sync"))

    def step_down(self, reason: str) -> None:
        """Cease to be primary by force: in-flight writes are never answered (design §5)."""
        volume = self._volume
        volume.tell("STEPPED_DOWN", f"this node steps down: {reason}", reason=reason)
        self._fail_task(reason)
        volume.outbox.abandon_clients = True
        volume.writes.abandon()
        volume.become_secondary()
        volume.thaw("demoting")
        volume.change_facts(is_primary=False)
        self.resume_pending = False
        volume.commits.request(with_maps=True)
        for session in volume.sessions.values():
            # Now, not after the commit: the next hello waits until all of this is stored.
            session.drop(reason)

    # Leaving: a clean stop.

    def leave(self, number: int) -> None:
        """Hand over what can be handed over, so that the other side needs no vouching."""
        volume = self._volume
        if self.task is Task.COMPARING:
            self._fail_task(f"{volume.node} is being stopped")
        if self.task is not None:
            self._leave_number = number
            return
        self._number = number
        if volume.is_primary and volume.full:
            # It cannot be drained. Still primary by its record, it resumes when it is back.
            volume.answer(number, granted("left; writes that waited for room were not answered"))
            self._number = 0
        elif volume.is_primary and not volume.failed:
            self._begin_demotion(Task.LEAVING, True, self._hand_over)
        elif volume.failed:
            volume.commits.request(self._left)
        else:
            self.task = Task.LEAVING
            volume.syncs.request(self._during(self._hand_over))

    def _hand_over(self) -> None:
        volume = self._volume
        members = volume.established_members()
        if not members or volume.failed or volume.facts.holds_release:
            self._left()
            return
        session = members[0]
        self._step = lambda: self._await_left(session)
        self.release_to(session, compares=False)

    def release_to(self, session: Session, *, compares: bool) -> None:
        """Store that this node will not be promoted without contact, then tell the peer; `compares`
        if it does so for a comparison of its whole copy."""
        volume = self._volume
        behind_primary = session.peer_status.get("role") == "primary"
        volume.change_facts(released=True, is_primary=False, outdated=behind_primary)
        body = {"outdated": behind_primary, "compares": compares}
        leave = session.on_this_connection(lambda: session.send_control(Type.LEAVE, body))
        volume.commits.request(leave)

    def _await_left(self, session: Session) -> None:
        if not session.connected:
            self._left()

    def on_leave_stored(self, session: Session) -> None:
        """The peer stored the release (or went on without this node)."""
        if self._volume.failed:
            session.drop("the local copy failed")
        elif self.task is Task.LEAVING:
            self._left()
        elif self._comparison is not None and self._comparison.stands_back:
            self._comparison.stored_there(session)
        else:
            raise PeerError("LEAVE_STORED: this node is not leaving")

    def _left(self) -> None:
        number, self._number = self._number, 0
        self._step = None
        if number:
            self._volume.answer(number, granted("left"))

    def on_leave(self, session: Session, fields: Fields) -> None:
        """The peer stops, or gives up its copy for a comparison: it has stored that it will not be
        promoted without contact. It goes only when all that it may hold is durable here."""
        volume = self._volume
        # An older version does not say so: it is taken for one that cannot be vouched for.
        outdated = fields.flag("outdated") if fields.has("outdated") else True
        if session.phase is not Phase.ESTABLISHED:
            raise PeerError("LEAVE: the copies are not established")
        if not volume.is_primary:
            facts = volume.facts
            if not facts.released or release_winner(facts, session.node_id) == facts.node_id:
                volume.change_facts(holds_release=True)
            stored = session.on_this_connection(lambda: session.send(Type.LEAVE_STORED))
            volume.commits.request(lambda: volume.syncs.request(stored))
            if self.task is Task.COMPARING:
                # Both copies must not be given up, and two orders may have crossed.
                self._fail_task(f"{session.name} is leaving, or was told the same at once")
                session.drop("both nodes stand back for each other")
        elif not volume.changes.busy:
            # The end of the connection is the answer: the other side has stored its part. One that
            # did not know yet that this node is primary can still be vouched for, and then a
            # generation that answered nobody must give way.
            compares = fields.has("compares") and fields.flag("compares")
            why = "is to be compared as a whole" if compares else "left cleanly"
            volume.changes.lose([session], f"{session.name} {why}", agreed=outdated)

    # A comparison of the whole copy (`full_compare.py`).

    def stand_back(self, number: int, comparison: Comparison) -> None:
        """Begin: this node stands back, and then its copy gives up its claim."""
        assert not self.busy and not self._volume.is_primary
        self.task = Task.COMPARING
        self._number = number
        self._comparison = comparison
        self._step = comparison.poll

    def end_comparison(self) -> int:
        """It has come to its end, whatever that is; return the number of the order."""
        number, self._number = self._number, 0
        self._end()
        return number

    # Shared.

    def connection_ended(self, session: Session) -> None:
        """Whatever was asked of this peer is not answered any more."""
        if self._agreed is session:
            self._agreed = None
        if self.task is Task.ASKING and self._asked is session:
            self._refuse_own(f"the connection to {session.name} broke while it was asked")

    def disk_failed(self) -> None:
        """The local copy failed: whatever was under way will not end."""
        self._fail_task("the local copy failed")

    def _fail_task(self, reason: str) -> None:
        number, self._number = self._number, 0
        leaving = self.task is Task.LEAVING
        self._end()
        self._agreed = None
        if number:
            verdict = granted("left") if leaving else refused("VOLUME_BUSY", reason)
            self._volume.answer(number, verdict)

    def _during(self, act: Callable[[], None]) -> Callable[[], None]:
        """Wrap what waits for a disk, so that it never acts for a procedure that has ended."""
        ended = self._ended

        def guarded() -> None:
            if self._ended == ended:
                act()

        return guarded

    def _end(self) -> None:
        self._ended += 1
        self.task = None
        self._step = None
        self._asked = None
        self._granted = None
        self._comparison = None


def release_winner(facts: Facts, peer_id: int) -> int:
    """Return which of two nodes that leave at once holds the release: one of them, never both.

    The last primary if it is one of the two, else the lower node id.
    """
    both = (facts.node_id, peer_id)
    last_primary = facts.generation.primary
    return last_primary if last_primary in both else min(both)


def sole_survivor(volume: Volume) -> bool:
    """Whether this node alone holds everything and has proof of it."""
    facts = volume.facts
    return lineage.sole_and_answered(facts.lineage, facts.node_id)


def _origin(request: PromoteRequest) -> Origin:
    if request.lose_data:
        return Origin.DATA_LOST
    return Origin.PEER_DEAD if request.peer_dead else Origin.PROMOTED

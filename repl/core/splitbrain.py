"""Resolving a split-brain: one copy is kept, the other gives up what it wrote since the fork.

Design §5. An operator names the copy to keep, on either node. The steps, each durable before the
next one is taken:

1. the side to be given up agrees and stores that it is outdated: from now on nothing but
   `--lose-data`, which makes another generation, promotes it;
2. the kept side stores the id of the other's generation as discarded, and from then on refuses to
   be given up for it;
3. only when told so does the other side store its one record: current generation := the common
   ancestor, inconsistent, and all that it may have changed since in the remaining map.

Then both shake hands again, and the ancestor row of the handshake copies what differs. After an
interruption between 2 and 3 the kept side tells it again, by itself, at every contact. Nothing is
copied and nobody's bytes change before step 3 is durable. The two sides never give up both, and a
primary never gives up anything.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

from repl.core.divergence import Divergence
from repl.core.giving_up import take_back
from repl.core.states import Phase
from repl.core.verdict import Verdict, granted, refused
from repl.core.wire import Fields, PeerError, Type

if TYPE_CHECKING:
    from repl.core.session import Session
    from repl.core.volume import Volume

#: Discarded generations that a kept side remembers; an older one's holder is long a copy of ours.
DISCARDED_KEPT = 16
#: The first protocol version with the frames of this file.
RESOLVE_PROTOCOL = 2
#: Codes that a refusal from the peer may carry; another one becomes RESOLVE_PEER_REFUSED.
_PEER_CODES = frozenset({"RESOLVE_PRIMARY", "RESOLVE_DECIDED", "RESOLVE_RACED", "VOLUME_BUSY"})


class Step(enum.Enum):
    """How far a resolution has come on this connection, seen from this side."""

    NONE = "none"
    #: Ordered here, to keep the peer's copy: the peer was asked to take it up.
    FORWARDED = "forwarded"
    #: This side is to be kept and has asked the peer whether it agrees to be given up.
    ASKING = "asking"
    #: The peer agreed; that this side is kept is being stored.
    KEEPING = "keeping"
    #: This side is kept, durably, and has told the peer.
    TELLING = "telling"
    #: This side agreed to be given up and waits to be told that the peer's choice is stored.
    AGREED = "agreed"
    #: The record is being stored, or is stored: this side is the common ancestor, inconsistent.
    GIVING_UP = "giving-up"


STEPS: dict[Step, frozenset[Step]] = {
    Step.NONE: frozenset({Step.FORWARDED, Step.ASKING, Step.AGREED, Step.TELLING, Step.GIVING_UP}),
    Step.FORWARDED: frozenset({Step.NONE, Step.ASKING, Step.AGREED, Step.GIVING_UP}),
    Step.ASKING: frozenset({Step.NONE, Step.KEEPING, Step.AGREED, Step.GIVING_UP}),
    Step.KEEPING: frozenset({Step.TELLING}),
    Step.TELLING: frozenset({Step.NONE}),
    Step.AGREED: frozenset({Step.AGREED, Step.GIVING_UP}),
    Step.GIVING_UP: frozenset(),
}


#: By "keep this side": steps in which just that is on its way, and an order for it may join.
_SAME_ORDER = {
    True: frozenset({Step.ASKING, Step.KEEPING, Step.TELLING}),
    False: frozenset({Step.FORWARDED, Step.AGREED}),
}


class SplitBrain:
    """One connection in a split-brain: what the two sides tell each other, and the order to resolve
    it, if one was given. Dies with the connection; what must outlive it is in the facts."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._volume = session.volume
        self.divergence = Divergence(session)
        self.step = Step.NONE
        #: Why the peer, told that it is given up, did not obey.
        self.disobeyed: Verdict | None = None
        self._number = 0
        self._asks = 0

    # What others ask.

    @property
    def speaks(self) -> bool:
        """Whether the peer's version knows the frames of a resolution."""
        hello = self._session.their_hello
        return hello is not None and hello.protocol >= RESOLVE_PROTOCOL

    @property
    def kept(self) -> bool:
        """Whether this side has stored, or is storing, that it is kept and the peer is given up."""
        return self._their_generation in self._volume.facts.discarded

    @property
    def agreed(self) -> bool:
        """Whether this side has agreed to be given up, on this connection or an earlier one."""
        return self._volume.facts.outdated

    @property
    def _their_generation(self) -> int:
        hello = self._session.their_hello
        assert hello is not None
        return hello.lineage[0].id

    def why_and_next(self) -> tuple[str, str]:
        """What status says of the volume."""
        volume, peer = self._volume, self._session.name
        decision = self._session.decision
        assert decision is not None
        show = f"replctl splitbrain show {volume.name}"
        if self.disobeyed is not None:
            why = f"{volume.node} is kept, but {peer} does not give up its copy: "
            return why + self.disobeyed.reason, self.disobeyed.next_step
        if self.kept:
            return f"{volume.node} is kept; {peer} is giving up what only it has", "nothing to do"
        if self.agreed:
            why = f"{volume.node} agreed to be given up for {peer}, which has not stored its choice"
            return why, f"replctl splitbrain resolve {volume.name} --keep {peer}"
        both = volume.is_primary and self._session.peer_status.get("role") == "primary"
        more = " Both are primary: their clients see different data." if both else ""
        return decision.sentence + more, show

    # Connection life.

    def begin(self) -> None:
        """Both sides found the split-brain; a peer that was given up before is told again."""
        self._volume.send_status()
        if not self.speaks:
            return
        self.divergence.tell(self.kept, self.agreed)
        if self.kept:
            self._tell()

    def tick(self) -> None:
        """The clock: tell the peer what changed."""
        if self.speaks and self._session.phase is Phase.SPLIT_BRAIN:
            self.divergence.tick(self.kept, self.agreed)

    def ended(self) -> None:
        """The connection is gone: say what became of the order."""
        volume, peer = self._volume, self._session.name
        again = f"replctl splitbrain show {volume.name}"
        if self.step is Step.TELLING:
            self._answer(granted(self._kept_sentence("it is told at the next contact")))
        elif self.step in (Step.FORWARDED, Step.AGREED):
            why = f"the connection to {peer} broke; if {peer} has stored the choice, it goes on"
            self._answer(refused("RESOLVE_INTERRUPTED", why, again))
        elif self.step is Step.ASKING:
            why = f"the connection to {peer} broke before the choice was stored"
            self._answer(refused("RESOLVE_INTERRUPTED", why, again))

    def _go(self, step: Step) -> None:
        assert step in STEPS[self.step], f"illegal step {self.step.value} → {step.value}"
        self.step = step
        self._volume.outbox.changed = True

    @property
    def _alive(self) -> bool:
        return self._session.split is self

    def _answer(self, verdict: Verdict) -> None:
        """Answer the operator of this node, if one waits."""
        number, self._number = self._number, 0
        if number:
            self._volume.answer(number, verdict)

    # An operator's order.

    def order(self, number: int, keep_me: bool) -> None:
        """Take up an order that was given on this node."""
        volume, peer = self._volume, self._session.name
        if not self._number and self.step in _SAME_ORDER[keep_me]:
            # That very order is being carried out, given on the other node or taken up again.
            self._number = number
            return
        bar: Verdict | None = None
        if not self.speaks:
            bar = refused(
                "RESOLVE_PEER_REFUSED",
                f"{peer} runs a version that cannot resolve a split-brain",
                f"upgrade repld on {peer}",
            )
        elif self.step is not Step.NONE or volume.changes.busy or volume.roles.busy:
            bar = refused("VOLUME_BUSY", "another change of this volume is in progress")
        elif not keep_me:
            bar = self._bar_to_giving_up()
        if bar is not None:
            volume.answer(number, bar)
            return
        self._number = number
        if keep_me:
            self._ask()
        else:
            self._go(Step.FORWARDED)
            self._send_ask(keep_me=False, generation=volume.commits.stored.generation.id)

    def _send_ask(self, *, keep_me: bool, generation: int) -> None:
        self._asks += 1
        body = {"number": self._asks, "keep_me": keep_me, "generation": generation}
        self._session.send_control(Type.RESOLVE_ASK, body)

    def _ask(self) -> None:
        """This side is to be kept: does the peer agree to be given up?"""
        self._go(Step.ASKING)
        self._send_ask(keep_me=True, generation=self._their_generation)

    # What the peer asks.

    def on_ask(self, fields: Fields) -> None:
        """The peer asks to be kept, or passes on an order to keep this side."""
        number, keep_it = fields.number("number"), fields.flag("keep_me")
        given_up = fields.number("generation")
        mine = self._volume.commits.stored.generation.id
        if given_up != (mine if keep_it else self._their_generation):
            # A generation was made since the hellos: both look at each other anew.
            self._session.drop("a copy changed its generation while it was being chosen")
            return
        bar = self._bar_to_giving_up() if keep_it else self._bar_to_keeping()
        if bar is not None:
            self._send_answer(number, bar)
            if keep_it and self.step is Step.FORWARDED:
                self._go(Step.NONE)
                self._answer(bar)
            return
        if keep_it:
            self._agree(number)
        elif self.step in (Step.NONE, Step.FORWARDED):
            self._lose_race()
            self._ask()

    def _send_answer(self, number: int, verdict: Verdict) -> None:
        body: dict[str, Any] = {"number": number, "agree": verdict.ok, "code": verdict.code}
        body |= {"reason": verdict.reason, "next": verdict.next_step}
        self._session.send_control(Type.RESOLVE_ANSWER, body)

    def _bar_to_giving_up(self) -> Verdict | None:
        """Why this side cannot agree to be given up, None if it can."""
        volume, peer, name = self._volume, self._session.name, self._volume.name
        if self.kept:
            return refused(
                "RESOLVE_DECIDED",
                f"{volume.node} was chosen to be kept already, and {peer} to be given up",
                f"replctl splitbrain resolve {name} --keep {volume.node}",
            )
        if volume.is_primary:
            clients = len(volume.client_names)
            held = f" and {clients} client{'s hold' if clients > 1 else ' holds'} it"
            return refused(
                "RESOLVE_PRIMARY",
                f"{name} is primary on {volume.node}{held if clients else ''}; "
                "a copy in use is not given up",
                f"on {volume.node}: replctl demote {name} --drop-clients   "
                f"(then again: replctl splitbrain resolve {name} --keep {peer})",
            )
        if volume.changes.busy or volume.roles.busy or self.step is Step.GIVING_UP:
            return refused("VOLUME_BUSY", f"another change of {name} is in progress")
        if self.step is Step.ASKING and volume.facts.node_id < self._session.node_id:
            return self._raced(volume.node)
        return None

    def _bar_to_keeping(self) -> Verdict | None:
        """Why this side cannot be kept by an order given on the peer, None if it can."""
        if self.step in (Step.AGREED, Step.GIVING_UP):
            return refused("VOLUME_BUSY", f"{self._volume.node} is being given up already")
        if self.step is Step.FORWARDED and self._volume.facts.node_id < self._session.node_id:
            return self._raced(self._volume.node)
        return None

    def _raced(self, winner: str) -> Verdict:
        return refused(
            "RESOLVE_RACED",
            f"the opposite was ordered on {winner} at the same time, and that order is carried out",
            f"replctl splitbrain show {self._volume.name}",
        )

    def _lose_race(self) -> None:
        """The opposite was ordered on the peer, which has the lower node id."""
        self._answer(self._raced(self._session.name))

    # The side that is given up.

    def _agree(self, number: int) -> None:
        """Step 1: nothing makes this copy primary again but a new generation, by name."""
        volume, session = self._volume, self._session
        if self.step is Step.ASKING:
            self._lose_race()
        self._go(Step.AGREED)
        volume.roles.resume_pending = False
        volume.change_facts(outdated=True, is_primary=False)

        def agree() -> None:
            self._send_answer(number, granted(f"{volume.node} agrees to be given up"))
            volume.send_status()

        volume.commits.when_stored(volume.facts, session.on_this_connection(agree))

    def on_discard(self, generation_id: int) -> None:
        """Step 3: the peer has stored that it is kept and this generation discarded."""
        volume, peer = self._volume, self._session.name
        bar: Verdict | None = None
        if generation_id != volume.facts.generation.id or volume.changes.busy:
            bar = refused("VOLUME_BUSY", f"another change of {volume.name} is in progress")
        elif volume.is_primary or self.kept or not volume.commits.stored.outdated:
            # Nobody's word but its own makes a copy give up its writes; a restored one gave none.
            bar = self._bar_to_giving_up() or refused(
                "RESOLVE_PEER_REFUSED",
                f"{volume.node} does not remember that it agreed to be given up",
                f"replctl splitbrain resolve {volume.name} --keep {peer}",
            )
        if bar is not None:
            self._send_answer(0, bar)
            return
        if self.step is Step.ASKING:
            self._answer(self._raced(peer))
        self._go(Step.GIVING_UP)
        text = f"{peer} is kept: what only {volume.node} has is given up"
        volume.tell("COPY_GIVEN_UP", text, peer=peer)
        take_back(self._session)
        volume.commits.request(lambda: self._given_up(generation_id), with_maps=True)

    def _given_up(self, generation_id: int) -> None:
        peer = self._session.name
        self._answer(
            granted(
                f"{peer} is kept; what only {self._volume.node} has is given up, and the blocks "
                f"that differ are copied from {peer}"
            )
        )
        if self._alive:
            # The kept side ends the connection: the next handshake finds an ancestor.
            self._session.send(Type.DISCARDED, generation_id)
            self._volume.send_status()

    # The side that is kept.

    def on_answer(self, fields: Fields) -> None:
        """The peer agreed to be given up, or said why not."""
        number, agree = fields.number("number"), fields.flag("agree")
        code, reason, next_step = (
            fields.text("code", 40),
            fields.text("reason"),
            fields.text("next"),
        )
        if number > self._asks:
            raise PeerError("RESOLVE_ANSWER: nothing was asked")
        refusal = refused(
            code if code in _PEER_CODES else "RESOLVE_PEER_REFUSED", reason, next_step
        )
        if number == 0 and self.step is Step.TELLING and not agree:
            self._go(Step.NONE)
            self.disobeyed = refusal
            self._volume.note("warning", f"{self._session.name} is not given up: {reason}")
            self._answer(granted(self._kept_sentence(f"it does not obey yet: {reason}")))
        elif number == self._asks and self.step in (Step.ASKING, Step.FORWARDED):
            if agree and self.step is Step.ASKING:
                self._keep()
            elif not agree:
                self._go(Step.NONE)
                self._answer(refusal)
        # Any other answers a question that was withdrawn in the peer's favour.

    def _keep(self) -> None:
        """Step 2: from the commit on, this side refuses to be given up for that generation."""
        volume, given_up = self._volume, self._their_generation
        self._go(Step.KEEPING)
        older = [known for known in volume.facts.discarded if known != given_up]
        volume.change_facts(
            discarded=(given_up, *older)[:DISCARDED_KEPT],
            # An agreement of its own, from an earlier order that was never stored, is void.
            outdated=False,
        )
        volume.commits.request(self._stored)

    def _stored(self) -> None:
        volume, peer = self._volume, self._session.name
        text = f"{volume.node} is kept; {peer} is to give up what only it has"
        volume.tell("COPY_KEPT", text, peer=peer)
        if self._alive:
            self._tell()
            volume.send_status()
        else:
            self._answer(granted(self._kept_sentence("it is told at the next contact")))

    def _tell(self) -> None:
        assert self._their_generation in self._volume.commits.stored.discarded, "stored, then told"
        self._go(Step.TELLING)
        self._session.send(Type.DISCARD, self._their_generation)

    def _kept_sentence(self, more: str) -> str:
        node, peer = self._volume.node, self._session.name
        return f"{node} is kept; {peer} is to give up what only it has ({more})"

    def on_discarded(self, generation_id: int) -> None:
        """The other side's record is stored: the next handshake finds it an ancestor."""
        if self.step is not Step.TELLING or generation_id != self._their_generation:
            raise PeerError("DISCARDED: nothing was told")
        node, peer = self._volume.node, self._session.name
        self._answer(
            granted(
                f"{node} is kept; {peer} has given up what only it had, and the blocks that differ "
                f"are copied to it"
            )
        )
        # Answered: the end of the connection says no more about it.
        self.step = Step.NONE
        self._session.drop(f"{peer} gave up its own writes and shakes hands again")


def order(volume: Volume, number: int, keep: str) -> None:
    """An operator chose the copy on node `keep`; the verdict comes with the request's number."""
    if keep != volume.node and keep not in volume.sessions:
        known = ", ".join((volume.node, *volume.sessions))
        volume.answer(
            number,
            refused("NO_SUCH_PEER", f"the volume has no copy on {keep}", f"name one of: {known}"),
        )
        return
    sessions = [s for s in volume.sessions.values() if keep in (volume.node, s.name)]
    for session in sessions:
        if session.split is not None:
            session.split.order(number, keep == volume.node)
            return
    volume.answer(number, not_split(volume, sessions))


def not_split(volume: Volume, sessions: list[Session], cut_by: str = "") -> Verdict:
    """Why there is nothing to resolve between this node and these peers.

    cut_by: who forbade this node to connect, in words; empty if nobody did.
    """
    name = volume.name
    if not sessions:
        return refused("NOT_SPLIT", f"{name} has no peer", f"replctl status {name}")
    session = sessions[0]
    peer, decision = session.name, session.decision
    if session.phase is Phase.GREETING:
        return refused("VOLUME_BUSY", f"the handshake with {peer} goes on", "try again in a moment")
    if session.phase is Phase.DOWN:
        away = f"{cut_by} disconnected {name} from {peer}" if cut_by else f"{peer} is not connected"
        mend = (
            f"replctl connect {name}" if cut_by else f"start repld on {peer} or look at the network"
        )
        return refused(
            "NOT_SPLIT",
            f"{away}: whether the copies went apart shows at contact, and both sides take part in "
            "choosing",
            f"{mend}, then: replctl status {name}",
        )
    if session.phase is Phase.ESTABLISHED:
        return refused(
            "NOT_SPLIT", f"both copies hold the same writes ({peer})", f"replctl status {name}"
        )
    if session.phase in (Phase.IDLE, Phase.REFUSED) and decision is not None:
        return refused("NOT_SPLIT", decision.sentence.rstrip("."), decision.next_step)
    return refused(
        "NOT_SPLIT",
        f"the copies here and on {peer} are being made equal already",
        f"replctl wait {name} --for in-sync",
    )

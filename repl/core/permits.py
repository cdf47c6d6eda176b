"""Leave to go on alone: whom a primary asks before it acknowledges anything without its peer.

Design §8. The providers have one small interface, `Provider.ask`: it is asked again and again, and
gives the words of a permit or nothing; while it gives nothing, the volume is frozen. The permit is
stored with the generation that it is for (who, why; the generation has the time), and shown as
long as it matters. Nobody is asked where the peer itself is the evidence: it left, its copy was
replaced, or it has stored that its copy is incomplete; nor where nobody is answered by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from repl.core.lineage import Origin
from repl.core.verdict import Verdict, granted, operator, refused

if TYPE_CHECKING:
    from repl.core.session import Session
    from repl.core.volume import Volume

FREEZE = "no leave to go on alone"
#: Permits shown at once; a node that was alone for years has many.
SHOWN_MAX = 8
#: Origins of generations whose permit a person should know of while it matters.
_TOLD_ORIGINS = frozenset({Origin.ALONE, Origin.PEER_DEAD, Origin.DATA_LOST})


@dataclass(frozen=True, slots=True)
class Question:
    """May this primary leave the peer behind? For this generation, and no other."""

    peer: str
    generation_id: int
    counter: int


class Provider(Protocol):
    """Who gives leave to go on alone."""

    #: What status says the volume waits for, and what a person can run; formats take the names.
    next_step: str

    def ask(self, question: Question) -> str:
        """Return the words of the permit, or "" as long as there is none."""

    def withdraw(self) -> None:
        """The question is closed: the peer is back, or was left behind. A permit for it is void."""


class Manual:
    """The default: a primary goes on without its peer; the cut-off secondary waits for a person."""

    next_step = ""

    def ask(self, question: Question) -> str:
        """Leave is given by the configuration."""
        return f"manual: {question.peer} did not answer"

    def withdraw(self) -> None:
        """Nothing is kept."""


class AskOperator:
    """`alone = "ask"`: a person says it, for each generation anew."""

    next_step = "bring {peer} back; or go on without it:  replctl continue {volume}"

    def __init__(self) -> None:
        self._given: tuple[Question, str] | None = None

    def ask(self, question: Question) -> str:
        """Leave is given if an operator said so to this very question."""
        if self._given is None or self._given[0] != question:
            return ""
        return self._given[1]

    def withdraw(self) -> None:
        """What an operator said about one absence does not count for the next."""
        self._given = None

    def give(self, question: Question, by: str) -> None:
        """An operator's word."""
        words = f"{operator(by)} continued without {question.peer}, which did not answer"
        self._given = (question, words)


class Alone:
    """The question that is open, if any, and the freeze that goes with it."""

    def __init__(self, volume: Volume, provider: Provider) -> None:
        self._volume = volume
        self.provider = provider
        self.question: Question | None = None
        #: When the freeze began, by the volume's clock and for people.
        self.since_s = 0.0
        self.since_wall_s = 0
        self._frozen_before_s = 0.0
        #: An operator's request that is answered when its permit has taken effect.
        self._number = 0

    @property
    def frozen_s_total(self) -> float:
        """How long the volume was frozen for want of a permit, since the start of the process."""
        now = self._volume.now - self.since_s if self.question is not None else 0.0
        return self._frozen_before_s + now

    def permit(self, session: Session) -> str:
        """A member did not answer: return the permit to leave it behind, or "" and freeze."""
        if not session.client_waits:
            return f"{session.name} did not answer, and nobody is answered by this"
        if session.source is not None and session.source.target_is_incomplete:
            return f"{session.name} has stored that its copy is incomplete"
        volume = self._volume
        generation = volume.facts.generation
        question = Question(session.name, generation.id, generation.counter)
        permit = self.provider.ask(question)
        if not permit:
            if self.question is None:
                self._begin(question)
            self.question = question
        return permit

    def _begin(self, question: Question) -> None:
        volume = self._volume
        self.question = question
        self.since_s, self.since_wall_s = volume.now, volume.wall_clock_s
        volume.freeze(FREEZE)
        volume.tell(
            "FROZEN",
            f"{volume.name} is frozen: {question.peer} did not answer, and nobody has permitted "
            f"{volume.node} to go on without it",
            peer=question.peer,
            generation=question.counter,
        )
        volume.outbox.changed = True

    def poll(self) -> None:
        """Called once a turn: end the freeze when nothing waits for an absent member any more."""
        if self.question is None:
            return
        volume = self._volume
        waiting = volume.is_primary and not volume.failed
        if waiting and (
            volume.changes.busy
            or any(s.needed_since_s is not None for s in volume.sessions.values())
        ):
            return
        question, self.question = self.question, None
        self.provider.withdraw()
        passed_s = volume.now - self.since_s
        self._frozen_before_s += passed_s
        back = volume.sessions[question.peer].is_member
        why = f"{question.peer} is back" if back else f"it goes on without {question.peer}"
        if not waiting:
            why = f"{volume.node} is not primary any more"
        volume.tell(
            "THAWED",
            f"{volume.name} was frozen for {passed_s:.1f} s: {why}",
            frozen_s=round(passed_s, 1),
        )
        number, self._number = self._number, 0
        if number:
            verdict = granted(why) if waiting else refused("VOLUME_BUSY", why)
            volume.answer(number, verdict)
        volume.thaw(FREEZE)
        volume.outbox.changed = True

    def give(self, number: int, by: str) -> None:
        """An operator says `continue`; answered when the permit has taken effect."""
        volume, provider = self._volume, self.provider
        refusal = self._refusal()
        if refusal is not None:
            volume.answer(number, refusal)
            return
        assert self.question is not None and isinstance(provider, AskOperator)
        provider.give(self.question, by)
        volume.tell(
            "ALONE_PERMITTED",
            f"{operator(by)} lets {volume.node} go on without {self.question.peer}",
            by=by,
            peer=self.question.peer,
            generation=self.question.counter,
        )
        self._number = number
        volume.upkeep.look_for_losses()

    def _refusal(self) -> Verdict | None:
        volume = self._volume
        if self.question is None:
            asks = isinstance(self.provider, AskOperator)
            why = (
                "it does not wait for a permit: nothing that was written waits for a peer"
                if asks or not volume.is_primary
                else 'it goes on without its peer by itself: its configuration has no alone = "ask"'
            )
            return refused("CONTINUE_NOT_NEEDED", why, f"replctl status {volume.name}")
        if self._number:
            return refused(
                "VOLUME_BUSY", "another permit is taking effect", "try again in a moment"
            )
        return None


def standing(volume: Volume) -> list[dict[str, Any]]:
    """Return the permits that still matter, newest first: who let this history go on without a
    node that has not been in the in-sync set since."""
    facts = volume.facts
    peers = {record.node_id for record in facts.peers if record.name in volume.sessions}
    found: list[dict[str, Any]] = []
    for entry in facts.lineage:
        if len(found) == SHOWN_MAX or (peers and peers <= set(entry.members)):
            break
        if entry.origin in _TOLD_ORIGINS:
            found.append(
                {
                    "generation": entry.counter,
                    "kind": entry.origin.value,
                    "at_s": entry.made_at_s,
                    "permit": entry.permit,
                    "answered": entry.answered,
                }
            )
    return found

"""An operator's order to compare this whole copy with a peer's, by the peer's name (design §5).

The copy gives up its claim durably: from then on it is inconsistent, nothing of it is trusted, and
the next handshake makes it the target of a full comparison. Only blocks that differ are brought. It
is refused where it could cost an acknowledged write as far as can be known: on a primary, towards a
copy that is not whole, and on a copy that is newer than the other.

Until the other copy has everything on stable storage, this one may hold what a loss of power there
would take. So it stands back first, as a node does that leaves (`Comparison`): it stores that it
agrees to be left behind and says so (LEAVE); the other side syncs and, if it is primary, stores
that it goes on alone. Only what shows that this is done lets the claim be given up: LEAVE_STORED
from a secondary, a generation without this node in the next hello of a primary. If neither comes,
the order is refused, and the next handshake makes this copy a member like any other again.

Where the two copies do not even agree on having met (a restored backup, no common history) the
handshake would refuse for ever; there this copy must become a new one, which is not the core's to
do: `Ordered.BECOME_NEW` says so to whoever asked.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from repl.core import lineage
from repl.core.hello import Hello
from repl.core.lineage import Relation
from repl.core.states import Phase
from repl.core.verdict import Verdict, granted, refused

if TYPE_CHECKING:
    from repl.core.session import Session
    from repl.core.volume import Volume

#: Rules of the handshake that refuse two copies of one volume which a comparison makes one again.
RULES_BECOME_NEW = frozenset({"no-common-contact", "unrelated", "not-a-member"})
#: An order is answered within this time: a sync on the other node, and a new connection, take less.
PATIENCE_S = 20.0
_COMPARABLE = frozenset({Phase.ESTABLISHED, Phase.TARGET, Phase.TARGET_STARTING, Phase.IDLE})


class Ordered(enum.Enum):
    """How the copy becomes the target of a comparison."""

    GIVE_UP_CLAIM = "this copy gives up its claim; it stays the copy that it is"
    BECOME_NEW = "this copy becomes a new one; the blocks in its backing stay"


def judge(volume: Volume, peer: str) -> Ordered | Verdict:
    """Return how the comparison comes about, or the refusal. No side effects."""
    session = volume.sessions.get(peer)
    if session is None:
        known = ", ".join(volume.sessions) or "it has none"
        return refused("NO_SUCH_PEER", f"the volume has no peer {peer}", f"its peers: {known}")
    bar = _own_bar(volume) or _source_bar(volume, session)
    if bar is not None:
        return bar
    decision = session.decision
    if session.phase is Phase.REFUSED:
        assert decision is not None
        if decision.rule not in RULES_BECOME_NEW:
            return refused("RESYNC_SOURCE", decision.sentence, decision.next_step)
        return Ordered.BECOME_NEW
    return Ordered.GIVE_UP_CLAIM


def _own_bar(volume: Volume) -> Verdict | None:
    facts, name = volume.facts, volume.name
    if volume.failed:
        return refused("DISK_FAILED", f"the local copy failed: {volume.failed}", "")
    if facts.fresh:
        return refused(
            "ALREADY",
            "this copy is new: all of it is copied anyway",
            f"replctl wait {name} --for in-sync",
        )
    if volume.is_primary or facts.is_primary:
        peers = ", ".join(volume.sessions)
        return refused(
            "RESYNC_PRIMARY",
            f"{volume.node} is primary: its copy is the one in use",
            f"to mend the copy on {peers} by this one, there: replctl resync {name} --full --from "
            f"{volume.node}   (to mend this one, first: replctl demote {name})",
        )
    if volume.changes.busy or volume.roles.busy:
        return refused(
            "VOLUME_BUSY", "another change of this volume is in progress", "try again in a moment"
        )
    return None


def _source_bar(volume: Volume, session: Session) -> Verdict | None:
    peer, name, theirs = session.name, volume.name, session.their_hello
    if not session.connected:
        return refused(
            "RESYNC_SOURCE",
            f"{peer} is not connected: nobody knows whether its copy is whole",
            f"replctl wait {name} --for connected",
        )
    if session.phase is Phase.GREETING or theirs is None:
        return refused("VOLUME_BUSY", f"the handshake with {peer} goes on", "try again in a moment")
    if session.phase is Phase.SPLIT_BRAIN:
        return refused(
            "SPLIT_BRAIN",
            f"this copy and {peer}'s were both written without the other",
            session.decision.next_step if session.decision is not None else "",
        )
    state = session.peer_status.get("disk_state", "")
    # A hello is about the time before: once established, only what the peer shows now counts.
    if session.phase is not Phase.ESTABLISHED and (theirs.fresh or theirs.inconsistent):
        state = "inconsistent"
    if state in ("inconsistent", "failed", "outdated", "diskless"):
        return refused(
            "RESYNC_SOURCE", f"the copy on {peer} is {state}: nothing can be compared with it", ""
        )
    if session.phase not in _COMPARABLE and session.phase is not Phase.REFUSED:
        return refused(
            "RESYNC_SOURCE",
            f"{peer} is being brought up to this copy",
            f"replctl wait {name} --for in-sync",
        )
    return _newer_bar(volume, session, theirs)


def _newer_bar(volume: Volume, session: Session, theirs: Hello) -> Verdict | None:
    if session.phase is Phase.ESTABLISHED:
        return None
    relation = lineage.relate(volume.facts.lineage, theirs.lineage)
    if relation in (Relation.DESCENDANT, Relation.FORKED):
        return refused(
            "RESYNC_NEWER",
            f"this copy holds writes that {session.name}'s lacks",
            f"run it on {session.name}:  replctl resync {volume.name} --full --from {volume.node}",
        )
    return None


def order(volume: Volume, number: int, peer: str, by: str) -> None:
    """Carry it out if `judge` still finds it possible; answered when the claim is given up, or
    refused, after `PATIENCE_S` at most."""
    found = judge(volume, peer)
    if found is Ordered.GIVE_UP_CLAIM:
        volume.roles.stand_back(number, Comparison(volume, volume.sessions[peer], by))
    elif isinstance(found, Verdict):
        volume.answer(number, found)
    else:
        reason = f"the two copies met again, and do not know each other: {found.value}"
        volume.answer(number, refused("VOLUME_BUSY", reason, "try again"))


class _Step(enum.Enum):
    """How far the other side is known to do without this copy."""

    SETTLING = "this copy is still being settled"
    ASKED = "the release is being stored, or was sent"
    PARTED = "the other side let go; whether it goes on alone, its hello will show"


class Comparison:
    """The way from the order to the record; `Roles` polls it once a turn and ends it."""

    def __init__(self, volume: Volume, session: Session, by: str) -> None:
        self._volume = volume
        self._session = session
        self._by = by
        self._step = _Step.SETTLING
        #: The connection on which the other side is told: it has a receiver of its own.
        self._told_on = session.receiver
        self._until_s = volume.now + PATIENCE_S

    @property
    def stands_back(self) -> bool:
        """Whether the other side was told, or is about to be, to do without this copy."""
        return self._step is not _Step.SETTLING

    def poll(self) -> None:
        """Take the step that waits for something, if it has come."""
        session = self._session
        if self._volume.facts.inconsistent:
            self._give_up_claim()  # it is no copy that anybody relies on
        elif self._step is _Step.SETTLING:
            self._stand_back()
        elif self._step is _Step.ASKED and session.receiver is not self._told_on:
            self._step = _Step.PARTED
        elif self._step is _Step.PARTED and session.their_hello is not None:
            self._look_at(session.their_hello)
        elif self._volume.now >= self._until_s:
            self._refuse(f"{session.name} has not shown in time that it has everything")

    def _stand_back(self) -> None:
        session, roles = self._session, self._volume.roles
        if not session.connected:
            self._refuse(f"the connection to {session.name} ended before the copies were equal")
        elif session.phase is Phase.ESTABLISHED and not roles.agreed:
            self._step = _Step.ASKED
            self._told_on = session.receiver
            roles.release_to(session, compares=True)
        elif self._volume.now >= self._until_s:
            self._refuse("this copy is still being settled")

    def _look_at(self, theirs: Hello) -> None:
        """The first hello after the connection ended: is there a generation without this copy?"""
        facts, name = self._volume.facts, self._session.name
        alone = bool(theirs.lineage) and facts.node_id not in theirs.lineage[0].members
        behind = alone and lineage.relate(facts.lineage, theirs.lineage) is Relation.ANCESTOR
        if behind and not theirs.inconsistent:
            self._give_up_claim()
        else:
            self._refuse(f"{name} was lost before it had stored that it goes on alone")

    def stored_there(self, session: Session) -> None:
        """The peer, a secondary, has all that it applied on stable storage (LEAVE_STORED)."""
        assert session is self._session and self._step is _Step.ASKED
        self._give_up_claim()

    def _refuse(self, reason: str) -> None:
        """Nothing was given up; a new handshake takes back what was stored to stand back."""
        volume, name = self._volume, self._session.name
        if self._step is _Step.ASKED:
            self._session.drop("the order to compare this copy was not carried out")
        next_step = (
            f"replctl wait {volume.name} --for in-sync, then: "
            f"replctl resync {volume.name} --full --from {name}"
        )
        volume.answer(volume.roles.end_comparison(), refused("RESYNC_SOURCE", reason, next_step))

    def _give_up_claim(self) -> None:
        """Store that nothing of this copy is trusted, and answer; the next handshake does the rest.

        The connections end first: nothing that a peer sends now may make this copy trusted again.
        """
        volume, peer = self._volume, self._session.name
        number = volume.roles.end_comparison()
        for session in volume.sessions.values():
            session.drop("this copy is to be compared as a whole")
        volume.roles.resume_pending = False
        volume.change_facts(
            inconsistent=True,
            everything_suspect=True,
            source_generation=0,
            holds_release=False,
        )
        text = f"the whole copy on {volume.node} is compared with {peer}'s; what differs is brought"
        volume.tell("FULL_COMPARISON_ORDERED", text, peer=peer, by=self._by)
        volume.commits.request(lambda: volume.answer(number, granted(text)))

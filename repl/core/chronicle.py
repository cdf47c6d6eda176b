"""What the core tells people of: the words of its events, and what was told already.

Each function is called where something has happened, and tells it once: a peer that refuses at
every attempt is an event the first time and a line of the log after that. Nothing here decides or
changes anything of the replication. Codes and severities are `repl/events.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from repl.core.facts import Facts
from repl.core.handshake import Action, Decision
from repl.core.lineage import Generation, Origin
from repl.core.stalls import why_stalled
from repl.core.states import Phase

if TYPE_CHECKING:
    from repl.core.liveness import Debt
    from repl.core.progress import Progress
    from repl.core.promotion import PromoteRequest
    from repl.core.session import Session
    from repl.core.volume import Volume

_ORIGINS: dict[Origin, str] = {
    Origin.FIRST_CONTACT: "first contact of two new copies",
    Origin.ADOPTED: "an operator declared this copy the one",
    Origin.PROMOTED: "promotion",
    Origin.ALONE: "a member was left behind",
    Origin.JOINED: "a copy became equal",
    Origin.PEER_DEAD: "promotion on an operator's word",
    Origin.DATA_LOST: "promotion that accepts the loss of data",
}


@dataclass(slots=True)
class Told:
    """What was told of one peer."""

    #: The refusal, or the rule of a handshake that came to nothing.
    refusal: str = ""
    split: bool = False
    stalled: bool = False
    #: When the copy in progress began, if that was told.
    copy_began_s: float | None = None


# What is stored.


def stored(volume: Volume, old: Facts, new: Facts) -> None:
    """A commit is durable: tell what it changed."""
    if new.lineage and (old.lineage[:1] or (None,))[0] != new.generation:
        before = old.lineage[0] if old.lineage else None
        if before is None or before.id != new.generation.id:
            _set_changed(volume, before, new)
    if new.outdated and not old.outdated:
        volume.tell("MARKED_OUTDATED", f"the copy on {volume.node} is outdated from now on")
    if new.cache_lost and not old.cache_lost:
        volume.tell(
            "CACHE_LOST",
            f"{volume.node} lost power, or its boot cannot be told: what was not synced may be "
            "gone from its copy",
        )


def _set_changed(volume: Volume, before: Generation | None, new: Facts) -> None:
    names = {record.node_id: record.name for record in new.peers} | {new.node_id: volume.node}

    def named(members: set[int]) -> list[str]:
        return sorted(names.get(member, "a former copy") for member in members)

    now = new.generation
    was = set(before.members) if before is not None else set()
    joined, left = named(set(now.members) - was), named(was - set(now.members))
    why = now.permit or _ORIGINS[now.origin]
    text = f"generation {now.counter}: every write is on {', '.join(named(set(now.members)))}"
    if before is not None:
        text += "".join(f"; {name} joined" for name in joined)
        text += "".join(f"; {name} left" for name in left)
    volume.tell(
        "SET_CHANGED",
        f"{text} ({why})",
        generation=now.counter,
        generation_id=f"{now.id:016x}",
        members=named(set(now.members)),
        joined=joined,
        left=left,
        origin=now.origin.value,
        why=why,
    )


def promoted(volume: Volume, request: PromoteRequest, evidence: str) -> None:
    """A promotion is stored: by what evidence, and on whose word."""
    fields: dict[str, Any] = {
        "evidence": evidence,
        "generation": volume.facts.generation.counter,
        "by": request.by,
    }
    if request.peer_dead:
        fields["peer_dead"] = request.peer_dead
        fields["contact_lost_s"] = volume.facts.peer(request.peer_dead).contact_lost_s or None
    if request.lose_data:
        fields["lose_data"] = True
        fields["accept_half_copied"] = request.accept_half_copied
    volume.tell("PROMOTED", f"{volume.node} was promoted: {evidence}", **fields)


# A peer's connection.


def decided(session: Session, decision: Decision) -> None:
    """The handshake ended in a decision."""
    volume, told = session.volume, session.told
    text = f"handshake with {session.name}: {decision.rule}: {decision.sentence}"
    fields = {"peer": session.name, "rule": decision.rule, "action": decision.action.value}
    fruitless = decision.action in (Action.REFUSE, Action.SPLIT_BRAIN)
    repeated, told.refusal = told.refusal == decision.rule, decision.rule if fruitless else ""
    if fruitless and repeated:
        volume.note("info", text)
    elif decision.action is Action.SPLIT_BRAIN:
        told.split = True
        volume.tell("SPLIT_BRAIN_FOUND", f"{text} Both are kept.", **fields)
    elif decision.action is Action.REFUSE:
        volume.tell("PEER_REFUSED", text, **fields)
    else:
        volume.tell("PEER_CONNECTED", text, **fields)


def refused(session: Session) -> None:
    """The peer said goodbye with a reason, before any handshake."""
    if session.told.refusal != session.refusal:
        session.told.refusal = session.refusal
        text = f"{session.name} refuses the connection: {session.refusal}"
        session.volume.tell("PEER_REFUSED", text, peer=session.name, rule="goodbye")


def connection_ended(
    session: Session, was: Phase, reason: str, progress: Progress, *, broken: bool
) -> None:
    """A connection is over; `broken` if what arrived made no sense."""
    volume, name, told = session.volume, session.name, session.told
    text = f"connection to {name} ended ({was.value}): {reason}"
    if broken:
        volume.tell("PEER_BROKE_PROTOCOL", text, peer=name, phase=was.value, reason=reason)
    elif was in (Phase.GREETING, Phase.REFUSED):
        volume.note("info", text)
    else:
        volume.tell("PEER_DISCONNECTED", text, peer=name, phase=was.value, reason=reason)
    if told.copy_began_s is not None:
        told.copy_began_s = None
        left = volume.maps.remaining if was is Phase.TARGET else volume.maps.dirty[name]
        volume.tell(
            "RESYNC_INTERRUPTED",
            f"the copy between {volume.node} and {name} was interrupted with {left.set_bytes} "
            "bytes left; it goes on when they are connected again",
            peer=name,
            done_bytes=progress.done_bytes,
            remaining_bytes=left.set_bytes,
        )
    told.stalled = False


def in_sync(session: Session) -> None:
    """Both copies are equal, and both sides have stored it."""
    volume, name, told = session.volume, session.name, session.told
    if told.copy_began_s is not None:
        took_s = round(volume.now - told.copy_began_s, 1)
        told.copy_began_s = None
        done_bytes = session.progress.done_bytes
        volume.tell(
            "RESYNC_FINISHED",
            f"the copy between {volume.node} and {name} is complete: {done_bytes} bytes in "
            f"{took_s:g} s",
            peer=name,
            done_bytes=done_bytes,
            took_s=took_s,
        )
    told.stalled = False
    if told.split:
        told.split = False
        text = f"{volume.node} and {name} have one history again"
        volume.tell("SPLIT_BRAIN_RESOLVED", text, peer=name)
    volume.tell("PEER_IN_SYNC", f"{name} has every write", peer=name)


def slowness_changed(session: Session, debt: Debt) -> None:
    """The peer has become slow, or prompt again."""
    volume, name = session.volume, session.name
    if not session.live.said_slow:
        volume.tell("PEER_PROMPT", f"{name} answers as it should again", peer=name)
        return
    for_s, limit_s = round(debt.for_s, 1), debt.limit_s
    text = f"{name} is slow: {debt.what} for {for_s:g} s; it is dropped after {limit_s:g} s"
    volume.tell("PEER_SLOW", text, peer=name, what=debt.what, for_s=for_s, limit_s=limit_s)


# A copy.


def copy_started(session: Session, total_bytes: int, *, source: bool) -> None:
    """A copy or comparison of so many bytes begins."""
    volume, name = session.volume, session.name
    session.told.copy_began_s = volume.now
    decision = session.decision
    here, there = (volume.node, name) if source else (name, volume.node)
    fields: dict[str, Any] = {"peer": name, "bytes": total_bytes, "source": here, "target": there}
    if decision is not None:
        fields["rule"] = decision.rule
    text = f"resync from {here} to {there}: {total_bytes} bytes to look at"
    volume.tell("RESYNC_STARTED", text, **fields)


def look_at_copy(session: Session) -> None:
    """Called now and then: tell a stall once, and its end. A pause was told by who ordered it."""
    why, told = why_stalled(session), session.told
    stalled = bool(why) and not why.startswith("paused")
    if stalled == told.stalled:
        return
    told.stalled = stalled
    volume, name = session.volume, session.name
    if stalled:
        text = f"the copy between {volume.node} and {name} is stalled: {why}"
        volume.tell("RESYNC_STALLED", text, peer=name, why=why)
    else:
        text = f"the copy between {volume.node} and {name} moves again"
        volume.tell("RESYNC_MOVING", text, peer=name)

"""A volume's state as the public JSON of design §11. Read-only; every sentence a person sees about
a state is worded here or in the verdict that decided it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from repl.core import contact, permits
from repl.core.handshake import Action
from repl.core.liveness import SLOW_PART
from repl.core.promotion import PromoteRequest, judge, vouching_helps
from repl.core.splitbrain import not_split
from repl.core.stalls import held_back, paused_on, why_stalled
from repl.core.states import ConnectionState, Phase, ReplicationState
from repl.core.verdict import Verdict, granted, refused

if TYPE_CHECKING:
    from repl.core.blockmap import BlockMap
    from repl.core.liveness import Debt
    from repl.core.permits import Question
    from repl.core.session import Session
    from repl.core.volume import Volume

_CONNECTION: dict[Phase, ConnectionState] = {
    Phase.GREETING: ConnectionState.CONNECTING,
    Phase.REFUSED: ConnectionState.REFUSED,
    Phase.SPLIT_BRAIN: ConnectionState.SPLIT_BRAIN,
}

#: Nothing was said on a connection, or there is none: a hung node's kernel still accepts them.
_AWAY = (Phase.DOWN, Phase.GREETING)


def volume_snapshot(volume: Volume, cut_by: str = "") -> dict[str, Any]:
    """Return the object of design §11 for this volume, with fields added and none renamed.

    cut_by: who forbade this node to connect, in words; empty if nobody did.
    """
    promotable = _promotable(volume)
    why, next_step = _why_and_next(volume, cut_by)
    return {
        "name": volume.name,
        "size_bytes": volume.size_bytes,
        "role": volume.role_text,
        "disk_state": volume.disk_state_text,
        "generation": _generation(volume),
        "serving": volume.serving,
        "frozen": volume.serving and (volume.frozen or bool(volume.full)),
        "disk_full": volume.full,
        "resume_pending": volume.roles.resume_pending,
        "pending_requests": volume.writes.pending,
        "hot_extents": len(volume.intents.hot),
        "intent_bytes": volume.maps.intents.set_bytes,
        "promotable": {
            "ok": promotable.ok,
            "reason": promotable.reason,
            "next": promotable.next_step,
            "code": promotable.code,
        },
        "why": why,
        "next": next_step,
        "resync_order": _resync_order(volume),
        "cut_by": cut_by,
        "alone": _alone(volume),
        "frozen_s_total": round(volume.alone.frozen_s_total, 1),
        "permits": permits.standing(volume),
        "peers": [_peer_snapshot(session) for session in volume.sessions.values()],
    }


def _generation(volume: Volume) -> dict[str, Any]:
    """The current generation: who gave leave to make it, why and when (design §8)."""
    if not volume.facts.lineage:
        return {"counter": 0, "id": "", "origin": "", "permit": "", "made_at_s": None}
    newest = volume.facts.generation
    return {
        "counter": newest.counter,
        "id": f"{newest.id:016x}",
        "origin": newest.origin.value,
        "permit": newest.permit,
        "made_at_s": newest.made_at_s,
    }


def split_brain_snapshot(volume: Volume) -> dict[str, Any]:
    """Return the object of `splitbrain show`: both sides, on either node; `split_brain` false and
    the reason where there is nothing to choose."""
    sessions = list(volume.sessions.values())
    for session in sessions:
        if (split := session.split) is not None:
            why, next_step = split.why_and_next()
            return {
                "volume": volume.name,
                "node": volume.node,
                "peer": session.name,
                "size_bytes": volume.size_bytes,
                "split_brain": True,
                "step": split.step.value,
                "why": why,
                "next": next_step,
                **split.divergence.picture(split.kept, split.agreed),
            }
    bar = not_split(volume, sessions)
    return {
        "volume": volume.name,
        "node": volume.node,
        "peer": sessions[0].name if sessions else None,
        "size_bytes": volume.size_bytes,
        "split_brain": False,
        "why": bar.reason,
        "next": bar.next_step,
    }


def _promotable(volume: Volume) -> Verdict:
    """Whether a plain promotion would be granted now, as far as this node can tell."""
    if volume.is_primary:
        return granted("this node is primary already")
    verdict = judge(volume, PromoteRequest()).verdict
    primary = next(
        (s.name for s in volume.sessions.values() if s.peer_status.get("role") == "primary"), ""
    )
    if verdict.ok and primary:
        # It would be asked, and refuse. What it said of itself may be old: `promote` does ask.
        return refused(
            "PROMOTE_PEER_REFUSED",
            f"{primary} is primary",
            f"on {primary}: replctl demote {volume.name}",
        )
    return verdict


def connection_state(session: Session) -> ConnectionState:
    """The public connection state of a peer."""
    if session.phase in (Phase.DOWN, Phase.GREETING) and session.refusal:
        return ConnectionState.REFUSED
    if session.phase is Phase.DOWN:
        return ConnectionState.DISCONNECTED
    return _CONNECTION.get(session.phase, ConnectionState.CONNECTED)


def replication_state(session: Session) -> ReplicationState:
    """The public replication state of a peer."""
    if session.phase is Phase.ESTABLISHED:
        return ReplicationState.ESTABLISHED
    if held_back(session):
        return ReplicationState.PAUSED
    if session.phase in (Phase.SOURCE_STARTING, Phase.SOURCE, Phase.JOINING):
        settling = session.source is not None and session.is_member
        return ReplicationState.SETTLING if settling else ReplicationState.SYNC_SOURCE
    if session.phase in (Phase.TARGET_STARTING, Phase.TARGET):
        if session.volume.facts.inconsistent:
            return ReplicationState.SYNC_TARGET
        return ReplicationState.SETTLING
    return ReplicationState.OFF


def out_of_sync(volume: Volume, peer: str) -> BlockMap:
    """The blocks that are not yet on both copies, as far as this node knows; to be read only."""
    session = volume.sessions[peer]
    return volume.maps.remaining if session.phase is Phase.TARGET else volume.maps.dirty[peer]


def _peer_snapshot(session: Session) -> dict[str, Any]:
    volume = session.volume
    behind = out_of_sync(volume, session.name)
    decision = session.decision
    lost_s, lost_before_s = contact.lost_at(session)
    slow = _slow(session)
    return {
        "name": session.name,
        "connection_state": connection_state(session).value,
        "disk_state": session.peer_status.get("disk_state", "unknown"),
        "replication_state": replication_state(session).value,
        "role": session.peer_status.get("role", "unknown"),
        "phase": session.phase.value,
        "refusal": session.refusal,
        "refusal_code": session.refusal_code,
        "in_sync": session.settled,
        "member": session.is_member,
        "slow_s": None if slow is None else round(slow.for_s, 1),
        "slow_why": "" if slow is None else slow.what,
        "dropped_after_s": None if slow is None else slow.limit_s,
        "round_trip_s": session.live.round_trip_s,
        "contact_lost_time_s": lost_s,
        "contact_lost_before_s": lost_before_s,
        "last_away": session.last_away
        and {"from_s": session.last_away[0], "to_s": session.last_away[1]},
        "out_of_sync_bytes": behind.set_bytes,
        "resync": _resync(session, behind.set_bytes),
        "resync_sent_bytes_total": session.resync_sent_bytes,
        "broken_connections_total": session.broken_connections,
        "last_handshake": None
        if decision is None
        else {
            "rule": decision.rule,
            "action": decision.action.value,
            "sentence": decision.sentence,
            "next": decision.next_step,
        },
    }


_NEXT_OTHERWISE = "compare the configurations of {node} and {peer}"
_NEXT_OF_REFUSAL = {
    "DISK_FULL": "make room under {volume}'s backing on {peer}; it comes back by itself",
    "DISK_FAILED": "mend or replace the disk of {peer}, then restart repld there",
}


def _full_why_and_next(volume: Volume) -> tuple[str, str]:
    why = f"no space is left for the local copy: {volume.full}"
    if not volume.is_primary:
        return why, "make room under the backing; the copy is brought up to date by itself then"
    return (
        f"{why}; {volume.writes.pending} requests wait, none is failed",
        "make room under the backing, and they go on; or let the peer serve: "
        f"replctl demote {volume.name} --drop-clients, then promote there",
    )


def _slow(session: Session) -> Debt | None:
    """What a connected peer has owed for a good part of what it is given, if anything."""
    if session.phase in _AWAY:
        return None
    debt = session.live.worst(session.volume.now, session.volume.timeouts)
    return debt if debt.part >= SLOW_PART else None


def _resync(session: Session, behind_bytes: int) -> dict[str, Any] | None:
    """The copy in progress on this connection, on either side of it."""
    if session.phase not in (Phase.SOURCE, Phase.TARGET):
        return None
    volume = session.volume
    return session.progress.forecast(behind_bytes, volume.now) | {
        "stalled": why_stalled(session),
        "rate_limit_bytes_per_s": volume.pacing.limit(session.their_wish),
    }


def _alone(volume: Volume) -> dict[str, Any] | None:
    """The leave to go on alone that the volume waits for, if any."""
    question = volume.alone.question
    if question is None:
        return None
    return {
        "peer": question.peer,
        "generation": question.counter,
        "since_s": volume.alone.since_wall_s,
        "for_s": round(volume.now - volume.alone.since_s, 1),
    }


def _resync_order(volume: Volume) -> dict[str, Any]:
    wish = volume.pacing.own
    return {
        "paused": wish.paused,
        "rate_limit_bytes_per_s": wish.rate_bytes_per_s,
        "by": wish.by,
        "since_s": wish.since_s or None,
    }


def _frozen_why_and_next(volume: Volume, question: Question) -> tuple[str, str]:
    waited_s = volume.now - volume.alone.since_s
    why = (
        f"{question.peer} did not answer, and {volume.node} may not go on without it: nothing has "
        f"been acknowledged for {waited_s:.0f} s"
    )
    session = volume.sessions[question.peer]
    if session.connected:
        why += f"; {question.peer} is connected again ({session.phase.value})"
    return why, volume.alone.provider.next_step.format(peer=question.peer, volume=volume.name)


def _away_why_and_next(volume: Volume, away: list[Session], cut_by: str) -> tuple[str, str]:
    """A peer is out of reach: what becomes of the volume on this node, and who can change it."""
    name, peers = volume.name, ", ".join(session.name for session in away)
    why, next_step = f"{peers} is not connected", f"start repld on {peers} or look at the network"
    if cut_by:
        why, next_step = f"{cut_by} disconnected {name} from {peers}", f"replctl connect {name}"
    elif any(session.phase is Phase.GREETING for session in away):
        why = f"{peers} has not answered on a new connection yet"
        next_step = f"if it stays so: see whether repld on {peers} hangs, or look at the network"
    split = [s.name for s in away if s.decision and s.decision.action is Action.SPLIT_BRAIN]
    if split:
        why += f"; at the last contact this copy and that on {split[0]} were in a split-brain"
    if volume.is_primary:
        if volume.facts.alone and volume.facts.generation.permit:
            why += f"; {volume.node} goes on without it: {volume.facts.generation.permit}"
    elif judge(volume, PromoteRequest()).verdict.ok:
        next_step += f"; to serve here meanwhile: replctl promote {name}"
    elif vouching_helps(volume):
        next_step += (
            f"; if {peers} is known to be stopped: replctl promote {name} --peer-dead {peers}"
        )
    return why, next_step


def _why_and_next(volume: Volume, cut_by: str) -> tuple[str, str]:
    """The one thing most worth knowing about the volume, and what to run."""
    name = volume.name
    if volume.absence.doubtful:
        unmet = ", ".join(volume.absence.unmet)
        why = f"{volume.node} did not run for a while, and clients wait for word of {unmet}"
        return why, "nothing to do: it goes on by itself within seconds"
    if volume.failed:
        return (
            f"the local copy failed: {volume.failed}",
            f"let the peer serve; then mend or replace the disk (or free its space) and restart "
            f"repld; a disk that is new: replctl volume adopt {name} --discard",
        )
    if volume.full:
        return _full_why_and_next(volume)
    if volume.alone.question is not None:
        return _frozen_why_and_next(volume, volume.alone.question)
    for session in volume.sessions.values():
        if connection_state(session) is ConnectionState.REFUSED and session.refusal:
            why = f"{session.name} refuses the connection: {session.refusal}"
            return why, _NEXT_OF_REFUSAL.get(session.refusal_code, _NEXT_OTHERWISE).format(
                volume=name, node=volume.node, peer=session.name
            )
        decision = session.decision
        if session.split is not None:
            return session.split.why_and_next()
        if session.phase in (Phase.REFUSED, Phase.IDLE) and decision is not None:
            return decision.sentence, decision.next_step
        if (slow := _slow(session)) is not None:
            why = f"{session.name} is slow: {slow.what} for {slow.for_s:.1f} s"
            why += f"; it is dropped after {slow.limit_s:g} s"
            return why, f"look at the network and the disk of {session.name}"
        if paused := paused_on(session):
            next_step = f"to let it go on, on {paused}: replctl resync {name} resume"
            return f"the copy is {held_back(session)}", next_step
        if session.phase in (Phase.SOURCE, Phase.TARGET) and decision is not None:
            return decision.sentence, f"nothing to do; to wait: replctl wait {name} --for in-sync"
    away = [session for session in volume.sessions.values() if session.phase in _AWAY]
    if volume.roles.resume_pending:
        peers = ", ".join(volume.sessions)
        why = f"{volume.node} was primary and resumes as soon as {peers} agrees"
        if not away:
            return why, "nothing to do"
        if cut_by:
            return f"{why}; {cut_by} disconnected it from {peers}", f"replctl connect {name}"
        return (
            f"{why}, which may have been promoted meanwhile and is not connected",
            f"start {peers}; if it is stopped for good: replctl promote {name} --peer-dead {peers}",
        )
    if away:
        return _away_why_and_next(volume, away, cut_by)
    if volume.facts.fresh and not volume.sessions:
        return "the volume holds no data yet", f"replctl volume adopt {name}"
    return "", ""

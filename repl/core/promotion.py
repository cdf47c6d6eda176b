"""May this node become primary? (design §8) One pure look at a volume, no side effects.

The answer is what `promote` acts on and what status shows as `promotable`. "Needs agreement" means:
granted, if the connected peer agrees when asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from repl.core.lineage import sole_and_answered
from repl.core.states import Phase
from repl.core.verdict import Verdict, granted, refused

if TYPE_CHECKING:
    from repl.core.session import Session
    from repl.core.volume import Volume


@dataclass(frozen=True, slots=True)
class PromoteRequest:
    """What the operator said. `peer_dead` is the name of the node vouched for, or empty."""

    peer_dead: str = ""
    lose_data: bool = False
    accept_half_copied: bool = False
    #: Who said it, for the record: "uid 0".
    by: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The verdict, and the peer that must agree before it holds (None if nobody)."""

    verdict: Verdict
    ask: Session | None = None


def judge(volume: Volume, request: PromoteRequest) -> Evidence:
    """Decide whether the copy may be served and whether no other primary can be at work."""
    bar = _barred(volume)
    if bar is None:
        bar = _lost_data_bar(volume, request) if request.lose_data else _copy_bar(volume)
    if bar is not None:
        return Evidence(bar)
    if request.lose_data:
        half = ", of a half copied volume even" if request.accept_half_copied else ""
        accepted = f"an operator accepted the loss of data by name{half}"
        return Evidence(granted(accepted + _giver(request)))
    if request.peer_dead:
        return Evidence(_vouched(volume, request))
    return _evidence(volume)


def _barred(volume: Volume) -> Verdict | None:
    name = volume.name
    if volume.failed:
        return refused(
            "DISK_FAILED",
            f"the local copy failed: {volume.failed}",
            f"let the peer serve; then mend or replace the disk (or free its space) and restart "
            f"repld; a disk that is new: replctl volume adopt {name} --discard",
        )
    if volume.facts.fresh:
        return refused(
            "PROMOTE_FRESH",
            "the volume is new on this node and holds no data yet",
            f"wait for the peer:  replctl wait {name} --for in-sync   "
            f"(or make this copy the one:  replctl volume adopt {name})",
        )
    if volume.changes.busy or volume.roles.busy:
        return refused(
            "VOLUME_BUSY", "another change of this volume is in progress", "try again in a moment"
        )
    return None


def _lost_data_bar(volume: Volume, request: PromoteRequest) -> Verdict | None:
    if volume.facts.inconsistent and not request.accept_half_copied:
        return refused(
            "PROMOTE_INCONSISTENT",
            "the copy is half copied: files on it may be damaged",
            f"to accept even that: replctl promote {volume.name} --lose-data {volume.name} "
            "--accept-half-copied",
        )
    return None


def vouching_helps(volume: Volume) -> bool:
    """Whether `--peer-dead` would be granted where a plain promotion is not, its peer away."""
    bar = _barred(volume) or _facts_bar(volume)
    return bar is None and not _evidence(volume).verdict.ok


def _copy_bar(volume: Volume) -> Verdict | None:
    return _session_bar(volume) or _facts_bar(volume)


def _session_bar(volume: Volume) -> Verdict | None:
    """What a connection is at that forbids a promotion."""
    name = volume.name
    wait = f"replctl wait {name} --for promotable"
    for session in volume.sessions.values():
        if session.phase in (Phase.TARGET, Phase.TARGET_STARTING):
            return refused(
                "PROMOTE_SETTLING", f"this copy is being brought up to {session.name}'s", wait
            )
        if session.phase is Phase.GREETING:
            return refused("PROMOTE_HANDSHAKE", f"the handshake with {session.name} goes on", wait)
        if session.phase is Phase.SPLIT_BRAIN:
            return refused(
                "SPLIT_BRAIN",
                f"this copy and {session.name}'s were both written without the other",
                f"choose the copy to keep:  replctl splitbrain show {name}",
            )
        settling = session.is_member and session.phase in (Phase.SOURCE_STARTING, Phase.SOURCE)
        if settling or session.phase is Phase.JOINING:
            return refused("PROMOTE_SETTLING", f"{session.name} is being settled from here", wait)
    return None


def _facts_bar(volume: Volume) -> Verdict | None:
    """What this copy is known to lack."""
    facts, name = volume.facts, volume.name
    wait = f"replctl wait {name} --for promotable"
    if facts.inconsistent:
        return refused(
            "PROMOTE_INCONSISTENT",
            "this copy is incomplete: half copied, or its disk failed",
            f"connect the node with the complete copy, then: {wait}   (if none is left:  "
            f"replctl promote {name} --lose-data {name} --accept-half-copied)",
        )
    if facts.outdated:
        return refused(
            "PROMOTE_OUTDATED",
            "this node agreed to be left behind, when it was stopped or when a split-brain was "
            "resolved, so that its copy is outdated",
            f"start the peer, then: {wait}",
        )
    if facts.cache_lost and not facts.alone:
        return refused(
            "PROMOTE_CACHE_LOST",
            "this node lost power: writes that its peer still has may be missing here",
            f"start the peer, then: {wait}   "
            f"(or accept the loss:  replctl promote {name} --lose-data {name})",
        )
    return None


def _giver(request: PromoteRequest) -> str:
    return f" ({request.by})" if request.by else ""


def _vouched(volume: Volume, request: PromoteRequest) -> Verdict:
    peer = request.peer_dead
    session = volume.sessions.get(peer)
    if session is None:
        return refused(
            "NO_SUCH_PEER",
            f"the volume has no peer {peer}",
            f"name one of: {', '.join(volume.sessions)}",
        )
    if session.connected:
        return refused(
            "PEER_IS_CONNECTED",
            f"{peer} is connected: it is not dead",
            f"replctl promote {volume.name}",
        )
    return granted(f"an operator vouched that {peer} is stopped{_giver(request)}")


def _evidence(volume: Volume) -> Evidence:
    facts, name = volume.facts, volume.name
    for session in volume.sessions.values():
        if session.phase in (Phase.ESTABLISHED, Phase.SOURCE, Phase.SOURCE_STARTING):
            return Evidence(granted(f"{session.name} is connected and agreed"), session)
    if sole_and_answered(facts.lineage, facts.node_id):
        return Evidence(granted("this node was the last one to acknowledge writes, alone"))
    if facts.holds_release:
        return Evidence(granted("the last primary released the volume to this node"))
    peers = ", ".join(volume.sessions)
    if facts.released:
        return Evidence(
            refused(
                "PROMOTE_RELEASED",
                f"this node gave its right to be promoted to {peers} when it was stopped",
                f"start {peers}, or promote there; if {peers} is stopped for good: "
                f"replctl promote {name} --peer-dead {peers}",
            )
        )
    return Evidence(
        refused(
            "PROMOTE_NO_EVIDENCE",
            f"{peers} is not connected and may be primary, or may hold newer writes",
            f"connect {peers}; or, if you know that it is stopped and acknowledged nothing after "
            f"contact was lost: replctl promote {name} --peer-dead {peers}",
        )
    )

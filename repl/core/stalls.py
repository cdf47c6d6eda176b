"""Why a copy stands still, in one clause for people: "waiting for beta's disk (14 s)".

Looks at what the two sides of a copy wait for, in the order in which one of it explains the others.
It is asked for a copy that stands still and decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repl.core.states import Phase
from repl.core.verdict import operator

if TYPE_CHECKING:
    from repl.core.session import Session


def why_stalled(session: Session) -> str:
    """Return why the session's copy stands still; empty while it moves, or when there is none."""
    if session.phase not in (Phase.SOURCE, Phase.TARGET):
        return ""
    held = held_back(session)
    if held:
        return held
    now = session.volume.now
    if not session.progress.is_stalled(now):
        return ""
    for_s = f"for {session.progress.still_s(now):.0f} s"
    if session.phase is Phase.TARGET:
        return f"{session.name}, the source, has sent nothing of the copy {for_s}"
    return f"{_missing(session)} {for_s}"


def held_back(session: Session) -> str:
    """Return whose order holds the session's copy back; empty if nobody's."""
    node = paused_on(session)
    if not node:
        return ""
    own = node == session.volume.node
    wish = session.volume.pacing.own if own else session.their_wish
    return f"paused by {operator(wish.by)} on {node}"


def paused_on(session: Session) -> str:
    """Return the node on which the session's copy was paused; empty if it was not."""
    volume = session.volume
    if session.phase not in (Phase.SOURCE, Phase.TARGET):
        return ""
    if session.source is not None and not session.source.target_is_incomplete:
        return ""
    if session.phase is Phase.TARGET and not volume.facts.inconsistent:
        return ""
    if volume.pacing.own.paused:
        return volume.node
    return session.name if session.their_wish.paused else ""


def _missing(session: Session) -> str:
    volume, source = session.volume, session.source
    assert source is not None
    if session.live.unsynced_since_s is not None:
        return f"waiting for {session.name}'s disk: a sync there has not ended"
    if session.live.unapplied_since_s is not None:
        return f"waiting for {session.name} to apply what was sent"
    if source.reading:
        return "waiting for this node's disk: a read has not ended"
    if source.waits_for_writes:
        return "waiting for writes to the same blocks to end"
    if source.waits_for_own_sync:
        return "waiting for this node's disk: a sync has not ended"
    if not session.probation.over(volume.now):
        return f"{session.name} was lost right after it joined, and waits before it joins again"
    if volume.changes.busy and volume.changes.kind is not None:
        return f"waiting for another change to end: {volume.changes.kind.value}"
    limit = volume.pacing.limit(session.their_wish)
    if limit:
        return f"held back by the rate limit of {limit} bytes/s; nothing moved"
    return "nothing moved, and this node does not know why,"

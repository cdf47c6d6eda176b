"""What happens to a volume, told as events: a stable code, a severity, one sentence, fields.

Like `errors.py` this is worded once for everybody: the log, `replctl events`, the control API and
monitoring show the same sentence under the same code. `EVENTS` lists all codes with their severity;
`repl/control/README.md` documents them, and tests check that each is told somewhere and documented.
Nothing here imports anything of ours, since the pure core and the command line both use it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

INFO, WARNING, ERROR = "info", "warning", "error"
SEVERITIES = (INFO, WARNING, ERROR)

#: Code → (severity, what it means).
EVENTS: dict[str, tuple[str, str]] = {
    "DAEMON_STARTED": (INFO, "The daemon is up."),
    "DAEMON_STOPPED": (INFO, "The daemon was stopped cleanly."),
    "WORKER_STARTED": (INFO, "A volume's worker process is up and says what the volume is."),
    "WORKER_ENDED": (ERROR, "A volume's worker process ended unasked; it is started again."),
    "TLS_PROXY_ENDED": (
        WARNING,
        "A process that encrypts for NBD clients ended, with its clients.",
    ),
    "WORKER_SILENT": (WARNING, "A volume's worker process does not answer."),
    "VOLUME_NOT_OPENED": (ERROR, "A volume could not be opened; the field `error` has the code."),
    "METADATA_DAMAGED": (WARNING, "Part of the metadata was damaged, and how it was read."),
    "CACHE_LOST": (WARNING, "This node lost power: what was not synced may be gone from its copy."),
    "DISK_FULL": (ERROR, "No space is left for the local copy; nothing is failed, requests wait."),
    "DISK_HAS_ROOM": (INFO, "The local copy has room again; what waited goes on."),
    "SPACE_NOT_RESERVED": (WARNING, "A backing's space could not be reserved as configured."),
    "DISK_FAILED": (ERROR, "The local copy failed and is not used any more."),
    "MARKED_OUTDATED": (WARNING, "This copy was left behind by a primary that went on without it."),
    "NODE_WAS_ABSENT": (WARNING, "This node did not run for a while; clients wait for its peer."),
    "ROLE_PRIMARY": (INFO, "This node is primary."),
    "ROLE_SECONDARY": (INFO, "This node is secondary."),
    "PROMOTED": (INFO, "A promotion was granted: by what evidence, and on whose word."),
    "RESUMED": (INFO, "This node was primary before a restart and is it again."),
    "STEPPED_DOWN": (WARNING, "This node ceased to be primary by force; its clients were closed."),
    "SET_CHANGED": (INFO, "A generation: which nodes have every write from now on, and why."),
    "FROZEN": (ERROR, "Nothing is acknowledged until the peer is back or an operator continues."),
    "THAWED": (INFO, "Requests go on after a freeze."),
    "ALONE_PERMITTED": (WARNING, "A primary was given leave to go on without its peer."),
    "PEER_CONNECTED": (INFO, "A peer is connected; the handshake decided what both sides do."),
    "PEER_DISCONNECTED": (WARNING, "The connection to a peer ended, and why."),
    "PEER_REFUSED": (ERROR, "A connected peer and this node refuse each other, and why."),
    "PEER_UNREACHABLE": (INFO, "A peer cannot be connected to; told once for each reason."),
    "PEER_SLOW": (WARNING, "A peer leaves something unanswered; it is dropped if that goes on."),
    "PEER_PROMPT": (INFO, "A peer that was slow answers as it should."),
    "PEER_IN_SYNC": (INFO, "A peer's copy holds every write."),
    "PEER_BROKE_PROTOCOL": (WARNING, "A peer sent what it must not send; it was dropped."),
    "PEER_DISABLED": (WARNING, "An operator cut the volume from its peer."),
    "PEER_ENABLED": (INFO, "An operator let the volume connect to its peer again."),
    "RESYNC_STARTED": (INFO, "A copy or a comparison begins: how many bytes are looked at."),
    "RESYNC_FINISHED": (INFO, "A copy or a comparison is complete: bytes done, and how long."),
    "RESYNC_INTERRUPTED": (WARNING, "A copy or a comparison ended early: bytes that remain."),
    "RESYNC_STALLED": (WARNING, "Nothing of a copy moves, and why."),
    "RESYNC_MOVING": (INFO, "A copy that was stalled moves again."),
    "RESYNC_PAUSED": (WARNING, "An operator paused the copies of a volume."),
    "RESYNC_RESUMED": (INFO, "An operator let the copies of a volume go on."),
    "RESYNC_LIMITED": (INFO, "An operator set or lifted the rate limit of copies."),
    "FULL_COMPARISON_ORDERED": (WARNING, "An operator ordered a full comparison of this copy."),
    "COPY_ADOPTED": (WARNING, "An operator declared this copy to be the volume's data."),
    "COPY_DISCARDED": (WARNING, "An operator gave this copy up; it is filled from the peer."),
    "SPLIT_BRAIN_FOUND": (ERROR, "Both copies acknowledged writes that the other lacks."),
    "RESOLVE_ORDERED": (WARNING, "An operator chose, on this node, the copy to keep of a split."),
    "COPY_KEPT": (WARNING, "This copy is kept after a split-brain; the other gives way."),
    "COPY_GIVEN_UP": (WARNING, "What only this copy had is given up, as an operator chose."),
    "SPLIT_BRAIN_RESOLVED": (INFO, "The copies that were split have one history again."),
    "FORK_DISCARDED": (WARNING, "A generation that answered nobody was given up by itself."),
    "CLIENTS_CHANGED": (INFO, "NBD clients attached or detached; told at most every few seconds."),
    "CLIENT_REFUSED": (WARNING, "An NBD client was refused, and why."),
    "EVENTS_LOST": (WARNING, "A gap: events that this follower will not see."),
}


class Note(NamedTuple):
    """Something to be said: an event, or with an empty `code` a line for the log only."""

    level: str
    text: str
    code: str = ""
    fields: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default; never changed)


def event(code: str, text: str, fields: dict[str, Any]) -> Note:
    """Return the event of this code; an unregistered code is a bug."""
    assert code in EVENTS, f"unregistered event code {code}"
    return Note(EVENTS[code][0], text, code, fields)

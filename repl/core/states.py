"""The states of a volume and of a peer connection, and the legal transitions.

The values are the public spellings of design §11. `Phase` is finer than what the status shows: it
is the one state machine of a peer connection, `PHASE_TRANSITIONS` is its table, and the shown
connection and replication states derive from it. Everything that a phase permits is decided by the
properties here, not by flags elsewhere.
"""

from __future__ import annotations

import enum


class Role(enum.Enum):
    PRIMARY = "primary"
    SECONDARY = "secondary"


class DiskState(enum.Enum):
    DISKLESS = "diskless"
    FAILED = "failed"
    INCONSISTENT = "inconsistent"
    OUTDATED = "outdated"
    CONSISTENT = "consistent"
    UP_TO_DATE = "up-to-date"


class ConnectionState(enum.Enum):
    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    SPLIT_BRAIN = "split-brain"
    REFUSED = "refused"


class ReplicationState(enum.Enum):
    OFF = "off"
    ESTABLISHED = "established"
    SETTLING = "settling"
    SYNC_SOURCE = "sync-source"
    SYNC_TARGET = "sync-target"
    PAUSED = "paused"
    VERIFY_SOURCE = "verify-source"
    VERIFY_TARGET = "verify-target"


class Phase(enum.Enum):
    """Where one connection to a peer stands."""

    DOWN = "down"
    #: Connected; hellos are exchanged and both sides decide.
    GREETING = "greeting"
    #: The handshake ended without data to exchange: both fresh, refused, or split-brain.
    IDLE = "idle"
    REFUSED = "refused"
    SPLIT_BRAIN = "split-brain"
    #: This side copies or compares towards the peer: waiting for its maps, then working.
    SOURCE_STARTING = "source-starting"
    SOURCE = "source"
    #: The joining generation is stored here and on its way to the peer.
    JOINING = "joining"
    #: This side receives a copy or a comparison.
    TARGET_STARTING = "target-starting"
    TARGET = "target"
    ESTABLISHED = "established"


PHASE_TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.DOWN: frozenset({Phase.GREETING}),
    Phase.GREETING: frozenset(
        {
            Phase.DOWN,
            Phase.IDLE,
            Phase.REFUSED,
            Phase.SPLIT_BRAIN,
            Phase.SOURCE_STARTING,
            Phase.TARGET_STARTING,
        }
    ),
    Phase.IDLE: frozenset({Phase.DOWN}),
    Phase.REFUSED: frozenset({Phase.DOWN}),
    Phase.SPLIT_BRAIN: frozenset({Phase.DOWN}),
    Phase.SOURCE_STARTING: frozenset({Phase.DOWN, Phase.SOURCE}),
    Phase.SOURCE: frozenset({Phase.DOWN, Phase.JOINING, Phase.ESTABLISHED}),
    Phase.JOINING: frozenset({Phase.DOWN, Phase.ESTABLISHED}),
    Phase.TARGET_STARTING: frozenset({Phase.DOWN, Phase.TARGET}),
    Phase.TARGET: frozenset({Phase.DOWN, Phase.ESTABLISHED}),
    Phase.ESTABLISHED: frozenset({Phase.DOWN}),
}

#: Phases in which a primary mirrors its writes to the peer.
MIRRORING = frozenset({Phase.SOURCE, Phase.JOINING, Phase.ESTABLISHED})
#: Phases in which frames of the ordered stream may arrive from the peer.
RECEIVING = frozenset({Phase.TARGET, Phase.ESTABLISHED})


def check_transition(old: Phase, new: Phase) -> None:
    """Assert that the table allows the step; a violation is our bug."""
    assert new in PHASE_TRANSITIONS[old], f"illegal transition {old.value} → {new.value}"


def diagram() -> str:
    """Return the table as a Mermaid state diagram, as `repl/core/README.md` shows it."""
    lines = ["stateDiagram-v2", "    [*] --> down"]
    for old, news in PHASE_TRANSITIONS.items():
        lines += [
            f"    {_identifier(old)} --> {_identifier(new)}"
            for new in Phase
            if new in news and new is not Phase.DOWN
        ]
    lines.append("    note right of down: every phase returns to down when its connection ends")
    return "\n".join(lines)


def _identifier(phase: Phase) -> str:
    return phase.value.replace("-", "_")

"""Coverage: which event met which state of a node (design §9).

A cell is (phase of the connection, role, event) with the states of `repl/core/states.py`; the
connection and replication states that people see derive from the phase. A second table pairs the
procedure under way (a change of generation, a change of role) with what is done to a node from
outside. Every cell is either hit by the fixed set of `make test` or named in `unreachable.py` with
the reason.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass, field

from repl.core.changes import Kind
from repl.core.roles import Task
from repl.core.states import Phase, Role
from repl.core.volume import Volume
from repl.core.wire import Type


class Event(enum.Enum):
    """What can happen to a running node, frames aside."""

    WRITE = "write"
    ZERO = "zero"
    FLUSH = "flush"
    READ = "read"
    CLIENT_GONE = "client gone"
    SYNC_DONE = "sync done"
    METADATA_DONE = "metadata done"
    CHUNK_READ = "chunk read"
    DISK_FAILED = "disk failed"
    DISK_FULL = "disk full"
    METADATA_FAILED = "metadata failed"
    PEER_UP = "peer up"
    PEER_DOWN = "peer down"
    #: The core itself closes the connection, for a timeout or by an operator's word.
    DROPS = "drops the peer"
    FREEZES = "freezes"
    PROMOTE = "promote"
    VOUCH = "promote --peer-dead"
    LOSE_DATA = "promote --lose-data"
    DEMOTE = "demote"
    ADOPT = "adopt"
    CONTINUE = "continue"
    COMPARE = "resync --full"
    RESOLVE = "splitbrain resolve"
    LEAVE = "leave"
    CRASH = "crash"
    POWER_LOSS = "power loss"


#: What somebody or something does to a node from outside, as opposed to the system's own steps.
FAULTS = frozenset(
    {
        Event.CLIENT_GONE,
        Event.DISK_FAILED,
        Event.FREEZES,
        Event.METADATA_FAILED,
        Event.PEER_DOWN,
        Event.PROMOTE,
        Event.VOUCH,
        Event.LOSE_DATA,
        Event.DEMOTE,
        Event.ADOPT,
        Event.CONTINUE,
        Event.RESOLVE,
        Event.LEAVE,
        Event.CRASH,
        Event.POWER_LOSS,
    }
)

#: One of the columns: an event, or the arrival of a frame of this type.
Column = Event | Type
#: One of the rows: a phase and a role, or a procedure under way.
Row = tuple[Phase, Role] | Kind | Task
Cell = tuple[Row, Column]

STATES: tuple[Row, ...] = tuple((phase, role) for phase in Phase for role in Role)
#: A primary is never the target of anything (design §5).
NEVER_ENTERED: frozenset[Row] = frozenset(
    (phase, Role.PRIMARY) for phase in (Phase.TARGET_STARTING, Phase.TARGET)
)
PROCEDURES: tuple[Row, ...] = (*Kind, *Task)


def all_cells() -> list[Cell]:
    """Every cell of both tables, in their order."""
    columns: tuple[Column, ...] = (*Event, *Type)
    cells: list[Cell] = [(row, column) for row in STATES for column in columns]
    cells += [(row, event) for row in PROCEDURES for event in Event if event in FAULTS]
    return cells


def named(cell: Cell) -> str:
    """Return a cell as people read it."""
    row, column = cell
    what = f"frame {column.name}" if isinstance(column, Type) else column.value
    return f"{row_name(row)} × {what}"


def row_name(row: Row) -> str:
    """Return a state as people read it."""
    return f"{row[0].value} {row[1].value}" if isinstance(row, tuple) else row.value


@dataclass(slots=True)
class Coverage:
    """How often each cell was hit."""

    hits: Counter[Cell] = field(default_factory=Counter)
    #: The states that a node was in.
    rows: set[Row] = field(default_factory=set)

    def note(self, volume: Volume, peer: str, column: Column) -> None:
        """This happens to the volume in its present state."""
        hits = self.hits
        role = Role.PRIMARY if volume.is_primary else Role.SECONDARY
        hits[(volume.sessions[peer].phase, role), column] += 1
        if column not in FAULTS:
            return
        if (kind := volume.changes.kind) is not None:
            hits[kind, column] += 1
        if (task := volume.roles.task) is not None:
            hits[task, column] += 1

    def add(self, other: Coverage) -> None:
        """Add what another run hit."""
        self.hits.update(other.hits)
        self.rows |= other.rows

"""Cells of the coverage table that cannot be hit, each with its reason; tests hold both against
what the swarm hits.

Most reasons are of one form: an event belongs to certain states, and to no other.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from repl.core.roles import Task
from repl.core.states import Phase, Role
from repl.core.wire import Type
from tests.sim.cells import (
    NEVER_ENTERED,
    STATES,
    Cell,
    Column,
    Coverage,
    Event,
    Row,
    all_cells,
    named,
)

_PRIMARY, _SECONDARY = Role.PRIMARY, Role.SECONDARY
_CONNECTED = tuple(phase for phase in Phase if phase is not Phase.DOWN)


def _rows(role: Role, *phases: Phase) -> frozenset[Row]:
    return frozenset((phase, role) for phase in phases)


def _both(*phases: Phase) -> frozenset[Row]:
    return _rows(_PRIMARY, *phases) | _rows(_SECONDARY, *phases)


_PRIMARIES = _rows(_PRIMARY, *Phase)
_TARGET = _rows(_SECONDARY, Phase.TARGET)
_RECEIVERS = _rows(_SECONDARY, Phase.TARGET, Phase.ESTABLISHED)
_SOURCES = _both(Phase.SOURCE)

#: (events, the only states in which they happen, why in no other)
_ONLY: tuple[tuple[tuple[Column, ...], frozenset[Row], str], ...] = (
    (
        (Event.WRITE, Event.ZERO, Event.FLUSH, Event.READ, Event.CLIENT_GONE),
        _PRIMARIES,
        "only a primary serves clients, and it closes them when it ceases to be one",
    ),
    (
        (Event.PEER_UP,),
        _both(Phase.DOWN),
        "a connection ends before the next one begins",
    ),
    (
        (Event.PEER_DOWN,),
        _both(*_CONNECTED),
        "without a connection there is none to lose",
    ),
    (
        (Event.CHUNK_READ,),
        _SOURCES,
        "only a source reads chunks; a late answer to an earlier connection is ignored",
    ),
    (
        (Event.DISK_FULL,),
        _PRIMARIES | _RECEIVERS | _rows(_SECONDARY, Phase.DOWN),
        "a secondary's disk is written by its receiver only, which then refuses connections",
    ),
    (
        (Type.HELLO, Type.DECISION),
        _both(Phase.GREETING),
        "PROTOCOL.md: each side sends one as the first thing on a connection",
    ),
    (
        (Type.MAP,),
        _both(Phase.SOURCE_STARTING, Phase.SPLIT_BRAIN) | _rows(_SECONDARY, Phase.TARGET_STARTING),
        "PROTOCOL.md: maps go with START, READY and FORK",
    ),
    (
        (Type.START,),
        _rows(_SECONDARY, Phase.TARGET_STARTING),
        "PROTOCOL.md: the source's first word to its target, behind its decision",
    ),
    (
        (Type.READY,),
        _both(Phase.SOURCE_STARTING),
        "PROTOCOL.md: the target's answer to START",
    ),
    (
        (Type.WRITE, Type.ZERO, Type.SYNC, Type.GENERATION, Type.CLEAR_INTENTS),
        _RECEIVERS,
        "PROTOCOL.md: the ordered stream goes to a secondary that is a target or established",
    ),
    (
        (Type.RESYNC_WRITE, Type.RESYNC_ZERO, Type.DIGEST, Type.SETTLED),
        _TARGET,
        "PROTOCOL.md: a copy goes to its target, and ends before it is established",
    ),
    (
        (Type.DIFFERENT,),
        _SOURCES,
        "PROTOCOL.md: the answer to a digest, all of which are answered before a source ends",
    ),
    (
        (Type.ACK,),
        _both(Phase.SOURCE, Phase.ESTABLISHED) | _rows(_PRIMARY, Phase.JOINING),
        "whoever sent numbered frames gets acknowledgements; a source that is secondary has all "
        "of them before it joins its target",
    ),
    (
        (Type.GENERATION_STORED,),
        _both(Phase.JOINING) | _rows(_PRIMARY, Phase.ESTABLISHED),
        "the answer to GENERATION, which only a joining side or a primary sends",
    ),
    (
        (Type.PROMOTE_ASK,),
        _both(Phase.ESTABLISHED) | _rows(_SECONDARY, Phase.TARGET_STARTING, Phase.TARGET),
        "a side that is being copied to, or whose handshake goes on, does not ask",
    ),
    (
        (Type.PROMOTE_ANSWER,),
        _rows(_SECONDARY, Phase.SOURCE, Phase.JOINING, Phase.ESTABLISHED),
        "only a secondary asks, and a target answers behind READY",
    ),
    (
        (Type.LEAVE,),
        _both(Phase.ESTABLISHED) | _TARGET,
        "only an established node hands over",
    ),
    (
        (Type.LEAVE_STORED,),
        _rows(_SECONDARY, Phase.ESTABLISHED),
        "the answer to LEAVE, which a primary sends after its demotion",
    ),
    (
        (Type.GOODBYE,),
        _both(Phase.GREETING, Phase.SOURCE, Phase.JOINING, Phase.ESTABLISHED),
        "a copy that failed or has no room refuses a new connection or stops applying",
    ),
    (
        (Type.FORK, Type.RESOLVE_ASK, Type.RESOLVE_ANSWER, Type.DISCARD, Type.DISCARDED),
        _both(Phase.SPLIT_BRAIN),
        "PROTOCOL.md: only while both sides know that they are in a split-brain",
    ),
    (
        (Event.COMPARE,),
        _rows(_SECONDARY, Phase.TARGET_STARTING) | _RECEIVERS,
        "elsewhere it is refused (full_compare.py)",
    ),
    (
        (Type.STATUS, Type.PING, Type.PONG),
        _both(*_CONNECTED),
        "frames of an ended connection are discarded",
    ),
)

#: (states, events, why they never meet)
_NEVER: tuple[tuple[Iterable[Row], Iterable[Column], str], ...] = (
    (
        NEVER_ENTERED,
        (*Event, *Type),
        "a primary is never the target of anything (design §5)",
    ),
    (
        (Task.LEAVING,),
        (
            Event.PROMOTE,
            Event.VOUCH,
            Event.LOSE_DATA,
            Event.DEMOTE,
            Event.CONTINUE,
            Event.RESOLVE,
            Event.LEAVE,
        ),
        "no operator of the simulator gives orders to a process that he is stopping",
    ),
    (
        (Task.COMPARING,),
        (Event.CLIENT_GONE,),
        "a secondary has no clients",
    ),
)

#: (states, events, by what coincidence they meet): neither demanded nor forbidden.
_RARE: tuple[tuple[Iterable[Row], Iterable[Column], str], ...] = (
    (
        _rows(_SECONDARY, *Phase),
        (Event.DISK_FULL,),
        "the last write of a primary that steps down in the turn that carries the write out",
    ),
    (
        _rows(_SECONDARY, Phase.JOINING),
        (Type.ACK,),
        "a last watermark that crosses the announcement",
    ),
)


@cache
def _rare() -> frozenset[Cell]:
    return frozenset(
        (row, column) for rows, columns, _ in _RARE for row in rows for column in columns
    )


@cache
def _reasons() -> dict[Cell, str]:
    reasons: dict[Cell, str] = {}
    for rows, columns, reason in _NEVER:
        for row in rows:
            for column in columns:
                reasons[row, column] = reason
    for events, allowed, reason in _ONLY:
        for row in STATES:
            if row not in allowed:
                for column in events:
                    reasons.setdefault((row, column), reason)
    return reasons


def reason_for(cell: Cell) -> str:
    """Return why a cell cannot be hit; empty if it can."""
    return _reasons().get(cell, "")


def missing_cells(coverage: Coverage) -> list[Cell]:
    """The reachable cells that were not hit."""
    return [
        cell
        for cell in all_cells()
        if cell not in coverage.hits and not reason_for(cell) and cell not in _rare()
    ]


def wrongly_unreachable(coverage: Coverage) -> list[str]:
    """The cells that were hit although a reason says that they cannot be."""
    return [
        f"{named(cell)} ({reason})"
        for cell in coverage.hits
        if (reason := reason_for(cell)) and cell not in _rare()
    ]

"""The daemon's status as typed values, read without trust.

A field that is absent or of another type becomes "unknown", None or zero, so that an older or newer
daemon, or one in a bad state, is still shown. Spellings are those of design §11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a volume could not be opened, as `repl/errors.py` words it."""

    code: str
    what: str
    why: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Promotable:
    """Whether a promotion would be granted now, and the sentence for it."""

    ok: bool
    reason: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Resync:
    """A copy in progress; all amounts are at least 0, `eta_s` is None when nobody can tell."""

    done_bytes: int
    remaining_bytes: int
    rate_bytes_per_s: float
    eta_s: float | None
    stalled: str
    rate_limit_bytes_per_s: int


@dataclass(frozen=True, slots=True)
class Slow:
    """What a connected peer has not answered, for how long, and when it is dropped for that."""

    what: str
    for_s: float
    dropped_after_s: float | None


@dataclass(frozen=True, slots=True)
class Permit:
    """Who let this history go on without a node: times are seconds since 1970."""

    kind: str
    at_s: float | None
    words: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """The leave to go on alone that a frozen volume waits for."""

    peer: str
    for_s: float
    since_s: float | None


@dataclass(frozen=True, slots=True)
class Order:
    """How an operator holds copies back; `rate_limit_bytes_per_s` 0 is no limit."""

    paused: bool = False
    rate_limit_bytes_per_s: int = 0
    by: str = ""
    since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    connection_state: str
    disk_state: str
    replication_state: str
    role: str
    out_of_sync_bytes: int | None
    contact_lost_time_s: float | None
    #: Contact was lost before this time, and nobody knows when.
    contact_lost_before_s: float | None
    #: (from, to): when it was away last, before it came back.
    last_away: tuple[float, float] | None
    round_trip_s: float | None
    slow: Slow | None
    #: The rule by which the last handshake was decided.
    rule: str
    resync: Resync | None

    @property
    def is_in_sync(self) -> bool:
        """True when every write reaches this peer and it has all earlier ones."""
        states = (self.connection_state, self.replication_state, self.disk_state)
        return states == ("connected", "established", "up-to-date")


@dataclass(frozen=True, slots=True)
class Volume:
    name: str
    size_bytes: int | None
    role: str
    disk_state: str
    serving: bool
    frozen: bool
    #: Why writes find no room; empty while none waits for it.
    disk_full: str
    #: Free bytes under a sparse backing that may soon find no room; None while there is enough.
    space_low_bytes: int | None
    resume_pending: bool
    worker_silent: bool
    peers: tuple[Peer, ...]
    promotable: Promotable | None
    problem: Problem | None
    #: Set while nothing is acknowledged for want of a permit.
    waiting: Waiting | None
    permits: tuple[Permit, ...]
    order: Order
    why: str
    next_step: str

    @property
    def is_in_sync(self) -> bool:
        """True when this copy and that of every peer hold the same writes."""
        return self.disk_state == "up-to-date" and all(peer.is_in_sync for peer in self.peers)


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    volumes: tuple[Volume, ...]
    #: How long the daemon runs.
    uptime_s: float | None = None


def read_node(status: dict[str, Any]) -> Node:
    """Return what `GET /v1/status` says."""
    return Node(
        _text(status, "node", UNKNOWN),
        tuple(read_volume(v) for v in _tables(status, "volumes")),
        _amount(status, "uptime_s"),
    )


def read_volume(fields: dict[str, Any]) -> Volume:
    """Return one element of `volumes`."""
    problem, export = _problem(fields), _table(fields, "export") or {}
    silent = (problem is not None and problem.code == "WORKER_SILENT") or (
        "worker_pid" in fields and not fields["worker_pid"]
    )
    return Volume(
        name=_text(fields, "name", UNKNOWN),
        size_bytes=_count(fields, "size_bytes"),
        role=_text(fields, "role", UNKNOWN),
        disk_state=_text(fields, "disk_state", UNKNOWN),
        serving=fields.get("serving") is True,
        frozen=fields.get("frozen") is True,
        disk_full=_text(fields, "disk_full"),
        space_low_bytes=_space_low(fields),
        resume_pending=True in (export.get("pending"), fields.get("resume_pending")),
        worker_silent=silent or fields.get("worker_silent") is True,
        peers=tuple(_peer(peer) for peer in _tables(fields, "peers")),
        promotable=_promotable(fields),
        problem=problem,
        waiting=_waiting(fields),
        permits=tuple(_permit(permit) for permit in _tables(fields, "permits")),
        order=_order(fields),
        why=_text(fields, "why", ""),
        next_step=_text(fields, "next", ""),
    )


def _peer(fields: dict[str, Any]) -> Peer:
    return Peer(
        name=_text(fields, "name", UNKNOWN),
        connection_state=_text(fields, "connection_state", UNKNOWN),
        disk_state=_text(fields, "disk_state", UNKNOWN),
        replication_state=_text(fields, "replication_state", UNKNOWN),
        role=_text(fields, "role", UNKNOWN),
        out_of_sync_bytes=_count(fields, "out_of_sync_bytes"),
        contact_lost_time_s=_amount(fields, "contact_lost_time_s"),
        contact_lost_before_s=_amount(fields, "contact_lost_before_s"),
        last_away=_last_away(fields),
        round_trip_s=_amount(fields, "round_trip_s"),
        slow=_slow(fields),
        rule=_text(_table(fields, "last_handshake") or {}, "rule"),
        resync=_resync(fields),
    )


def _resync(fields: dict[str, Any]) -> Resync | None:
    table = _table(fields, "resync")
    if table is None:
        return None
    return Resync(
        done_bytes=_count(table, "done_bytes") or 0,
        remaining_bytes=_count(table, "remaining_bytes") or 0,
        rate_bytes_per_s=_amount(table, "rate_bytes_per_s") or 0.0,
        eta_s=_amount(table, "eta_s"),
        stalled=_text(table, "stalled", ""),
        rate_limit_bytes_per_s=_count(table, "rate_limit_bytes_per_s") or 0,
    )


def _slow(fields: dict[str, Any]) -> Slow | None:
    for_s = _amount(fields, "slow_s")
    if for_s is None:
        return None
    what = _text(fields, "slow_why", "no answer")
    return Slow(what, for_s, _amount(fields, "dropped_after_s"))


def _last_away(fields: dict[str, Any]) -> tuple[float, float] | None:
    table = _table(fields, "last_away") or {}
    from_s, to_s = _amount(table, "from_s"), _amount(table, "to_s")
    return (from_s, to_s) if from_s is not None and to_s is not None and from_s <= to_s else None


def _waiting(fields: dict[str, Any]) -> Waiting | None:
    table = _table(fields, "alone")
    if table is None:
        return None
    for_s, since_s = _amount(table, "for_s") or 0.0, _amount(table, "since_s")
    return Waiting(_text(table, "peer", "its peer"), for_s, since_s)


def _permit(fields: dict[str, Any]) -> Permit:
    return Permit(_text(fields, "kind", UNKNOWN), _amount(fields, "at_s"), _text(fields, "permit"))


def _order(fields: dict[str, Any]) -> Order:
    table = _table(fields, "resync_order") or {}
    limit = _count(table, "rate_limit_bytes_per_s") or 0
    since_s = _amount(table, "since_s")
    return Order(table.get("paused") is True, limit, _text(table, "by"), since_s)


def _problem(fields: dict[str, Any]) -> Problem | None:
    table = _table(fields, "problem")
    if table is None:
        return None
    what = _text(table, "what", "the volume could not be opened")
    return Problem(_text(table, "code", UNKNOWN), what, _text(table, "why"), _text(table, "next"))


def _space_low(fields: dict[str, Any]) -> int | None:
    space = _table(fields, "space") or {}
    return _count(space, "free_bytes") if space.get("low") is True else None


def _promotable(fields: dict[str, Any]) -> Promotable | None:
    table = _table(fields, "promotable")
    if table is None:
        return None
    return Promotable(table.get("ok") is True, _text(table, "reason"), _text(table, "next"))


def _table(fields: dict[str, Any], key: str) -> dict[str, Any] | None:
    found = fields.get(key)
    return found if isinstance(found, dict) else None


def _tables(fields: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = fields.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _text(fields: dict[str, Any], key: str, default: str = "") -> str:
    found = fields.get(key)
    return found if isinstance(found, str) and found else default


def _amount(fields: dict[str, Any], key: str) -> float | None:
    """Return a number that is finite and at least 0, else None."""
    found = fields.get(key)
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        return None
    try:
        amount = float(found)
    except OverflowError:
        return None
    return amount if 0 <= amount < math.inf else None


def _count(fields: dict[str, Any], key: str) -> int | None:
    amount = _amount(fields, key)
    return None if amount is None else int(fields[key])

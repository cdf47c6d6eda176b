"""The progress of a resync as text: a share that is never 100 % before the end, and never negative.

A snapshot that still has a resync is unfinished by definition, whatever its numbers say.
"""

from __future__ import annotations

import math

from repl import units
from repl.cli.snapshot import Peer, Resync

BAR_CELLS = 30
PERCENT_MAX = 99.9
"""The largest share shown of an unfinished copy, in the precision that is printed."""
_EIGHTHS = " ▏▎▍▌▋▊▉"


def percent(resync: Resync) -> float:
    """Return the share copied, rounded down to tenths: 0 <= p <= 99.9."""
    total_bytes = resync.done_bytes + resync.remaining_bytes
    if total_bytes <= 0:
        return 0.0
    tenths = resync.done_bytes * 1000 // total_bytes
    return min(max(tenths / 10, 0.0), PERCENT_MAX)


def bar(share_percent: float, unicode: bool) -> str:
    """Return a bar of BAR_CELLS cells; the last cell is full only at 100 %."""
    eighths = math.floor(share_percent / 100 * BAR_CELLS * 8)
    full, part = divmod(max(0, min(eighths, BAR_CELLS * 8)), 8)
    if not unicode:
        return "[" + "#" * full + "-" * (BAR_CELLS - full) + "]"
    partial = _EIGHTHS[part] if part else ""
    return "█" * full + partial + "─" * (BAR_CELLS - full - len(partial))


def describe(peer: Peer, resync: Resync) -> str:
    """Return share, what remains, the rate and the time left: "62.3 %   6.1 GiB left ..."."""
    left = f"{percent(resync):4.1f} %   {units.format_size(resync.remaining_bytes)} left"
    if peer.replication_state == "paused":
        return f"{left}   {resync.stalled or 'paused'}"
    if resync.stalled:
        return f"{left}   stalled: {resync.stalled}"
    if resync.rate_bytes_per_s < 1:
        return f"{left}   nothing moves at the moment"
    rate = units.format_rate(resync.rate_bytes_per_s)
    if resync.rate_limit_bytes_per_s:
        rate += f" (limit {units.format_rate(resync.rate_limit_bytes_per_s)})"
    if resync.eta_s is None:
        return f"{left}   {rate}   time left not known yet"
    return f"{left}   {rate}   about {units.describe_duration(resync.eta_s)} left"


def line(peer: Peer, resync: Resync, unicode: bool) -> str:
    """Return the bar and its words."""
    return f"{bar(percent(resync), unicode)}  {describe(peer, resync)}"

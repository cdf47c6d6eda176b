"""How long is waited for what (design §7). Only the numbers; `upkeep.py` and others compare."""

from __future__ import annotations

from dataclasses import dataclass

#: A longer pause between two turns is this node's own absence. Far below what anybody needs to
#: notice it and to promote a peer in its place; the price of a false alarm is one ping.
AWAY_S = 0.5


@dataclass(frozen=True, slots=True)
class Timeouts:
    """All in seconds; the configuration's `[timeouts]` gives them."""

    peer_timeout_s: float = 5.0
    reconnect_grace_s: float = 1.0
    ping_interval_s: float = 1.0
    #: Two nodes that can reach each other are connected again within this time.
    meeting_s: float = 4.0

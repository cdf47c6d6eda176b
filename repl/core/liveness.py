"""How long a connected peer has owed an answer: silence, frames unapplied, syncs and generations.

Times are the volume's clock, in seconds. One object a connection; it decides nothing, `upkeep.py`
does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repl.core.wire import PeerError

if TYPE_CHECKING:
    from repl.core.timeouts import Timeouts

#: A sync, or storing a generation, may take this many times longer than an ordinary answer.
SYNC_PATIENCE = 6
#: A peer that has used up this part of its time is shown as slow.
SLOW_PART = 0.4


class Liveness:
    """Since when the peer owes what."""

    def __init__(self, now_s: float) -> None:
        self.received_s = now_s
        self.sent_s = now_s
        #: Since when the oldest numbered frame, the oldest SYNC, an announced generation wait.
        self.unapplied_since_s: float | None = None
        self.unsynced_since_s: float | None = None
        self.unconfirmed_since_s: float | None = None
        self._pings = 0
        self._pongs = 0
        #: Whether the log has this connection's slowness: once is enough.
        self.said_slow = False

    def pinged(self) -> int:
        """A ping goes out; return its number."""
        self._pings += 1
        return self._pings

    def ponged(self) -> int:
        """The oldest unanswered ping is answered; return its number."""
        if self._pongs == self._pings:
            raise PeerError("PONG: nobody pinged")
        self._pongs += 1
        return self._pongs

    def excuse(self, away_s: float) -> None:
        """Do not blame the peer for time in which this node could not listen."""
        self.received_s += away_s
        if self.unapplied_since_s is not None:
            self.unapplied_since_s += away_s
        if self.unsynced_since_s is not None:
            self.unsynced_since_s += away_s
        if self.unconfirmed_since_s is not None:
            self.unconfirmed_since_s += away_s

    def used_up(self, now_s: float, timeouts: Timeouts) -> tuple[float, float]:
        """Return the worst debt in seconds, and which part of its time it has used up (1: all)."""
        timeout_s = timeouts.peer_timeout_s
        patience_s = SYNC_PATIENCE * timeout_s
        silent_s = now_s - self.received_s
        unapplied_s = _since(self.unapplied_since_s, now_s)
        unsynced_s = _since(self.unsynced_since_s, now_s)
        unconfirmed_s = _since(self.unconfirmed_since_s, now_s)
        return max(
            (unapplied_s, unapplied_s / timeout_s),
            (unsynced_s, unsynced_s / patience_s),
            (unconfirmed_s, unconfirmed_s / patience_s),
            (silent_s, _silence_part(silent_s, timeouts)),
            key=lambda debt: debt[1],
        )

    def slow_s(self, now_s: float, timeouts: Timeouts) -> float | None:
        """Return how long the peer has owed an answer if that is worth showing, else None."""
        debt_s, used_up = self.used_up(now_s, timeouts)
        return debt_s if used_up >= SLOW_PART else None


def _silence_part(silent_s: float, timeouts: Timeouts) -> float:
    """A peer that is asked nothing owes no word before it is pinged."""
    limit_s, ping_s = timeouts.peer_timeout_s, timeouts.ping_interval_s
    if silent_s > limit_s or limit_s <= ping_s:
        return silent_s / limit_s
    return max(0.0, silent_s - ping_s) / (limit_s - ping_s)


def _since(begun_s: float | None, now_s: float) -> float:
    return 0.0 if begun_s is None else now_s - begun_s

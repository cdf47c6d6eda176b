"""How long a connected peer has owed an answer: silence, frames unapplied, syncs and generations.

Times are the volume's clock, in seconds. One object a connection; it decides nothing, `upkeep.py`
does.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from repl.core.wire import PeerError

if TYPE_CHECKING:
    from repl.core.timeouts import Timeouts

#: A sync, or storing a generation, may take this many times longer than an ordinary answer.
SYNC_PATIENCE = 6
#: A peer that has used up this part of its time is shown as slow.
SLOW_PART = 0.4
#: A peer that was slow is said to be prompt again when it was it for this long.
PROMPT_S = 2.0


class Debt(NamedTuple):
    """One thing that the peer owes: for how long, of how long it may take, and the part used up."""

    what: str
    for_s: float
    limit_s: float
    part: float


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
        #: When the pings without an answer were sent; None for one that this node slept over.
        self._pinged_s: deque[float | None] = deque()
        #: How long the last ping took to come back; None before the first.
        self.round_trip_s: float | None = None
        #: Whether it was told that this peer is slow, and when it was slow last.
        self.said_slow = False
        self._slow_s = now_s

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

    def ping_sent(self, now_s: float) -> None:
        """Note the time of a ping, for the round trip."""
        self._pinged_s.append(now_s)

    def pong_came(self, now_s: float) -> None:
        """The oldest ping whose time was noted is answered."""
        sent_s = self._pinged_s.popleft() if self._pinged_s else None
        if sent_s is not None:
            self.round_trip_s = now_s - sent_s

    def excuse(self, away_s: float) -> None:
        """Do not blame the peer for time in which this node could not listen."""
        self.received_s += away_s
        if self.unapplied_since_s is not None:
            self.unapplied_since_s += away_s
        if self.unsynced_since_s is not None:
            self.unsynced_since_s += away_s
        if self.unconfirmed_since_s is not None:
            self.unconfirmed_since_s += away_s
        self._pinged_s = deque(None for _ in self._pinged_s)

    def used_up(self, now_s: float, timeouts: Timeouts) -> tuple[float, float]:
        """Return the worst debt in seconds, and which part of its time it has used up (1: all)."""
        debt = self.worst(now_s, timeouts)
        return debt.for_s, debt.part

    def worst(self, now_s: float, timeouts: Timeouts) -> Debt:
        """Return the debt that has used up most of its time."""
        timeout_s = timeouts.peer_timeout_s
        patience_s = SYNC_PATIENCE * timeout_s
        silent_s = now_s - self.received_s
        unapplied_s = _since(self.unapplied_since_s, now_s)
        unsynced_s = _since(self.unsynced_since_s, now_s)
        unconfirmed_s = _since(self.unconfirmed_since_s, now_s)
        writes, syncs = "a write waits to be applied there", "its disk has not finished a sync"
        generations = "it has not stored a new generation"
        return max(
            Debt(writes, unapplied_s, timeout_s, unapplied_s / timeout_s),
            Debt(syncs, unsynced_s, patience_s, unsynced_s / patience_s),
            Debt(generations, unconfirmed_s, patience_s, unconfirmed_s / patience_s),
            Debt("it has said nothing", silent_s, timeout_s, _silence_part(silent_s, timeouts)),
            key=lambda debt: debt.part,
        )

    def slowness_changed(self, now_s: float, debt: Debt) -> bool:
        """Note whether the peer is slow; return whether that is news."""
        if debt.part >= SLOW_PART:
            self._slow_s = now_s
            news, self.said_slow = not self.said_slow, True
            return news
        if self.said_slow and now_s - self._slow_s >= PROMPT_S:
            self.said_slow = False
            return True
        return False

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

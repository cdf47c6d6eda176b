"""How long a peer that was dropped right after joining waits before it joins again (design §5, G5).

Each join and each loss costs the primary a generation and a pause; a peer that comes and goes must
not make it spend its time on those.
"""

from __future__ import annotations

#: A peer that is dropped this soon after joining waits, twice as long each time up to the maximum.
JOIN_PROBATION_S = 60.0
JOIN_WAIT_S_MAX = 16.0


class Probation:
    """One peer's joins and losses, by the volume's clock."""

    def __init__(self, now_s: float) -> None:
        self._joined_at_s: float | None = None
        self._wait_s = 0.0
        self._wait_since_s = now_s

    def joined(self, now_s: float) -> None:
        """The peer entered the in-sync set."""
        self._joined_at_s = now_s

    def dropped(self, now_s: float) -> None:
        """G4 removed the peer from the set."""
        hasty = self._joined_at_s is not None and now_s - self._joined_at_s < JOIN_PROBATION_S
        self._wait_s = min(JOIN_WAIT_S_MAX, max(1.0, 2 * self._wait_s)) if hasty else 0.0
        self._wait_since_s = now_s

    def over(self, now_s: float) -> bool:
        """Whether the peer may join."""
        return now_s - self._wait_since_s >= self._wait_s

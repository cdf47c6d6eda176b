"""How far a copy is and how fast it goes, from the bytes that remain. Never lies, may be silent."""

from __future__ import annotations

from dataclasses import dataclass

#: Weight of the newest second in the moving average of the rate.
SMOOTHING = 0.3
#: No forecast before the rate was watched this long.
WATCHED_S_MIN = 2.0


@dataclass(slots=True)
class Progress:
    """Fed with the remaining bytes at increasing times."""

    first_bytes: int = -1
    remaining_bytes: int = 0
    rate_bytes_per_s: float = 0.0
    _last_s: float = 0.0
    _begun_s: float = 0.0

    def measure(self, remaining_bytes: int, now_s: float) -> None:
        """Note what remains now; growth (new dirt) counts as no progress."""
        if self.first_bytes < 0:
            self.first_bytes = self.remaining_bytes = remaining_bytes
            self._last_s = self._begun_s = now_s
            return
        passed_s = now_s - self._last_s
        if passed_s < 0.2:
            return
        rate = max(0, self.remaining_bytes - remaining_bytes) / passed_s
        weight = min(1.0, SMOOTHING * passed_s if self.rate_bytes_per_s else 1.0)
        self.rate_bytes_per_s += (rate - self.rate_bytes_per_s) * weight
        self.first_bytes = max(self.first_bytes, remaining_bytes)
        self.remaining_bytes = remaining_bytes
        self._last_s = now_s

    def forecast(self, remaining_bytes: int) -> dict[str, int | float | None]:
        """Return the public `resync` object for what remains at this moment."""
        first = max(self.first_bytes, remaining_bytes)
        watched = self._last_s - self._begun_s >= WATCHED_S_MIN
        eta_s = (
            remaining_bytes / self.rate_bytes_per_s
            if self.rate_bytes_per_s >= 1 and watched
            else None
        )
        return {
            "done_bytes": first - remaining_bytes,
            "remaining_bytes": remaining_bytes,
            "rate_bytes_per_s": int(self.rate_bytes_per_s),
            "eta_s": None if eta_s is None else round(eta_s, 1),
        }

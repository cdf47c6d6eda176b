"""How far a copy is, how fast it goes and when it will be done. Never lies, may be silent.

Fed with what was finished and when, by the volume's clock, which never goes back but may jump. What
remains is not remembered here: the map of the copy knows it, and new dirt makes it grow, while what
is done never shrinks. Pure arithmetic; why a copy stands still is `stalls.py`'s business.
"""

from __future__ import annotations

#: A rate is taken over at least this long: bits are cleared in bursts, with each durable watermark.
SAMPLE_S_MIN = 1.0
#: The moving average forgets about this much of the past; before it has that much, it is the mean.
WINDOW_S = 10.0
#: No forecast before the rate was watched this long.
WATCHED_S_MIN = 5.0
#: A copy of which nothing moved for this long is stalled, and says why.
STALLED_AFTER_S = 10.0


class Progress:
    """One copy on one connection."""

    __slots__ = (
        "_begun_bytes",
        "_begun_s",
        "_measured_bytes",
        "_measured_s",
        "_moved_s",
        "_spread",
        "done_bytes",
        "rate_bytes_per_s",
    )

    def __init__(self, now_s: float) -> None:
        self.done_bytes = 0
        self.begin(now_s)

    def begin(self, now_s: float) -> None:
        """The work begins, or goes on after a pause: the rate of before means nothing now."""
        self.rate_bytes_per_s = 0.0
        #: Mean distance of a sample from the rate: a wild one forbids a forecast.
        self._spread = 0.0
        self._moved_s = self._begun_s = self._measured_s = now_s
        self._begun_bytes = self._measured_bytes = self.done_bytes

    def done(self, count_bytes: int, now_s: float) -> None:
        """So many bytes are copied, or were found equal, for good."""
        assert count_bytes >= 0, "what is done is never undone"
        self.done_bytes += count_bytes
        if count_bytes:
            self._moved_s = now_s

    def moved(self, now_s: float) -> None:
        """Something of the copy was answered, though nothing of it is finished by that."""
        self._moved_s = now_s

    def excuse(self, away_s: float) -> None:
        """This process was away: no time in which a copy could have moved."""
        self._moved_s += away_s
        self._begun_s += away_s
        self._measured_s += away_s

    def measure(self, now_s: float) -> None:
        """Look at the rate; called every fraction of a second."""
        passed_s = now_s - self._measured_s
        if passed_s < SAMPLE_S_MIN:
            return
        sample = (self.done_bytes - self._measured_bytes) / passed_s
        watched_s = now_s - self._begun_s
        if watched_s <= WINDOW_S:
            self.rate_bytes_per_s = (self.done_bytes - self._begun_bytes) / watched_s
        else:
            weight = passed_s / (passed_s + WINDOW_S)
            self.rate_bytes_per_s += (sample - self.rate_bytes_per_s) * weight
        share = passed_s / min(watched_s, WINDOW_S + passed_s)
        self._spread += (abs(sample - self.rate_bytes_per_s) - self._spread) * share
        self._measured_s, self._measured_bytes = now_s, self.done_bytes

    def still_s(self, now_s: float) -> float:
        """For how long nothing of the copy has moved."""
        return max(0.0, now_s - self._moved_s)

    def is_stalled(self, now_s: float) -> bool:
        """Whether nothing moved for so long that a person should know why."""
        return self.still_s(now_s) >= STALLED_AFTER_S

    def forecast(self, remaining_bytes: int, now_s: float) -> dict[str, int | float | None]:
        """Return the public `resync` object for what remains now. `eta_s` is None where nobody can
        tell: too early, nothing moves, or the rate is too uneven."""
        rate = 0.0 if self.is_stalled(now_s) else self.rate_bytes_per_s
        watched = self._measured_s - self._begun_s >= WATCHED_S_MIN
        told = watched and rate >= 1 and self._spread <= rate
        return {
            "done_bytes": self.done_bytes,
            "remaining_bytes": remaining_bytes,
            "rate_bytes_per_s": int(rate),
            "eta_s": round(remaining_bytes / rate, 1) if told else None,
        }

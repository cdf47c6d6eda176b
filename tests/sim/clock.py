"""Virtual time: a heap of events, run in order, with no wall clock anywhere near it."""

from __future__ import annotations

import heapq
from collections.abc import Callable

#: The wall clock shows this at virtual time 0; only people ever read it.
WALL_CLOCK_ZERO_S = 1_700_000_000


class Clock:
    """Events at virtual times; equal times run in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now_s = 100.0
        #: Grows with every event: orders what happened within one instant.
        self.step = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    @property
    def wall_clock_s(self) -> int:
        return WALL_CLOCK_ZERO_S + int(self.now_s)

    def after(self, delay_s: float, event: Callable[[], None]) -> None:
        """Run `event` once, `delay_s` from now."""
        assert delay_s >= 0
        self._number += 1
        heapq.heappush(self._events, (self.now_s + delay_s, self._number, event))

    def run_until(self, end_s: float, stop: Callable[[], bool] | None = None) -> bool:
        """Run events up to `end_s`; return early, with True, once `stop` says so."""
        while self._events and self._events[0][0] <= end_s:
            if stop is not None and stop():
                return True
            time_s, _, event = heapq.heappop(self._events)
            self.now_s = max(self.now_s, time_s)
            self.step += 1
            event()
        self.now_s = max(self.now_s, end_s)
        return stop is not None and stop()

"""The node's events: numbered, bounded, for everybody who asks or follows.

Owns the newest `EVENTS_MAX` events of all volumes and of the daemon itself, in memory, whatever
becomes of the workers that told them. Whoever follows holds a number, not a queue here: a slow
follower costs nothing, and when the ring has passed it, it learns how many events it missed. A
volume that tells too much loses events of its own (counted, and said with the next one that is
kept), never those of others. Adding never waits for anything.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from repl.control.events import Batch, JsonObject

EVENTS_MAX: Final = 4096
#: Of one code and volume so many come through at once, and then one in each interval.
BURST_MAX: Final = 20
INTERVAL_S: Final = 5.0


class EventRing:
    """Used on the loop's thread only. Implements `repl.control.events.EventSource`."""

    def __init__(
        self,
        *,
        events_max: int = EVENTS_MAX,
        keep: Callable[[JsonObject], None] = lambda _event: None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`keep` is given every event that is added, to be stored somewhere; it must not block."""
        self._events: deque[JsonObject] = deque()
        self._events_max = events_max
        self._keep = keep
        self._clock = clock
        self._wall_clock = wall_clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self.last_number = 0
        #: The highest number that is not kept any more; whoever asks from before it missed some.
        self.dropped_number = 0
        #: Events told and events not taken up because one volume told too many, since the start.
        self.told: dict[tuple[str, str], int] = {}
        self.suppressed = 0

    def resume(self, events: Iterable[JsonObject], last_number: int) -> None:
        """Begin with what an earlier daemon kept; numbers go on after `last_number`."""
        assert not self._events, "resume comes first"
        for event in events:
            self._append(event)
        assert last_number >= self.last_number
        self.last_number = last_number
        if not self._events:
            self.dropped_number = last_number

    def add(
        self,
        code: str,
        severity: str,
        text: str,
        fields: dict[str, Any],
        *,
        volume: str = "",
        time_s: float | None = None,
    ) -> bool:
        """Take up an event; false when its volume has told too many of this code just now."""
        bucket = self._buckets.setdefault((volume, code), _Bucket(self._clock()))
        if not bucket.admit(self._clock()):
            bucket.suppressed += 1
            self.suppressed += 1
            return False
        key = (volume, severity)
        self.told[key] = self.told.get(key, 0) + 1
        event: JsonObject = {
            "number": self.last_number + 1,
            "time_s": round(time_s if time_s is not None else self._wall_clock(), 3),
            "volume": volume,
            "code": code,
            "severity": severity,
            "text": text,
            "fields": fields,
        }
        if bucket.suppressed:
            event["suppressed"], bucket.suppressed = bucket.suppressed, 0
        self._append(event)
        self._keep(event)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        return True

    def _append(self, event: JsonObject) -> None:
        self._events.append(event)
        self.last_number = event["number"]
        if len(self._events) > self._events_max:
            self.dropped_number = self._events.popleft()["number"]

    def after(self, number: int, volume: str | None, limit: int) -> Batch:
        """Return at most `limit` events with higher numbers, of one volume if it is named.

        `lost` is true when events after `number` are not kept any more, or when the number is one
        that this node never gave.
        """
        lost = number < self.dropped_number or number > self.last_number
        cursor = self.dropped_number if lost else number
        found: list[JsonObject] = []
        for event in self._events:
            if event["number"] <= cursor:
                continue
            if len(found) >= limit:
                break
            cursor = event["number"]
            if volume is None or event["volume"] == volume:
                found.append(event)
        return Batch(found, cursor, lost)

    async def wait(self, number: int, timeout_s: float) -> None:
        """Return when there is an event after `number`, or after `timeout_s`."""
        if self.last_number != number:
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)


class _Bucket:
    """How many events of one code and volume may still come."""

    __slots__ = ("_left", "_seen_s", "suppressed")

    def __init__(self, now_s: float) -> None:
        self._left = float(BURST_MAX)
        self._seen_s = now_s
        self.suppressed = 0

    def admit(self, now_s: float) -> bool:
        passed_s, self._seen_s = now_s - self._seen_s, now_s
        self._left = min(float(BURST_MAX), self._left + passed_s / INTERVAL_S)
        if self._left < 1:
            return False
        self._left -= 1
        return True

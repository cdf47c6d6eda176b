"""A look at something that must go on, every so often. One timer, and only while it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Watch:
    """Calls `expired` when `progress()` is the same at two looks that are `period_s` apart.

    `progress()` returns anything that compares unequal once something went on, and None when there
    is nothing to watch any more; then looking ends until the next `start()`.
    """

    __slots__ = ("_expired", "_loop", "_mark", "_period_s", "_progress", "_timer")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        period_s: float,
        progress: Callable[[], object | None],
        expired: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._period_s = period_s
        self._progress = progress
        self._expired = expired
        self._mark: object = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look again after one period, unless that is going on already."""
        if self._timer is None:
            self._mark = self._progress()
            self._timer = self._loop.call_later(self._period_s, self._look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._progress()
        if now is None:
            return
        if now == self._mark:
            self._expired()
        else:
            self.start()


class ClientWatches:
    """The three things that one client must go on with."""

    __slots__ = ("idle", "payload", "replies")

    def __init__(self, payload: Watch, replies: Watch, idle: Watch) -> None:
        self.payload = payload
        self.replies = replies
        self.idle = idle

    def stop(self) -> None:
        """The client is gone."""
        for watch in (self.payload, self.replies, self.idle):
            watch.stop()

"""A bounded pool of threads for the blocking calls of one worker's event loop.

It costs one queue entry per call and one wake-up of the loop per batch of completions: no future,
no task. It never runs a callback outside the loop's thread, and it forgets no call: `close` waits
for all of them and hands over what is left.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

#: `done(result, error)`: exactly one of the two is meant; the error is None after a success.
Done = Callable[[Any, Exception | None], None]

_Call = tuple[Callable[..., Any], tuple[Any, ...], Done]


class IoThreads:
    """`threads` threads named `use`-0, `use`-1 ..., started at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, use: str, threads: int) -> None:
        assert threads > 0
        #: Calls that were given and whose `done` was not called yet.
        self.pending = 0
        self._loop = loop
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._finished: deque[tuple[Done, Any, Exception | None]] = deque()
        self._wake_lock = threading.Lock()
        self._wake_sent = False
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{use}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def run(self, call: Callable[..., Any], *args: Any, done: Done) -> None:
        """Call `call(*args)` in a thread, then `done(result, error)` on the loop.

        Calls start in the order given; with more than one thread they may end in any order. Call
        this on the loop's thread.
        """
        assert not self._closed, "the pool is closed"
        self.pending += 1
        self._calls.put((call, args, done))

    def close(self) -> None:
        """Wait until every call has ended, and deliver what was not delivered yet. Blocks.

        A `done` that runs in here cannot start another call.
        """
        if self._closed:
            return
        self._closed = True
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()
        self._deliver()
        assert self.pending == 0

    def _work(self) -> None:
        while (entry := self._calls.get()) is not None:
            call, args, done = entry
            result: Any = None
            error: Exception | None = None
            try:
                result = call(*args)
            except Exception as failure:
                # A barrier between threads, not an end: whatever it was goes to `done`, which
                # runs where the program can act on it. Swallowed here, the call would never end.
                error = failure
            self._finished.append((done, result, error))
            with self._wake_lock:
                if self._wake_sent or self._closed:
                    continue
                self._wake_sent = True
            self._wake_loop()

    def _wake_loop(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            # The loop was closed under us; `close` still delivers.
            if not self._loop.is_closed():
                raise

    def _deliver(self) -> None:
        with self._wake_lock:
            # Cleared before the queue is emptied: what ends later sends a wake-up of its own.
            self._wake_sent = False
        finished = self._finished
        while finished:
            done, result, error = finished.popleft()
            self.pending -= 1
            try:
                done(result, error)
            except BaseException:
                # `done` broke: that is loud, but the others must still hear of their calls.
                if finished and not self._closed:
                    self._loop.call_soon(self._deliver)
                raise

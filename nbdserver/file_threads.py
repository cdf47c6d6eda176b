"""Threads for the file operations that may block, and the way back of what they found.

Three kinds with threads of their own, so that none waits behind another: single operations (cold
reads, large writes, statuses), long ones that go on step by step in turn with each other, and
syncs. A thread never touches a connection, but for asking whether it is closed: it leaves an
`Outcome`, which is delivered on the loop's thread, many at once if many are there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nbdserver.buffers import Chunk
from nbdserver.replies import Data, Extents, Part

if TYPE_CHECKING:
    from nbdserver.requests import Request

SINGLE_THREADS: Final = 4


@dataclass(slots=True)
class Outcome:
    """How a request ended. `bug` is an error of ours; `error` is a Linux errno with its text and,
    where it is known, the byte `at` fault. Else one of the three kinds of results, or none."""

    error: int = 0
    text: str = ""
    at: int | None = None
    data: Data | None = None
    parts: Sequence[Part] | None = None
    statuses: Mapping[int, Extents] | None = None
    hold: Chunk | None = None
    bug: Exception | None = None


#: Does all of a single operation; or a step of a long one, None meaning that there is more.
Work = Callable[[], Outcome]
Step = Callable[[], Outcome | None]


class FileThreads:
    """`deliver` gets (request, outcome) pairs on the loop's thread, a batch at a time."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        deliver: Callable[[Sequence[tuple[Request, Outcome]]], None],
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._finished: deque[tuple[Request, Outcome]] = deque()
        self._single = ThreadPoolExecutor(SINGLE_THREADS, thread_name_prefix="nbdserver-file")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="nbdserver-zero")
        self._sync = ThreadPoolExecutor(1, thread_name_prefix="nbdserver-sync")

    def close(self) -> None:
        """Wait until all is done. What was not delivered never will be."""
        for pool in (self._single, self._long, self._sync):
            pool.shutdown(wait=True)

    def run(self, request: Request, work: Work) -> None:
        """Do a single operation."""
        self._single.submit(self._do, request, work)

    def run_steps(self, request: Request, step: Step, progressed: Callable[[], None]) -> None:
        """Do a long operation, step by step, in turn with others of its kind.

        `progressed` is called on the loop's thread after every step but the last. Once the client
        is gone no further step begins: nobody was told that any of it is done, and others wait.
        """
        self._long.submit(self._do_step, request, step, progressed)

    def sync(self, work: Callable[[], Outcome], done: Callable[[Outcome], None]) -> None:
        """Do a sync and call `done` on the loop's thread."""
        self._sync.submit(self._do_sync, work, done)

    def _do(self, request: Request, work: Work) -> None:
        self._finish(request, _guarded(work))

    def _do_step(self, request: Request, step: Step, progressed: Callable[[], None]) -> None:
        connection = request.connection
        outcome = Outcome() if connection is None or connection.closed else _guarded(step)
        if outcome is not None:
            self._finish(request, outcome)
        else:
            self._loop.call_soon_threadsafe(self._next_step, request, step, progressed)

    def _next_step(self, request: Request, step: Step, progressed: Callable[[], None]) -> None:
        self.run_steps(request, step, progressed)
        progressed()

    def _do_sync(self, work: Work, done: Callable[[Outcome], None]) -> None:
        outcome = _guarded(work)
        assert outcome is not None
        self._loop.call_soon_threadsafe(done, outcome)

    def _finish(self, request: Request, outcome: Outcome | None) -> None:
        assert outcome is not None
        self._finished.append((request, outcome))
        self._loop.call_soon_threadsafe(self._deliver_all)

    def _deliver_all(self) -> None:
        batch = []
        while self._finished:
            batch.append(self._finished.popleft())
        if batch:
            self._deliver(batch)


def _guarded(work: Step) -> Outcome | None:
    try:
        return work()
    except Exception as bug:  # ours: it is shown where the request is answered
        return Outcome(bug=bug)

"""A watch tells standing still from going on, and stops when there is nothing to watch."""

from __future__ import annotations

import asyncio

from nbdserver.watch import Watch
from tests.nbdserver.conftest import Run
from tests.nbdserver.wire import eventually

PERIOD_S = 0.01


class Watched:
    """Something whose progress the test decides; counts looks and expiries."""

    def __init__(self) -> None:
        self.progress: object | None = 0
        self.looks = 0
        self.expired = 0
        self.watch = Watch(asyncio.get_running_loop(), PERIOD_S, self._look, self._expire)

    def _look(self) -> object | None:
        self.looks += 1
        return self.progress

    def _expire(self) -> None:
        self.expired += 1


def test_standing_still_expires_once_until_started_again(run: Run) -> None:
    async def scenario() -> None:
        watched = Watched()
        watched.watch.start()
        watched.watch.start()
        await eventually(lambda: watched.expired == 1, "it expires")
        looks = watched.looks
        assert looks == 2
        watched.watch.start()
        await eventually(lambda: watched.expired == 2, "it expires again")
        assert watched.looks == looks + 2

    run(scenario())


def test_what_goes_on_never_expires(run: Run) -> None:
    async def scenario() -> None:
        watched = Watched()
        watched.watch.start()
        while watched.looks < 6:
            watched.progress = object()
            await asyncio.sleep(0)
        assert watched.expired == 0
        watched.watch.stop()

    run(scenario())


def test_nothing_to_watch_ends_the_looking(run: Run) -> None:
    async def scenario() -> None:
        watched = Watched()
        watched.watch.start()
        watched.progress = None
        await eventually(lambda: watched.looks == 2, "it looks")
        later = Watched()
        later.watch.start()
        await eventually(lambda: later.expired == 1, "another one's time passes")
        assert (watched.looks, watched.expired) == (2, 0)

    run(scenario())


def test_stopped_watch_looks_no_more(run: Run) -> None:
    async def scenario() -> None:
        watched, other = Watched(), Watched()
        watched.watch.start()
        watched.watch.stop()
        other.watch.start()
        await eventually(lambda: other.expired == 1, "another one's time passes")
        assert (watched.looks, watched.expired) == (1, 0)

    run(scenario())

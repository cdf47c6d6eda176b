"""The pool: every call is answered once, on the loop, in batches, and `close` forgets none."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from repl.store.iothreads import IoThreads

DEADLINE_S = 20.0


def run_on_loop(body: Any) -> Any:
    async def main() -> Any:
        return await asyncio.wait_for(body(asyncio.get_running_loop()), DEADLINE_S)

    return asyncio.run(main())


def test_results_and_errors_arrive_on_the_loops_thread() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        pool = IoThreads(loop, "io", 2)
        arrived = asyncio.Event()
        seen: list[tuple[Any, Any, int]] = []

        def done(result: Any, error: Exception | None) -> None:
            seen.append((result, type(error), threading.get_ident()))
            if len(seen) == 2:
                arrived.set()

        pool.run(divmod, 7, 2, done=done)
        pool.run(divmod, 7, 0, done=done)
        assert pool.pending == 2
        await arrived.wait()
        assert pool.pending == 0
        pool.close()
        me = threading.get_ident()
        assert sorted(seen, key=lambda entry: str(entry[0])) == [
            ((3, 1), type(None), me),
            (None, ZeroDivisionError, me),
        ]

    run_on_loop(body)


def test_one_thread_keeps_the_order_and_wakes_the_loop_once_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        wakes = []
        real = loop.call_soon_threadsafe

        def counted(callback: Any, *args: Any, **kwargs: Any) -> Any:
            wakes.append(1)
            return real(callback, *args, **kwargs)

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        pool = IoThreads(loop, "io", 1)
        seen: list[int] = []
        all_ended = threading.Event()
        for number in range(100):
            pool.run(int, number, done=lambda result, error: seen.append(result))
        pool.run(all_ended.set, done=lambda result, error: seen.append(100))
        # The loop is kept busy here, so that all completions fall into its next turn.
        assert all_ended.wait(DEADLINE_S)
        while pool.pending:
            await asyncio.sleep(0)
        assert seen == list(range(101))
        assert len(wakes) <= 2
        pool.close()

    run_on_loop(body)


def test_close_waits_and_delivers_what_is_left() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        pool = IoThreads(loop, "io", 3)
        release = threading.Event()
        seen: list[bool] = []
        for _ in range(10):
            pool.run(release.wait, DEADLINE_S, done=lambda result, error: seen.append(result))
        threading.Timer(0.05, release.set).start()
        pool.close()
        assert seen == [True] * 10
        assert pool.pending == 0
        pool.close()
        with pytest.raises(AssertionError):
            pool.run(int, done=lambda result, error: None)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("io-")]

    run_on_loop(body)


def test_a_done_that_breaks_is_loud_and_holds_nobody_up() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        loud: list[Any] = []
        loop.set_exception_handler(lambda loop, context: loud.append(context["exception"]))
        pool = IoThreads(loop, "io", 1)
        seen: list[int] = []
        both_ended = threading.Event()

        def broken(result: Any, error: Exception | None) -> None:
            raise LookupError("a bug")

        pool.run(int, done=broken)
        pool.run(int, done=lambda result, error: seen.append(1))
        pool.run(both_ended.set, done=lambda result, error: seen.append(2))
        assert both_ended.wait(DEADLINE_S)
        while pool.pending:
            await asyncio.sleep(0)
        assert seen == [1, 2]
        assert [type(failure) for failure in loud] == [LookupError]
        pool.close()

    run_on_loop(body)


def test_a_call_given_from_a_done_is_carried_out() -> None:
    async def body(loop: asyncio.AbstractEventLoop) -> None:
        pool = IoThreads(loop, "io", 1)
        finished = asyncio.Event()

        def again(left: int) -> None:
            if left:
                pool.run(int, done=lambda result, error: again(left - 1))
            else:
                finished.set()

        again(50)
        await finished.wait()
        pool.close()

    run_on_loop(body)

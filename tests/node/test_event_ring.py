"""The ring: numbers that only rise, a bound that holds, and a gap that is never silent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from repl.node.event_ring import BURST_MAX, INTERVAL_S, EventRing


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def ring(events_max: int = 10, clock: Clock | None = None, **options: Any) -> EventRing:
    clock = clock or Clock()
    return EventRing(events_max=events_max, clock=clock, wall_clock=lambda: 5.0, **options)


def add(to: EventRing, count: int, volume: str = "r0") -> None:
    """Add events of codes that were never used before, so that none is one of too many."""
    for number in range(to.last_number, to.last_number + count):
        assert to.add(f"CODE_{number}", "info", "text", {}, volume=volume)


def test_events_are_numbered_from_one_and_keep_their_fields() -> None:
    events = ring()
    events.add("PEER_SLOW", "warning", "beta is slow", {"peer": "beta"}, volume="r0", time_s=1.25)
    events.add("DAEMON_STARTED", "info", "up", {})
    batch = events.after(0, None, 10)
    assert batch.events == [
        {
            "number": 1,
            "time_s": 1.25,
            "volume": "r0",
            "code": "PEER_SLOW",
            "severity": "warning",
            "text": "beta is slow",
            "fields": {"peer": "beta"},
        },
        {
            "number": 2,
            "time_s": 5.0,
            "volume": "",
            "code": "DAEMON_STARTED",
            "severity": "info",
            "text": "up",
            "fields": {},
        },
    ]
    assert (batch.cursor, batch.lost, events.last_number) == (2, False, 2)


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(1, 8), st.integers(0, 40))
def test_a_reader_sees_every_event_or_is_told_of_the_gap(
    bursts: list[int], events_max: int, limit: int
) -> None:
    events, cursor, seen = ring(events_max), 0, 0
    for burst in bursts:
        add(events, burst)
        batch = events.after(cursor, None, max(1, limit))
        numbers = [event["number"] for event in batch.events]
        assert numbers == sorted(set(numbers)) and all(number > cursor for number in numbers)
        if not batch.lost and numbers:
            assert numbers[0] == cursor + 1, "no gap without a word"
        if batch.lost:
            assert events.dropped_number > cursor
        cursor, seen = batch.cursor, seen + len(numbers)
        assert events.last_number - events.dropped_number <= events_max
    assert seen <= sum(bursts)


def test_a_number_that_was_never_given_is_a_gap() -> None:
    events = ring()
    add(events, 3)
    batch = events.after(77, None, 10)
    assert batch.lost and [event["number"] for event in batch.events] == [1, 2, 3]


def test_a_reader_of_one_volume_gets_only_that_and_moves_on() -> None:
    events = ring(100)
    add(events, 3, "r0")
    add(events, 4, "r1")
    batch = events.after(0, "r0", 100)
    assert [event["volume"] for event in batch.events] == ["r0"] * 3
    assert batch.cursor == 7, "it does not look at the others again"


def test_too_many_of_a_kind_are_counted_instead_of_kept() -> None:
    clock = Clock()
    events = ring(1000, clock)
    kept = sum(events.add("PEER_SLOW", "warning", "slow", {}, volume="r0") for _ in range(100))
    assert kept == BURST_MAX
    assert events.suppressed == 100 - BURST_MAX
    assert events.add("PEER_SLOW", "warning", "slow", {}, volume="r1"), "others lose nothing"
    assert events.add("PEER_PROMPT", "info", "prompt", {}, volume="r0")
    clock.now_s += INTERVAL_S
    assert events.add("PEER_SLOW", "warning", "slow", {}, volume="r0")
    newest = events.after(0, "r0", 1000).events[-1]
    assert newest["suppressed"] == 100 - BURST_MAX
    assert not events.add("PEER_SLOW", "warning", "slow", {}, volume="r0")
    assert events.told[("r0", "warning")] == BURST_MAX + 1
    assert events.told[("r1", "warning")] == events.told[("r0", "info")] == 1


def test_numbers_go_on_where_an_earlier_daemon_stopped() -> None:
    old, new = ring(), ring()
    add(old, 4)
    new.resume(old.after(0, None, 10).events, 1004)
    add(new, 1)
    assert [event["number"] for event in new.after(2, None, 10).events] == [3, 4, 1005]
    assert not new.after(4, None, 10).lost, "nothing was told in between"
    empty = ring()
    empty.resume([], 0)
    add(empty, 1)
    assert empty.last_number == 1


def test_what_is_added_is_given_to_be_stored() -> None:
    stored: list[dict[str, Any]] = []
    events = ring(keep=stored.append)
    add(events, 3)
    assert stored == events.after(0, None, 10).events


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def within_deadline() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(within_deadline())


def test_waiting_ends_with_the_next_event_or_the_time_given() -> None:
    async def scenario() -> None:
        events = ring()
        waiting = asyncio.create_task(events.wait(0, 60.0))
        await asyncio.sleep(0)
        add(events, 1)
        await waiting
        await events.wait(0, 60.0)
        await events.wait(1, 0.01)

    run(scenario)

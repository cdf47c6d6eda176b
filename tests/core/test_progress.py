"""Progress never shrinks, is never negative or infinite, and is silent rather than wrong."""

from __future__ import annotations

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from repl.core.progress import STALLED_AFTER_S, WATCHED_S_MIN, WINDOW_S, Progress

SIZE = 1 << 50

#: What happens to a copy: (what, bytes or seconds).
STEPS = st.one_of(
    st.tuples(st.just("copied"), st.integers(0, 1 << 40)),
    st.tuples(st.just("dirtied"), st.integers(0, 1 << 40)),
    st.tuples(st.just("answered"), st.just(0)),
    st.tuples(st.just("paused"), st.floats(0, 86_400)),
    st.tuples(st.just("time"), st.one_of(st.floats(0, 3), st.floats(0, 10**6))),
    st.tuples(st.just("away"), st.floats(0, 10**6)),
    st.tuples(st.just("measured"), st.just(0)),
)


class Copy:
    """A copy under everything that may happen to it; checks what is shown after each step."""

    def __init__(self) -> None:
        self.now_s = 7.0
        self.progress = Progress(self.now_s)
        self.remaining_bytes = 1 << 42
        self.shown_done = 0
        self.moved_at_s = self.now_s

    def step(self, what: str, amount: float) -> None:
        progress = self.progress
        if what == "copied":
            count = min(int(amount), self.remaining_bytes)
            self.remaining_bytes -= count
            progress.done(count, self.now_s)
            self.moved_at_s = self.now_s if count else self.moved_at_s
        elif what == "dirtied":
            self.remaining_bytes = min(SIZE, self.remaining_bytes + int(amount))
        elif what == "answered":
            progress.moved(self.now_s)
            self.moved_at_s = self.now_s
        elif what == "paused":
            self.now_s += amount
            progress.begin(self.now_s)
            self.moved_at_s = self.now_s
        elif what == "away":
            self.now_s += amount
            progress.excuse(amount)
            self.moved_at_s += amount
        elif what == "time":
            self.now_s += amount
        else:
            progress.measure(self.now_s)

    def check(self) -> None:
        shown = self.progress.forecast(self.remaining_bytes, self.now_s)
        json.dumps(shown, allow_nan=False)
        done, remaining = shown["done_bytes"], shown["remaining_bytes"]
        rate, eta_s = shown["rate_bytes_per_s"], shown["eta_s"]
        assert done is not None and remaining is not None and rate is not None
        assert done >= self.shown_done, "what is done never shrinks within one copy"
        self.shown_done = int(done)
        assert remaining == self.remaining_bytes
        total = done + remaining
        assert 0 <= (done / total if total else 0.0) <= 1
        assert rate >= 0 and math.isfinite(rate)
        assert eta_s is None or (eta_s >= 0 and math.isfinite(eta_s))
        still_s = self.now_s - self.moved_at_s
        if abs(still_s - STALLED_AFTER_S) > 1e-3 * max(1.0, self.now_s * 1e-6):
            assert self.progress.is_stalled(self.now_s) == (still_s > STALLED_AFTER_S)
        if self.progress.is_stalled(self.now_s):
            assert rate == 0 and eta_s is None


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=60))
def test_no_sequence_of_events_makes_progress_lie(steps: list[tuple[str, float]]) -> None:
    copy = Copy()
    copy.check()
    for what, amount in steps:
        copy.step(what, amount)
        copy.check()


def steadily(progress: Progress, from_s: int, to_s: int, rate: int = 10_000) -> None:
    for second in range(from_s + 1, to_s + 1):
        progress.done(rate, float(second))
        progress.measure(float(second))


def test_no_forecast_before_the_rate_was_watched() -> None:
    progress = Progress(0.0)
    steadily(progress, 0, int(WATCHED_S_MIN) - 1)
    assert progress.forecast(900, WATCHED_S_MIN)["eta_s"] is None
    steadily(progress, int(WATCHED_S_MIN) - 1, int(WATCHED_S_MIN))
    assert progress.forecast(900, WATCHED_S_MIN)["eta_s"] is not None


def test_a_steady_copy_is_forecast_rightly() -> None:
    progress = Progress(0.0)
    steadily(progress, 0, 30)
    forecast = progress.forecast(900_000, 30.0)
    assert forecast["done_bytes"] == 300_000
    assert forecast["rate_bytes_per_s"] == 10_000
    assert forecast["eta_s"] == 90.0


def test_bits_cleared_in_bursts_are_forecast_as_their_mean() -> None:
    progress = Progress(0.0)
    for tick in range(1, 301):
        now_s = tick / 5
        if tick % 5 == 0:
            progress.done(50_000, now_s)
        progress.measure(now_s)
    forecast = progress.forecast(1_000_000, 60.0)
    assert forecast["rate_bytes_per_s"] is not None and forecast["eta_s"] is not None
    assert abs(forecast["rate_bytes_per_s"] - 50_000) < 5_000
    assert abs(forecast["eta_s"] - 20) < 2


def test_a_rate_too_uneven_to_tell_gives_no_forecast() -> None:
    progress = Progress(0.0)
    for second in range(1, 60):
        progress.done(10_000_000 if second % 9 == 0 else 10, float(second))
        progress.measure(float(second))
    forecast = progress.forecast(1 << 30, 59.0)
    assert forecast["rate_bytes_per_s"] and forecast["eta_s"] is None


def test_a_slower_copy_is_forecast_by_its_new_rate() -> None:
    progress = Progress(0.0)
    steadily(progress, 0, 60, rate=1_000_000)
    steadily(progress, 60, 160, rate=1000)
    rate = progress.forecast(1, 160.0)["rate_bytes_per_s"]
    assert rate is not None and 1000 <= rate < 5000


def test_a_pause_does_not_count_into_the_rate() -> None:
    progress = Progress(0.0)
    steadily(progress, 0, 20)
    progress.begin(3620.0)
    assert progress.forecast(900_000, 3620.0)["eta_s"] is None, "nothing is known yet"
    steadily(progress, 3620, 3640)
    assert progress.forecast(900_000, 3640.0)["rate_bytes_per_s"] == 10_000


def test_a_stopped_process_does_not_make_its_copy_look_stalled() -> None:
    progress = Progress(0.0)
    steadily(progress, 0, int(2 * WINDOW_S))
    now_s = 2 * WINDOW_S + 5000
    assert progress.is_stalled(now_s)
    progress.excuse(5000.0)
    assert not progress.is_stalled(now_s)
    assert progress.forecast(900_000, now_s)["rate_bytes_per_s"] == 10_000


def test_a_copy_that_stalls_for_hours_has_no_infinite_forecast() -> None:
    progress = Progress(0.0)
    progress.done(1 << 40, 1.0)
    for tick in range(60_000):
        progress.measure(1.0 + 0.2 * (tick + 1) + 1e-6 * tick)
        progress.moved(1.0 + 0.2 * (tick + 1) + 1e-6 * tick)
    forecast = progress.forecast(1 << 40, 12_001.0)
    assert forecast["eta_s"] is None or math.isfinite(forecast["eta_s"])
    json.dumps(forecast, allow_nan=False)

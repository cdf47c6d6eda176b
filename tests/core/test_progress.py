"""Progress is never negative, never infinite, and silent rather than wrong."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from repl.core.progress import WATCHED_S_MIN, Progress

AMOUNTS = st.integers(0, 1 << 50)


@given(
    st.lists(st.tuples(AMOUNTS, st.floats(0, 3600)), max_size=40),
    AMOUNTS,
)
def test_a_forecast_is_never_negative_and_never_infinite(
    steps: list[tuple[int, float]], remains: int
) -> None:
    progress, now_s = Progress(), 5.0
    for remaining, passed_s in steps:
        now_s += passed_s
        progress.measure(remaining, now_s)
    forecast = progress.forecast(remains)
    assert forecast["remaining_bytes"] == remains
    done, rate, eta = (forecast[name] for name in ("done_bytes", "rate_bytes_per_s", "eta_s"))
    assert done is not None and done >= 0
    assert rate is not None and rate >= 0 and math.isfinite(rate)
    assert eta is None or (eta >= 0 and math.isfinite(eta))


def test_no_forecast_before_the_rate_was_watched() -> None:
    progress = Progress()
    progress.measure(1000, 0.0)
    progress.measure(900, WATCHED_S_MIN / 2)
    assert progress.forecast(900)["eta_s"] is None
    progress.measure(800, WATCHED_S_MIN)
    assert progress.forecast(800)["eta_s"] is not None


def test_a_steady_copy_is_forecast_rightly() -> None:
    progress = Progress()
    for second in range(11):
        progress.measure(1_000_000 - second * 10_000, float(second))
    forecast = progress.forecast(900_000)
    assert forecast["done_bytes"] == 100_000
    assert forecast["rate_bytes_per_s"] == 10_000
    assert forecast["eta_s"] == 90.0


def test_new_dirt_is_no_negative_progress() -> None:
    progress = Progress()
    progress.measure(1000, 0.0)
    progress.measure(5000, 1.0)
    forecast = progress.forecast(6000)
    assert forecast["done_bytes"] == 0
    assert forecast["rate_bytes_per_s"] == 0


def test_a_copy_that_stalls_for_hours_has_no_infinite_forecast() -> None:
    progress = Progress()
    progress.measure(2 << 40, 0.0)
    progress.measure(1 << 40, 1.0)
    for tick in range(60_000):
        progress.measure(1 << 40, 1.0 + 0.2 * (tick + 1) + 1e-6 * tick)
    forecast = progress.forecast(1 << 40)
    assert forecast["eta_s"] is None or math.isfinite(forecast["eta_s"])
    json.dumps(forecast, allow_nan=False)

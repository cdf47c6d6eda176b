"""Medians, ratios, verdicts and floors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.summary import Comparison, Spread, Verdict, floors, row_comparisons, verdict
from tests.bench.runs import run_of

SPEEDS = st.lists(st.floats(1.0, 1e6), min_size=1, max_size=9)


def compared(**speeds: list[float]) -> Comparison:
    run = run_of({"write-4k-32": {k.replace("_", "-"): v for k, v in speeds.items()}})
    (found,) = row_comparisons(run, run.rows[0])
    return found


def test_spread_is_median_and_range() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0)


@pytest.mark.parametrize(
    ("ours", "theirs", "word"),
    [
        ([100, 101, 102], [90, 91, 99], Verdict.FASTER),
        ([100, 101, 102], [90, 95, 100], Verdict.SAME),
        ([50, 125, 130], [60, 100, 140], Verdict.FASTER),
        ([60, 100, 140], [50, 125, 130], Verdict.SLOWER),
        ([90, 91, 99], [100, 101, 102], Verdict.SLOWER),
    ],
)
def test_win_needs_disjoint_ranges_or_a_clear_ratio(
    ours: list[float], theirs: list[float], word: Verdict
) -> None:
    assert verdict(Spread.of(ours), Spread.of(theirs)) is word


@given(SPEEDS, SPEEDS)
def test_verdict_has_a_mirror_image(ours: list[float], theirs: list[float]) -> None:
    opposite = {
        Verdict.FASTER: Verdict.SLOWER,
        Verdict.SLOWER: Verdict.FASTER,
        Verdict.SAME: Verdict.SAME,
    }
    one, other = Spread.of(ours), Spread.of(theirs)
    assert verdict(other, one) is opposite[verdict(one, other)]


def test_ratio_is_taken_to_the_fastest_of_the_others() -> None:
    found = compared(repl=[100], limit=[200], mirror_tcp=[10], mirror_unix=[50])
    assert found.peer_key == "mirror-unix"
    assert found.of_peer == 2.0
    assert found.of_limit == 0.5


def test_ratio_is_absent_without_anybody_to_compare_with() -> None:
    found = compared(repl=[100])
    assert found.of_limit is None
    assert found.of_peer is None


def test_row_without_ours_compares_nothing() -> None:
    run = run_of({"write-4k-32": {"limit": [1.0]}})
    assert row_comparisons(run, run.rows[0]) == []


def test_floors_are_reached_at_their_value() -> None:
    run = run_of({"write-4k-32": {"repl": [100], "limit": [200], "mirror-unix": [50]}})
    assert [floor.reached for floor in floors(run)] == [True, True]


def test_floors_are_missed_below_their_value() -> None:
    run = run_of({"write-4k-32": {"repl": [99], "limit": [200], "mirror-unix": [50]}})
    assert [floor.reached for floor in floors(run)] == [False, False]


def test_floor_that_was_not_measured_is_neither_reached_nor_missed() -> None:
    run = run_of({"write-4k-1": {"repl": [99]}})
    assert [floor.reached for floor in floors(run)] == [None, None]
    assert all("not measured" in str(floor) for floor in floors(run))

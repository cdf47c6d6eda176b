"""Whatever an operator forces and chooses, only what he gave up is lost (design §5, §8).

A failure names its seed; `python -m tests.sim --seed N --trace` replays it. These seeds are of the
kind that forces two histories (`plan.FORCED_SEEDS`).
"""

from __future__ import annotations

import pytest

from tests.sim.plan import FORCED_SEEDS
from tests.sim.scenario import run_seed

FAST_SEEDS = 6
GROUP_SEEDS = 40


def run(first: int, count: int) -> tuple[int, int]:
    """Run so many seeds; return how often a copy was forced, and how often one was chosen."""
    failures, forced, chosen = [], 0, 0
    (ending,) = FORCED_SEEDS
    for seed in range(first + ending, first + 10 * count, 10):
        outcome = run_seed(seed)
        if outcome.failure:
            failures.append(f"python -m tests.sim --seed {seed} --trace: {outcome.failure}")
        forced += outcome.forced
        chosen += outcome.chosen
    assert not failures, "\n".join(failures)
    return forced, chosen


def test_no_fixed_seed_loses_what_nobody_gave_up() -> None:
    forced, chosen = run(1000, FAST_SEEDS)
    # The seeds mean something: copies were forced apart, and one of two was chosen.
    assert forced >= FAST_SEEDS and chosen >= FAST_SEEDS // 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("group", range(6))
def test_no_seed_of_the_large_set_loses_what_nobody_gave_up(group: int) -> None:
    run(200_000 + group * 10 * GROUP_SEEDS, GROUP_SEEDS)

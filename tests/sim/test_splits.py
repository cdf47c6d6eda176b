"""Whatever an operator forces and chooses, only what he gave up is lost (design §5, §8).

A failure names its seed; `python -m tests.sim --split-brains --seed N --trace` replays it.
"""

from __future__ import annotations

import pytest

from tests.sim.geometry import Geometry, applied
from tests.sim.splits import SplitScenario

FAST_SEEDS = range(1, 7)
GROUP_SEEDS = 40


def run(seeds: range) -> tuple[int, int]:
    """Run the seeds; return how often a copy was forced, and how often one was chosen."""
    failures, forced, chosen = [], 0, 0
    for seed in seeds:
        with applied(Geometry()):
            scenario = SplitScenario(seed)
            outcome = scenario.run()
        if outcome.failure:
            failures.append(
                f"python -m tests.sim --split-brains --seed {seed} --trace: {outcome.failure}"
            )
        forced += len(scenario.world.lines.all) - 1
        chosen += scenario.world.lines.granted
    assert not failures, "\n".join(failures)
    return forced, chosen


def test_no_fixed_seed_loses_what_nobody_gave_up() -> None:
    forced, chosen = run(FAST_SEEDS)
    # The seeds mean something: copies were forced apart, and one of two was chosen.
    assert forced >= len(FAST_SEEDS) and chosen >= len(FAST_SEEDS) // 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("group", range(6))
def test_no_seed_of_the_large_set_loses_what_nobody_gave_up(group: int) -> None:
    first = 200_000 + group * GROUP_SEEDS
    run(range(first, first + GROUP_SEEDS))

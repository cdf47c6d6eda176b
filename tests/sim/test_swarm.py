"""Random installations under random faults keep every promise (design §9).

A failure names its seed; `python -m tests.sim --seed N --trace` replays it.
"""

from __future__ import annotations

import pytest

from tests.sim.scenario import Outcome, run_seed

#: Seeds of one test; eight of these are the fixed set of `make test`.
GROUP_SEEDS = 16


def _run(first: int, count: int) -> list[Outcome]:
    outcomes = [run_seed(seed) for seed in range(first, first + count)]
    failures = [
        f"python -m tests.sim --seed {outcome.seed} --trace: {outcome.failure}"
        for outcome in outcomes
        if outcome.failure
    ]
    assert not failures, "\n".join(failures)
    return outcomes


@pytest.mark.parametrize("group", range(8))
def test_no_fixed_seed_breaks_a_promise(group: int) -> None:
    outcomes = _run(1 + group * GROUP_SEEDS, GROUP_SEEDS)
    # The group means something: clients were answered, and things went wrong.
    assert sum(outcome.acked_writes for outcome in outcomes) > 100 * GROUP_SEEDS
    assert sum(outcome.faults for outcome in outcomes) > 3 * GROUP_SEEDS


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("group", range(8))
def test_no_seed_of_the_large_set_breaks_a_promise(group: int) -> None:
    _run(100_000 + group * 150, 150)


def test_a_seed_replays_exactly() -> None:
    first, second = run_seed(7), run_seed(7)
    assert first.log == second.log
    assert first.acked_writes == second.acked_writes > 0

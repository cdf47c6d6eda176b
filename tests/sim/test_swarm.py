"""Random installations under random faults keep every promise (design §9).

A failure names its seed; `python -m tests.sim --seed N` replays it and makes it small.
"""

from __future__ import annotations

import pytest

from tests.sim.scenario import ACKED_WRITES_MIN, LIVE_FAULTS_MIN, run_seed
from tests.sim.swarm import Totals, run_batch
from tests.sim.unreachable import wrongly_unreachable

#: Seeds of one test; eight of these are the fixed set of `make test`.
GROUP_SEEDS = 12


def _run(first: int, count: int) -> Totals:
    totals = run_batch(list(range(first, first + count)))
    failures = [
        f"python -m tests.sim --seed {outcome.seed}: {outcome.failure}"
        for outcome in totals.failures
    ]
    assert not failures, "\n".join(failures)
    assert not wrongly_unreachable(totals.coverage)
    return totals


@pytest.mark.parametrize("group", range(8))
def test_no_fixed_seed_breaks_a_promise(group: int) -> None:
    totals = _run(1 + group * GROUP_SEEDS, GROUP_SEEDS)
    # The group means something: nearly every seed saw enough writes and enough went wrong.
    assert totals.counted >= GROUP_SEEDS * 3 // 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("group", range(8))
def test_no_seed_of_the_large_set_breaks_a_promise(group: int) -> None:
    _run(100_000 + group * 100, 100)


def test_a_seed_replays_exactly() -> None:
    first, second = run_seed(7), run_seed(7)
    assert first.log == second.log
    assert first.acked_writes == second.acked_writes > 0


def test_a_seed_counts_only_if_enough_happened() -> None:
    outcome = run_seed(5)
    assert outcome.counts
    outcome.live_faults = LIVE_FAULTS_MIN - 1
    assert not outcome.counts
    outcome.live_faults, outcome.acked_writes = LIVE_FAULTS_MIN, ACKED_WRITES_MIN - 1
    assert not outcome.counts

"""Many seeds, in one process or several: sums, coverage, and the failures among them."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from tests.sim.cells import Coverage, Row
from tests.sim.plan import AIM_ROWS
from tests.sim.scenario import Outcome, run_seed

#: Seeds that are remembered for having visited a state.
VISITORS_MAX = 8
#: Seeds that a process takes at once.
BATCH_SEEDS = 4
#: The fields of `Totals` that are added up.
SUMMED = ("seeds", "counted", "acked_writes", "faults", "live_faults", "turns", "busy_s")


@dataclass(slots=True)
class Totals:
    """What a number of seeds did together."""

    seeds: int = 0
    counted: int = 0
    acked_writes: int = 0
    faults: int = 0
    live_faults: int = 0
    turns: int = 0
    #: CPU time that the seeds took, summed over the processes: their real time on an idle machine.
    busy_s: float = 0.0
    coverage: Coverage = field(default_factory=Coverage)
    #: Seeds in which a node was in this state, some of them.
    visitors: dict[Row, list[int]] = field(default_factory=dict)
    failures: list[Outcome] = field(default_factory=list)

    @property
    def turns_per_s(self) -> float:
        """Core turns in a second of one processor."""
        return self.turns / max(self.busy_s, 1e-9)

    def take(self, outcome: Outcome, *, aimed: bool = False) -> None:
        """Add one seed; an `aimed` one is not what the seed is by itself."""
        self.seeds += 1
        self.counted += outcome.counts
        self.acked_writes += outcome.acked_writes
        self.faults += outcome.faults
        self.live_faults += outcome.live_faults
        self.turns += outcome.turns
        if outcome.counts:
            # design §9: a seed in which too little happened says nothing.
            self.coverage.add(outcome.coverage)
            for row in () if aimed else AIM_ROWS:
                if row in outcome.coverage.rows:
                    self._visited(row, [outcome.seed])
        if outcome.failure:
            self.failures.append(outcome)

    def add(self, other: Totals) -> None:
        """Add what another process did."""
        for name in SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.coverage.add(other.coverage)
        for row, seeds in other.visitors.items():
            self._visited(row, seeds)
        self.failures += other.failures

    def _visited(self, row: Row, seeds: list[int]) -> None:
        known = self.visitors.setdefault(row, [])
        known += seeds[: VISITORS_MAX - len(known)]

    def summary(self) -> str:
        """One line for people."""
        return (
            f"{self.seeds} seeds ({self.counted} count), {len(self.failures)} failed, "
            f"{self.acked_writes} writes acknowledged, {self.faults} faults "
            f"({self.live_faults} live), {self.turns} turns at {self.turns_per_s:.0f}/s"
        )


def run_batch(seeds: list[int]) -> Totals:
    """Run these seeds in this process; only failures keep their trace."""
    totals = Totals()
    begun = time.process_time()
    for seed in seeds:
        outcome = run_seed(seed)
        if not outcome.failure:
            outcome.log = []
        totals.take(outcome)
    totals.busy_s = time.process_time() - begun
    return totals


def run_many(seeds: Iterable[int], jobs: int) -> Iterator[Totals]:
    """Run the seeds, which may have no end, in `jobs` processes; yield each batch's totals."""
    remaining = iter(seeds)

    def batches() -> Iterator[list[int]]:
        while batch := list(islice(remaining, BATCH_SEEDS)):
            yield batch

    if jobs == 1:
        yield from map(run_batch, batches())
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting: list[Future[Totals]] = []
        try:
            for batch in batches():
                waiting.append(pool.submit(run_batch, batch))
                if len(waiting) > 2 * jobs:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()

"""Filling the gaps of the coverage: a seed that was in a state is run again, with a missing event
aimed at that state, and other missing events at other states once the first one has struck.

A seed replays exactly up to the moment at which something else happens, so the state is reached
again. What nobody can cause by an order (a ping, a timeout, an answer) is given time to happen by
making a disk or the link hang in that state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.sim.cells import Column, Event, Row
from tests.sim.plan import AIM_ROWS
from tests.sim.scenario import Outcome, run_plan
from tests.sim.shrink import Smaller
from tests.sim.swarm import Totals
from tests.sim.unreachable import missing_cells

#: The actions that cause an event at once.
CAUSES: dict[Column, tuple[str, ...]] = {
    Event.CLIENT_GONE: ("vanish",),
    Event.DISK_FAILED: ("disk-fails",),
    Event.DISK_FULL: ("fill",),
    Event.METADATA_FAILED: ("metadata-fails",),
    Event.PEER_DOWN: ("cut",),
    Event.DROPS: ("disconnect", "pause"),
    Event.FREEZES: ("pause",),
    Event.PROMOTE: ("promote",),
    Event.VOUCH: ("vouch", "lie"),
    Event.LOSE_DATA: ("lose-data",),
    Event.DEMOTE: ("demote",),
    Event.ADOPT: ("adopt", "adopt-fresh"),
    Event.CONTINUE: ("continue",),
    Event.COMPARE: ("compare-all",),
    Event.RESOLVE: ("resolve",),
    Event.LEAVE: ("stop",),
    Event.CRASH: ("crash",),
    Event.POWER_LOSS: ("power",),
}
#: What makes a state last, so that other things may happen in it.
LINGERING = ("hang", "stall", "pause")


@dataclass(frozen=True, slots=True)
class Shot:
    """One run with its aims."""

    smaller: Smaller
    outcome: Outcome


@dataclass(slots=True)
class Hunter:
    """Aims at every reachable cell that is not hit, a few times at each."""

    totals: Totals
    #: How often each (state, action) was aimed at.
    _tries: dict[tuple[Row, str], int] = field(default_factory=dict)
    failed: list[Shot] = field(default_factory=list)
    runs: int = 0

    def hunt(self, runs_max: int, say: Callable[[str], None]) -> None:
        """Run until nothing is missing, or so often; adds to the totals."""
        while self.runs < runs_max:
            smaller = self._next_shot()
            if smaller is None:
                break
            self.runs += 1
            outcome = run_plan(smaller.plan())
            self.totals.take(outcome, aimed=True)
            if outcome.failure:
                self.failed.append(Shot(smaller, outcome))
                say(f"{smaller.options()}: {outcome.failure}")

    def _next_shot(self) -> Smaller | None:
        """The action tried least at each state that lacks something; the first one leads."""
        wanted: dict[Row, list[str]] = {}
        for row, column in missing_cells(self.totals.coverage):
            if self.totals.visitors.get(row):
                wanted.setdefault(row, []).extend(CAUSES.get(column, LINGERING))
        if not wanted:
            return None
        aims = [
            (row, min(dict.fromkeys(names), key=lambda name: self._tries.get((row, name), 0)))
            for row, names in wanted.items()
        ]
        # The state that lacks most for how often it was aimed at leads.
        lead = min(aims, key=lambda aim: self._tries.get(aim, 0) - len(wanted[aim[0]]) / 50)
        aims = [lead, *(aim for aim in aims if aim != lead)]
        tries = self._tries.get(lead, 0)
        self._tries[lead] = tries + 1
        for aim in aims[1:]:
            self._tries[aim] = self._tries.get(aim, 0) + 0
        seeds = self.totals.visitors[lead[0]]
        text = ",".join(f"{AIM_ROWS.index(row)}:{name}" for row, name in aims)
        return replace(Smaller.whole(seeds[tries % len(seeds)]), aim=text)

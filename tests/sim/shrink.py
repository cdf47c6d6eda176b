"""Making a failing scenario small: steps left out, waits cut, the load and the sizes made plain,
for as long as the same rule is still broken.

The result is one line of options for `python -m tests.sim` beside the seed; a step keeps the index
that it has in the seed's own plan.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.sim.actions import ACTIONS
from tests.sim.cells import row_name
from tests.sim.geometry import Geometry
from tests.sim.network import Link
from tests.sim.plan import AIM_ROWS, Plan, Step, aimed_at
from tests.sim.scenario import Outcome, plan_of, run_plan

#: Scenarios that a shrinking runs at most.
RUNS_MAX = 200


@dataclass(frozen=True, slots=True)
class Smaller:
    """What is left of a seed's plan, and which parts of it are made plain."""

    seed: int
    only: tuple[int, ...]
    plain: frozenset[str] = frozenset()
    #: Indexes of steps after which no time passes.
    hasty: frozenset[int] = frozenset()
    #: What is aimed at in each round: an index of a state and an action each, as "12:crash,3:cut".
    aim: str = ""

    @classmethod
    def whole(cls, seed: int) -> Smaller:
        """The plan as it is drawn."""
        return cls(seed, tuple(range(len(plan_of(seed).steps))))

    def plan(self) -> Plan:
        """Draw the seed's plan and take from it what is left out here."""
        plan = plan_of(self.seed)
        assert not plan.opening
        rounds, index = [], 0
        for steps in plan.rounds:
            kept = []
            for step in steps:
                if index in self.only:
                    kept.append(replace(step, wait_s=0.0) if index in self.hasty else step)
                index += 1
            rounds.append(tuple(kept))
        while len(rounds) > 1 and not rounds[-1]:
            rounds.pop()
        plan = replace(plan, rounds=tuple(rounds), rounds_wanted=len(rounds))
        for name in sorted(self.plain):
            plan = PLAIN[name](plan)
        return aimed_at(plan, [(row, self._aimed(row, name)) for row, name in _aims(self.aim)])

    def _aimed(self, row: int, name: str) -> Step:
        """An aimed step; what it draws depends on nothing else that is aimed at."""
        values = ACTIONS[name].draw(random.Random(f"{self.seed} {row} {name}"))
        return Step(name, values=values)

    def options(self) -> str:
        """The command line options that bring this scenario back."""
        words = [f"--seed {self.seed}"]
        if self.only != Smaller.whole(self.seed).only:
            words.append(f"--only {','.join(map(str, self.only)) or 'none'}")
        if self.hasty:
            words.append(f"--hasty {','.join(map(str, sorted(self.hasty)))}")
        if self.plain:
            words.append(f"--plain {','.join(sorted(self.plain))}")
        if self.aim:
            words.append(f"--aim {self.aim}")
        return " ".join(words)

    def listing(self) -> list[str]:
        """The steps that are left, as people read them."""
        steps = plan_of(self.seed).steps
        lines = [f"  {index:3}  {steps[index]}" for index in self.only]
        lines.append(f"  made plain: {', '.join(sorted(self.plain)) or 'nothing'}")
        for row, name in _aims(self.aim):
            lines.append(f"  aimed at {row_name(AIM_ROWS[row])}: {name}")
        return lines


def _plain_load(plan: Plan) -> Plan:
    load = replace(plan.load, depth=1, hot_areas=1, trim=0.0, zero=0.0, huge=0.0, vanish=0.0)
    return replace(plan, clients=1, load=load)


def _still(plan: Plan) -> Plan:
    return replace(plan, attention=0.0, restart_eager=1.0)


#: What can be made plain, by name.
PLAIN: dict[str, Callable[[Plan], Plan]] = {
    "geometry": lambda plan: replace(plan, geometry=Geometry()),
    "link": lambda plan: replace(plan, link=Link(split=0.0)),
    "load": _plain_load,
    "disks": lambda plan: replace(plan, slow=(1.0, 1.0)),
    "operators": _still,
    "image": lambda plan: replace(plan, image_on=()),
}


def shrink(failed: Outcome, say: Callable[[str], None], aim: str = "") -> Smaller:
    """Return the smallest scenario found that breaks the same rule as this seed did."""
    best = replace(Smaller.whole(failed.seed), aim=aim)
    runs = 0
    progress = True
    while progress and runs < RUNS_MAX:
        progress = False
        for smaller in _candidates(best):
            if runs >= RUNS_MAX:
                break
            runs += 1
            if run_plan(smaller.plan()).rule == failed.rule:
                best, progress = smaller, True
                say(f"shrinking: {len(best.only)} steps left after {runs} runs")
                break
    return best


def _candidates(best: Smaller) -> Iterator[Smaller]:
    """Smaller scenarios, the boldest first."""
    kept = best.only
    size = len(kept)
    while size >= 1:
        # From the end: what came after the failure goes with one run.
        for start in range(max(0, len(kept) - size), -1, -size):
            yield replace(best, only=kept[:start] + kept[start + size :])
        size //= 2
    for name in PLAIN:
        if name not in best.plain:
            yield replace(best, plain=best.plain | {name})
    aims = list(filter(None, best.aim.split(",")))
    for index in range(len(aims)):
        yield replace(best, aim=",".join(aims[:index] + aims[index + 1 :]))
    for index in kept:
        if index not in best.hasty:
            yield replace(best, hasty=best.hasty | {index})


def parse(seed: int, only: str | None, plain: str, hasty: str, aim: str = "") -> Smaller:
    """Build the scenario of a command line; raises ValueError for what is no scenario."""
    whole = Smaller.whole(seed)
    kept = whole.only if only is None else _numbers(only)
    unknown = set(filter(None, plain.split(","))) - set(PLAIN)
    if unknown or not set(kept) <= set(whole.only):
        raise ValueError(f"no such part of seed {seed}: {sorted(unknown) or json.dumps(kept)}")
    parts = frozenset(filter(None, plain.split(",")))
    if any(row >= len(AIM_ROWS) or name not in ACTIONS for row, name in _aims(aim)):
        raise ValueError(f"no such aim: {aim}")
    return Smaller(seed, kept, parts, frozenset(_numbers(hasty)), aim)


def _aims(text: str) -> list[tuple[int, str]]:
    parts = [part.partition(":") for part in text.split(",") if part]
    return [(int(row), name) for row, _, name in parts]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(",") if word and word != "none")

"""A failing scenario is made as small as the failure allows, and its options bring it back."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.sim import shrink as shrinking
from tests.sim.plan import Plan
from tests.sim.scenario import Outcome, plan_of, run_plan
from tests.sim.shrink import Smaller, parse, shrink

SEED = 11


def _fails_with(indexes: set[int]) -> Callable[[Plan], Outcome]:
    """A simulator that fails whenever these steps are in the plan."""
    wanted = [plan_of(SEED).steps[index] for index in sorted(indexes)]

    def run(plan: Plan) -> Outcome:
        found = [(step.action, step.node, step.values) for step in plan.steps]
        fails = all((step.action, step.node, step.values) in found for step in wanted)
        return Outcome(SEED, rule="promise" if fails else "", failure="lost" if fails else "")

    return run


def test_only_the_steps_that_the_failure_needs_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "run_plan", _fails_with({3, 9}))
    smaller = shrink(Outcome(SEED, rule="promise", failure="lost"), lambda _text: None)
    assert smaller.only == (3, 9)
    assert smaller.plain == frozenset(shrinking.PLAIN) and smaller.hasty == {3, 9}


def test_another_failure_is_not_taken_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shrinking, "run_plan", _fails_with({3}))
    smaller = shrink(Outcome(SEED, rule="dirty-bits", failure="x"), lambda _text: None)
    assert smaller == Smaller.whole(SEED)


def test_the_options_of_a_small_scenario_bring_it_back() -> None:
    smaller = Smaller(SEED, (3, 9), frozenset({"link", "load"}), frozenset({9}))
    words = smaller.options().split()
    options = dict(zip(words[::2], words[1::2], strict=True))
    again = parse(int(options["--seed"]), options["--only"], options["--plain"], options["--hasty"])
    assert again == smaller and again.plan() == smaller.plan()
    assert len(smaller.plan().steps) == 2


def test_a_plan_without_steps_runs_clean() -> None:
    outcome = run_plan(parse(SEED, "none", "geometry,link,load,disks,operators,image", "").plan())
    assert not outcome.failure and outcome.acked_writes


def test_nonsense_is_no_scenario() -> None:
    with pytest.raises(ValueError, match="no such part"):
        parse(SEED, "4000", "", "")
    with pytest.raises(ValueError, match="no such part"):
        parse(SEED, None, "everything", "")

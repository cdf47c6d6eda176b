"""What a step leaves behind in the world."""

from __future__ import annotations

import pytest

from tests.sim import actions
from tests.sim.geometry import applied
from tests.sim.node import Node
from tests.sim.scenario import Scenario, plan_of


def test_a_blink_watches_until_it_has_written_in_both_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bursts: list[str] = []

    def burst(_scenario: Scenario, node: Node, _values: actions.Values) -> None:
        bursts.append(node.core.sessions[node.peer].phase.value)

    monkeypatch.setattr(actions, "burst", burst)
    plan = plan_of(3)
    with applied(plan.geometry):
        scenario = Scenario(plan)
        scenario._begin()
        watching = list(scenario.world.on_seen)
        actions.blink(scenario, scenario.world.alpha, (False, 0.03, 0.2))
        scenario.run(5.0)
    assert bursts == ["source", "joining"]
    assert scenario.world.on_seen == watching

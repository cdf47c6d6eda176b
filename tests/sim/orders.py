"""What operators order at any moment, rightly, in vain or wrongly: kinds of steps of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from repl.core.promotion import PromoteRequest
from tests.sim.actions import Values, action
from tests.sim.node import Node

if TYPE_CHECKING:
    from tests.sim.scenario import Scenario

#: How long each step of a return may take.
RETURN_S = 5.0


@action("vouch")
def vouch(scenario: Scenario, node: Node, _values: Values) -> None:
    """An operator vouches for the peer, where that is true, or plainly not: then it is refused."""
    if not node.running:
        return
    vain = node.core.sessions[node.peer].connected or node.core.facts.inconsistent
    if vain or scenario.world.may_vouch(node):
        scenario.world.promote(node, PromoteRequest(peer_dead=node.peer))


@action("adopt")
def adopt(scenario: Scenario, node: Node, _values: Values) -> None:
    """`volume adopt` on a copy that belongs to the volume already: refused."""
    if node.running and not node.core.facts.fresh:
        node.adopt(lambda _verdict: None)


@action("come-back", lambda choice: (choice.random() * 2,), aimed=False)
def come_back(scenario: Scenario, _node: Node, values: Values) -> None:
    """The primary is stopped, comes back, takes its role again and is cut off: the peer, which held
    its release meanwhile, asks for the role in vain."""
    world = scenario.world
    primary = world.primary()
    if primary is None or primary.stopping or not world.established():
        return
    world.fault(primary.name, "is stopped cleanly, and comes back")
    primary.stop()
    scenario.run_until(RETURN_S, lambda: not primary.running)
    if not primary.running:
        primary.start()
    scenario.run_until(RETURN_S, world.established)
    world.promote(primary)
    scenario.run_until(RETURN_S, lambda: primary.running and primary.core.is_primary)
    world.fault("link", "cut")
    world.network.cut = True
    world.network.reset()
    scenario.run(cast(float, values[0]))
    world.promote(world.other(primary))
    scenario.run(0.5)
    scenario.heal()


@action("continue")
def go_on(scenario: Scenario, node: Node, _values: Values) -> None:
    """`replctl continue`, whether the node waits for it or not."""
    scenario.world.let_go_on(node)


@action("compare-all")
def compare_all(scenario: Scenario, node: Node, _values: Values) -> None:
    """`resync --full` onto a copy, whatever is going on, where it is not refused at once."""
    world = scenario.world
    other = world.other(node)
    if node.running and not (node.data.failing or other.data.failing):
        world.compare_all(node)


@action("resolve", lambda choice: (choice.random() < 0.5,))
def resolve(scenario: Scenario, node: Node, values: Values) -> None:
    """`splitbrain resolve`, whether there is one or not."""
    world = scenario.world
    world.lines.resolve(node, node if values[0] else world.other(node))


@action("lie", lie=True)
def lie(scenario: Scenario, node: Node, _values: Values) -> None:
    """An operator vouches for the peer, whether that is true or not."""
    scenario.world.promote(node, PromoteRequest(peer_dead=node.peer))


@action("two-primaries", lambda choice: (choice.random() * 2,), lie=True, aimed=False)
def two_primaries(scenario: Scenario, _node: Node, values: Values) -> None:
    """The link breaks, the primary goes on alone, and the other one is promoted beside it."""
    world = scenario.world
    primary = world.primary()
    if primary is None or not world.established():
        return
    world.fault("link", "cut, and an operator takes the primary for dead")
    world.network.cut = True
    world.network.reset()
    patience_s = world.timeouts.peer_timeout_s + world.timeouts.reconnect_grace_s
    scenario.run(patience_s + 2.0)
    world.promote(world.other(primary), PromoteRequest(peer_dead=primary.name))
    scenario.run(cast(float, values[0]))
    scenario.heal()


@action("lose-data", lambda choice: (choice.random() < 0.5,), lie=True)
def lose_data(scenario: Scenario, node: Node, values: Values) -> None:
    """An operator promotes a copy as it is."""
    request = PromoteRequest(lose_data=True, accept_half_copied=cast(bool, values[0]))
    scenario.world.promote(node, request)


@action("adopt-fresh", lie=True)
def adopt_fresh(scenario: Scenario, node: Node, _values: Values) -> None:
    """An operator declares a fresh copy the one, whatever the other node holds."""
    if node.running and node.core.facts.fresh:
        node.adopt(lambda _verdict: None)

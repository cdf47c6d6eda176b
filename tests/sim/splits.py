"""Seeds in which an operator forces two histories, and chooses between them amid faults.

The link breaks, the primary perhaps goes on alone, and the other node is promoted by a wrong word
or as it is. Clients write to both. Then copies are chosen, at any moment, on either node, by one
operator or by two who do not agree, while nodes crash, lose power and lose each other.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from repl.core.promotion import PromoteRequest
from repl.core.states import Phase
from tests.sim.actions import ACTIONS, Values, action
from tests.sim.node import Node
from tests.sim.plan import NODE_NAMES, Drawn, Plan, Step

if TYPE_CHECKING:
    from tests.sim.scenario import Scenario
    from tests.sim.world import World

CLIENTS = 3
#: Histories and choices matter here, not the number of writes.
DEPTH_MAX = 4
LOAD_PAUSE_S = 0.08
#: How long an operator waits for a split-brain to show.
SHOWN_S = 2.0
_FUSE = ACTIONS["fuse"].draw


def _draw_part(choice: random.Random) -> Values:
    return (
        choice.random() < 0.3,
        choice.choice((0.2, 1.5, 3.0)),
        choice.choice(("vouch", "vouch", "vouch", "vouch", "lose-data", "accept-half-copied")),
        choice.random() < 0.2,
        choice.randint(0, 2),
        choice.choice((0.1, 0.5, 2.0)),
        choice.choice((0.0, 0.3, 1.0)),
        *_FUSE(choice),
    )


@action("part", _draw_part, lie=True, aimed=False)
def part(scenario: Scenario, node: Node, values: Values) -> None:
    """Both copies are written apart, until the link is well again."""
    world = scenario.world
    dies, before_s, how, fused, stay, apart_s, after_s, *fuse = values
    primary = world.primary() or node
    world.fault("link", "cut, and an operator forces a second history")
    world.network.cut = True
    world.network.reset()
    if dies:
        ACTIONS["crash"].do(scenario, primary, ())
    scenario.run(cast(float, before_s))
    other = world.other(primary)
    if not other.running:
        other.start()
    if how == "vouch":
        request = PromoteRequest(peer_dead=primary.name)
    else:
        request = PromoteRequest(lose_data=True, accept_half_copied=how == "accept-half-copied")
    world.promote(other, request)
    if fused:
        ACTIONS["fuse"].do(scenario, other, tuple(fuse))
    if not primary.running:
        primary.start()
    for client in list(primary.clients)[cast(int, stay) :]:
        client.leave()
    scenario.run(cast(float, apart_s))
    scenario.heal()
    scenario.run(cast(float, after_s))


def _draw_choose(choice: random.Random) -> Values:
    return (
        choice.random() < 0.4,
        choice.random() < 0.25,
        choice.random() < 0.8,
        choice.choice((0.0, 0.1, 0.5)),
        choice.random() < 0.3,
        choice.random() < 0.5,
        choice.random(),
        choice.random(),
        choice.random() < 0.7,
        *_FUSE(choice),
    )


@action("choose", _draw_choose, lie=True, aimed=False)
def choose(scenario: Scenario, keep: Node, values: Values) -> None:
    """An order, or two that contradict each other, and perhaps an accident in the middle."""
    world = scenario.world
    at_once, opposed, demotes, wait_s, fused, there, accident, after_s, starts, *fuse = values
    other = world.other(keep)
    nodes = [keep, other]
    # At once where the first node knows of it, or when both have had time to say so.
    known = any if at_once else all
    scenario.run_until(SHOWN_S, lambda: known(map(is_split, nodes)))
    for node in nodes if opposed else [other]:
        if demotes and not at_once and node.running and not node.stopping:
            node.demote(lambda _verdict: None)
    if not at_once:
        scenario.run(cast(float, wait_s))
    if fused:
        ACTIONS["fuse"].do(scenario, keep if there else other, tuple(fuse))
    # Two who contradict each other: each for his own node, or each for the other's.
    first = other if there else keep
    world.lines.resolve(first, keep)
    if opposed:
        world.lines.resolve(world.other(first), other)
    _accident(scenario, keep, cast(float, accident), first)
    scenario.run(cast(float, after_s))
    scenario.heal()
    if starts:
        scenario.start_somebody(0.0)


def _accident(scenario: Scenario, keep: Node, number: float, somebody: Node) -> None:
    """Of ten times, one and a half times power is lost and three times the link breaks, and of
    these the copy that is to be given up is asked half of the times to serve again."""
    world = scenario.world
    scenario.run(number * 0.1)
    if number < 0.15:
        ACTIONS["power"].do(scenario, somebody, ())
    elif number < 0.45:
        ACTIONS["cut"].do(scenario, keep, (number > 0.3,))
        if number > 0.3:
            world.promote(world.other(keep))
            scenario.run(1.0)


def is_split(node: Node) -> bool:
    """Whether this node knows of a split-brain."""
    volume = node.volume
    if volume is None or node.stopping:
        return False
    return volume.sessions[node.peer].phase is Phase.SPLIT_BRAIN


def is_unheard(world: World, node: Node) -> bool:
    """Whether this node's copy was chosen, and the other one, which agreed, does not hear of it."""
    mine, theirs = node.core.facts, world.other(node).core.facts
    return theirs.generation.id in mine.discarded and theirs.outdated


def forced(plan: Plan, others: list[Drawn]) -> Plan:
    """Return the plan with forced histories and choices as its steps, and a load that suits them.

    A copy that failed is another story, told by the other seeds.
    """
    choice = random.Random(f"forced {plan.seed}")
    likely = [known for known in others if known[0] not in ("disk-error", "disk-fails")]
    rounds = tuple(tuple(_round(choice, likely)) for _ in plan.rounds)
    load = replace(
        plan.load,
        depth=min(plan.load.depth, DEPTH_MAX),
        pause_s=LOAD_PAUSE_S,
        roams=True,
    )
    return replace(plan, rounds=rounds, load=load, clients=CLIENTS)


def _round(choice: random.Random, likely: list[Drawn]) -> list[Step]:
    steps = []
    for _ in range(choice.randint(1, 3)):
        steps.append(_step(choice, "part"))
        steps += [_step(choice, "choose") for _ in range(choice.randint(0, 4))]
        for _ in range(choice.randint(0, 3)):
            name, draw = choice.choice(likely)
            wait_s = choice.choice((0.0, 0.05, 0.3, 1.0, 3.0)) * choice.random() * 2
            steps.append(Step(name, choice.choice(NODE_NAMES), wait_s, draw(choice)))
        if choice.random() < 0.5:
            steps.append(_step(choice, "choose"))
    return steps


def _step(choice: random.Random, name: str) -> Step:
    return Step(name, choice.choice(NODE_NAMES), 0.0, ACTIONS[name].draw(choice))

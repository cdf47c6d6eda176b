"""The question what a crash would take is asked when it may tell something."""

from __future__ import annotations

from collections.abc import Callable

from repl.core.states import Phase
from tests.sim.cover import Cover
from tests.sim.geometry import Geometry, applied
from tests.sim.node import Node
from tests.sim.world import World


def until(world: World, so: Callable[[], bool]) -> None:
    assert world.clock.run_until(world.clock.now_s + 20.0, so)


def phase_of(node: Node) -> Phase:
    return node.core.sessions[node.peer].phase


def test_each_answer_while_a_member_is_brought_up_is_asked_about() -> None:
    with applied(Geometry()):
        world = World(1)
        alpha, beta = world.nodes.values()
        for node in (alpha, beta):
            node.make_metadata(known_zeroes=True)
            node.start()
        until(world, world.established)
        world.promote(alpha)
        until(world, lambda: alpha.serving)
        # A member that was gone for a moment is brought up for as long as the disk does not read.
        alpha.held.add("reads")
        beta.crash()
        beta.start()
        until(world, lambda: phase_of(alpha) is Phase.SOURCE)
        cover = Cover(world)
        cover.start()
        (answered,) = world.on_answer
        for _ in range(3):
            answered(alpha)
        world.clock.run_until(world.clock.now_s)
        assert cover.asked == 3

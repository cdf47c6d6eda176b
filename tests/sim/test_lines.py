"""A copy becomes a line of its own by an operator's word, once, and whenever its node dies."""

from __future__ import annotations

from dataclasses import replace

from repl.core.facts import Facts
from repl.core.lineage import Generation, Origin
from repl.core.promotion import PromoteRequest
from tests.sim.node import Node
from tests.sim.world import World

#: More effects than a promotion has.
EFFECTS_MAX = 60
LOSE_DATA = PromoteRequest(lose_data=True)


def _run(world: World, seconds: float = 1.0) -> None:
    world.clock.run_until(world.clock.now_s + seconds)


def _apart() -> tuple[World, Node]:
    """Two copies that were in sync and lost each other; the one that was secondary."""
    world = World(1)
    for node in world.nodes.values():
        node.make_metadata(known_zeroes=True)
        node.start()
    assert world.clock.run_until(world.clock.now_s + 20.0, world.established)
    world.promote(world.alpha)
    _run(world)
    assert world.primary() is world.alpha
    world.network.cut = True
    world.network.reset()
    _run(world)
    return world, world.beta


def _forced() -> tuple[World, Node, Facts]:
    """The same after an operator accepted a loss of data, and what the copy has stored then."""
    world, beta = _apart()
    world.promote(beta, LOSE_DATA)
    _run(world)
    facts = beta.stored_facts()
    assert facts.generation.origin is Origin.DATA_LOST and len(world.lines.all) == 2
    # A plain promotion was granted meanwhile: it is the last thing that was asked for.
    beta.request = PromoteRequest()
    return world, beta, facts


def _with_front(facts: Facts, generation: Generation, *, instead: bool) -> Facts:
    """These facts with this as the current generation, in front of the present one or instead."""
    return replace(facts, lineage=(generation, *facts.lineage[instead:]))


def test_storing_the_mark_of_a_forced_generation_begins_no_line() -> None:
    world, beta, facts = _forced()
    line = beta.ledger
    marked = replace(facts.generation, answered=True)
    assert marked != facts.generation
    world.lines.stored(beta, facts, _with_front(facts, marked, instead=True))
    assert beta.ledger is line and len(world.lines.all) == 2


def test_going_back_to_a_forced_generation_begins_no_line() -> None:
    world, beta, facts = _forced()
    line = beta.ledger
    beta.request = LOSE_DATA  # a second order, which is not carried out yet
    newer = replace(facts.generation, counter=9, id=9, origin=Origin.PROMOTED)
    world.lines.stored(beta, _with_front(facts, newer, instead=False), facts)
    assert beta.ledger is line and len(world.lines.all) == 2


def test_a_forced_copy_is_a_line_of_its_own_wherever_its_node_died() -> None:
    stored_and_known = set()
    for effects in range(1, EFFECTS_MAX):
        world, beta = _apart()
        world.promote(beta, LOSE_DATA)
        beta.fuse = effects
        _run(world)
        died = not beta.running
        known = beta.ledger is not world.alpha.ledger
        if died:
            beta.start()
        stored = beta.stored_facts().generation.origin is Origin.DATA_LOST
        assert (beta.ledger is not world.alpha.ledger) == stored, f"died after {effects} effects"
        assert len(world.lines.all) == 1 + stored
        stored_and_known.add((stored, known))
        if not died:
            break
    # It died before the commit, between the commit and the process's knowing of it, and never.
    assert stored_and_known == {(False, False), (True, False), (True, True)}

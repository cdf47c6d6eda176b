"""Seeds in which an operator forces two histories, and chooses between them amid faults.

    python -m tests.sim --split-brains --seeds 1..1000

The link breaks, the primary perhaps goes on alone, and the other node is promoted by a wrong word
or as it is. Clients write to both. Then copies are chosen, at any moment, on either node, by one
operator or by two who do not agree, while nodes crash, lose power and lose each other.
"""

from __future__ import annotations

from dataclasses import replace

from repl.core.promotion import PromoteRequest
from repl.core.states import Phase
from tests.sim.client import Client
from tests.sim.ledger import Violation
from tests.sim.node import Node
from tests.sim.scenario import Scenario

#: Seconds of a calm in which nodes tell each other again what was chosen, before a person acts.
PATIENCE = 4
CLIENTS = 3
LOAD_PAUSE_S = 0.15
#: How long an operator waits for a split-brain to show.
SHOWN_S = 2.0


class RoamingClient(Client):
    """Connects to any node that serves."""

    def _attach(self) -> None:
        serving = [n for n in self.world.nodes.values() if n.serving and not n.ghosts]
        if serving:
            self.attach_to(self.world.choice.choice(serving))


class SplitScenario(Scenario):
    """A run of one seed with forced promotions."""

    convergence_s = 180.0

    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        super().__init__(seed, verbose=verbose)
        # Histories and choices matter here, not the number of writes.
        self.load = replace(self.load, depth=min(self.load.depth, 4), pause_s=LOAD_PAUSE_S)
        self.clients = [RoamingClient(self.world, self.load) for _ in range(CLIENTS)]
        # A copy that failed is another story, told by the other seeds.
        self.weights["disk_error"] = 0
        self._patience = PATIENCE

    def _faults(self, count: int) -> None:
        for _ in range(self.choice.randint(1, 3)):
            self._part()
            for _ in range(self.choice.randint(0, 4)):
                self._choose()
            super()._faults(self.choice.randint(0, 3))
            if self.choice.random() < 0.5:
                self._choose()

    def _part(self) -> None:
        """Both copies are written apart, until the link is well again."""
        world, choice = self.world, self.choice
        primary = world.primary() or choice.choice((world.alpha, world.beta))
        self.cut(primary)
        world.network.cut = True
        if choice.random() < 0.3:
            self.crash(primary)
        world.clock.run_until(world.clock.now_s + choice.choice((0.2, 1.5, 3.0)))
        other = world.other(primary)
        if not other.running:
            other.start()
        if choice.random() < 0.7:
            request = PromoteRequest(peer_dead=primary.name)
        else:
            request = PromoteRequest(lose_data=True, accept_half_copied=choice.random() < 0.7)
        world.promote(other, request)
        if choice.random() < 0.2:
            self.fuse(other)
        if not primary.running:
            primary.start()
        for client in list(primary.clients)[choice.randint(0, 2) :]:
            client.leave()
        world.clock.run_until(world.clock.now_s + choice.choice((0.1, 0.5, 2.0)))
        self._heal()
        world.clock.run_until(world.clock.now_s + choice.choice((0.0, 0.3, 1.0)))

    def _choose(self) -> None:
        """An order, or two that contradict each other, and perhaps an accident in the middle."""
        world, choice = self.world, self.choice
        nodes = [world.alpha, world.beta]
        choice.shuffle(nodes)
        keep, other = nodes
        # At once where the first node knows of it, or when both have had time to say so.
        at_once = choice.random() < 0.4
        known = any if at_once else all
        split = world.clock.run_until(
            world.clock.now_s + SHOWN_S, lambda: known(map(_is_split, nodes))
        )
        if not split and choice.random() < 0.8:
            self._start_somebody()
            return
        opposed = choice.random() < 0.25
        for node in nodes if opposed else [other]:
            if not at_once and choice.random() < 0.8 and node.running and not node.stopping:
                node.demote(lambda _verdict: None)
        if not at_once:
            world.clock.run_until(world.clock.now_s + choice.choice((0.0, 0.1, 0.5)))
        if choice.random() < 0.3:
            self.fuse(choice.choice(nodes))
        # Two who contradict each other: each for his own node, or each for the other's.
        first = choice.choice(nodes)
        world.lines.resolve(first, keep)
        if opposed:
            world.lines.resolve(world.other(first), other)
        accident = choice.random()
        world.clock.run_until(world.clock.now_s + choice.random() * 0.1)
        if accident < 0.15:
            self.power(choice.choice(nodes))
        elif accident < 0.45:
            self.cut(keep)
        if 0.3 < accident < 0.45:
            # Cut off in the middle, the copy to be given up is asked to serve again.
            world.network.cut = True
            world.promote(other)
            world.clock.run_until(world.clock.now_s + 1.0)
        world.clock.run_until(world.clock.now_s + choice.random())
        self._heal()
        if choice.random() < 0.7:
            self._start_somebody()

    def _attend(self) -> None:
        """Nothing but a choice ends a split-brain."""
        nodes = list(self.world.nodes.values())
        if not all(_is_split(node) for node in nodes):
            self._patience = PATIENCE
            return
        self._patience -= 1
        if self._patience > 0:
            return
        self._patience = PATIENCE
        for node in nodes:
            mine, theirs = node.core.facts, self.world.other(node).core.facts
            if theirs.generation.id in mine.discarded and theirs.outdated:
                raise Violation(f"{node.name} is kept, and never tells the other side so")
        keep, orderer = self.choice.choice(nodes), self.choice.choice(nodes)
        other = self.world.other(keep)
        if other.core.is_primary:
            other.demote(lambda _verdict: None)
        else:
            self.world.lines.resolve(orderer, keep)


def _is_split(node: Node) -> bool:
    volume = node.volume
    if volume is None or node.stopping:
        return False
    return volume.sessions[node.peer].phase is Phase.SPLIT_BRAIN

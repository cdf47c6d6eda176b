"""The people of a simulated world: what they do when it needs them, and only then.

While nothing was forced and no complete copy was lost, they only start processes and promote. After
that (`World.excuses`) they do what the product's own hints say, and both copies must become one
again by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repl.core.promotion import PromoteRequest
from repl.core.states import Phase
from tests.sim.node import Node
from tests.sim.splits import is_unheard
from tests.sim.violation import Rule, Violation

if TYPE_CHECKING:
    from tests.sim.scenario import Scenario

#: How long a state that only a person can end is watched before he acts.
PATIENCE_S = 4.0

#: Rules of the handshake after which one copy has to be discarded.
_DISCARD = frozenset(
    {
        "split-brain",
        "no-common-contact",
        "unrelated",
        "other-volume",
        "not-a-member",
        "newer-is-inconsistent",
    }
)
#: Rules after which a copy has to be taken as it is.
_AS_IT_IS = frozenset({"both-inconsistent", "fresh-meets-inconsistent"})


class Operators:
    """Attends to the nodes of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._world = scenario.world
        self._stuck_since_s: float | None = None

    def attend(self) -> None:
        """Nobody serves: vouch for a dead peer where that is true, else try a plain promotion."""
        world, choice = self._world, self._world.dice.world
        for node in world.nodes.values():
            asked = node.volume is not None and node.volume.alone.question is not None
            if asked and choice.random() < 0.5:
                world.let_go_on(node)
        if world.primary() is not None:
            return
        node = choice.choice((world.alpha, world.beta))
        # He vouches for the peer of an incomplete copy in vain: that one is never promoted so.
        vain = node.running and node.core.facts.inconsistent
        if (vain or world.may_vouch(node)) and choice.random() < 0.8:
            world.promote(node, PromoteRequest(peer_dead=node.peer))
        else:
            world.promote(node)
        self._scenario.run(choice.random())

    def repair(self) -> None:
        """Mend the disks, restart what failed, start what is down; every second of a calm."""
        for node in self._world.nodes.values():
            node.data.mend()
            node.meta.mend()
            node.fuse = None
            node.dies_after_failure = 0
            node.release()
            node.full = False
            node.backlog.thaw()
            if node.volume is not None and node.volume.failed and not node.stopping:
                node.crash()
            if not node.running:
                node.say("starts")
                node.start()
        if self._world.excuses:
            self._resolve()

    def _resolve(self) -> None:
        """End what only a person can end, once it has lasted for a while."""
        world = self._world
        rule = self._rule()
        if not rule:
            self._stuck_since_s = None
        elif self._stuck_since_s is None:
            self._stuck_since_s = world.clock.now_s
        elif world.clock.now_s - self._stuck_since_s >= PATIENCE_S:
            self._stuck_since_s = None
            node = world.dice.world.choice((world.alpha, world.beta))
            self._act(rule, node)

    def _rule(self) -> str:
        """The rule by which both nodes stand still, empty if they do not."""
        rules = []
        for node in self._world.nodes.values():
            if not node.running or node.stopping:
                return ""
            session = node.core.sessions[node.peer]
            if session.phase not in (Phase.IDLE, Phase.REFUSED, Phase.SPLIT_BRAIN):
                return ""
            rules.append(session.decision.rule if session.decision is not None else "")
        return rules[0]

    def _act(self, rule: str, node: Node) -> None:
        world = self._world
        other = world.other(node)
        if rule == "both-fresh":
            node.adopt(lambda _verdict: None)
        elif rule == "two-primaries":
            node.demote(lambda _verdict: None)
        elif rule in _AS_IT_IS:
            if node.core.facts.fresh:
                node = other
            world.promote(node, PromoteRequest(lose_data=True, accept_half_copied=True))
        elif rule == "newer-is-inconsistent" and world.dice.world.random() < 0.5:
            if node.core.facts.inconsistent:
                node = other
            world.promote(node, PromoteRequest(lose_data=True))
        elif rule == "split-brain" and world.dice.world.random() < 0.8:
            self._choose(node)
        elif rule in _DISCARD:
            if other.core.facts.fresh or other.core.facts.inconsistent:
                node = other
            self._discard(node)

    def _choose(self, keep: Node) -> None:
        """`splitbrain resolve` on either node, after a demotion where that is needed."""
        world = self._world
        for node in world.nodes.values():
            if is_unheard(world, node):
                text = f"{node.name} is kept, and never tells the other side so"
                raise Violation(Rule.CONVERGENCE, text)
        other = world.other(keep)
        if other.core.is_primary:
            other.demote(lambda _verdict: None)
        else:
            orderer = world.dice.world.choice((world.alpha, world.beta))
            world.lines.resolve(orderer, keep)

    def _discard(self, node: Node) -> None:
        """`volume adopt --discard`, after a demotion where that is needed."""
        if node.core.is_primary:
            node.demote(lambda _verdict: None)
        else:
            node.say("its copy is discarded by an operator")
            node.crash()
            self._world.replace_disk(node, blank=False)

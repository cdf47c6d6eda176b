"""Lines of copies: which ledger a copy is judged by once an operator has forced two histories.

There is one line for as long as nobody gives up data. A copy that is promoted by a wrong word, or
as it is, goes on under a ledger of its own, made of what it holds; the other copy keeps the old
one. Judged is what may vanish because of it: a copy's line ends only if it acknowledged nothing
that the other one lacks, or by an operator's order that was not refused, and then with what it had
acknowledged by then and nothing more. A copy whose keeping was confirmed is not given up for the
other one, and the two are never given up both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from repl.core.facts import Facts
from repl.core.lineage import Origin
from repl.core.promotion import PromoteRequest
from repl.core.verdict import Verdict
from tests.sim.ledger import Ledger, Violation

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World

#: Refusals after which an order may have been carried out all the same.
UNSURE = frozenset({"RESOLVE_INTERRUPTED"})


@dataclass(slots=True)
class _Order:
    """One `splitbrain resolve`."""

    keep: str
    kept: Ledger
    given_up: Ledger
    #: What the copy to be given up had acknowledged alone when it was ordered.
    acked_alone: int
    verdict: Verdict | None = None


class Lines:
    """The lines of copies of one world, and the orders that end them."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.all = [world.ledger]
        self._orders: list[_Order] = []
        #: By node: a promotion that was asked for, and whether what was vouched is true.
        self._asked: dict[str, tuple[PromoteRequest, bool]] = {}
        #: Nodes whose copy was declared worthless by an operator.
        self.discarded: set[str] = set()
        self.granted = 0

    # Beginnings.

    def asked(self, node: Node, request: PromoteRequest) -> None:
        """An operator asks for a promotion."""
        if not node.core.roles.busy and not node.core.is_primary:
            self._asked[node.name] = request, self._world.may_vouch(node)

    def stored(self, node: Node, before: Facts, after: Facts) -> None:
        """A commit of the node is durable."""
        if not after.lineage:
            return
        generation = after.generation
        if before.lineage and before.generation != generation:
            asked = self._asked.get(node.name)
            if asked is not None and generation.primary == after.node_id:
                request, truly = asked
                if generation.origin is Origin.DATA_LOST and request.lose_data:
                    self._begin(node, lacks=False)
                elif generation.origin is Origin.PEER_DEAD and request.peer_dead and not truly:
                    lacks = node.name in node.ledger.behind
                    if not lacks:
                        self._check(node, "promoted by a wrong word")
                    self._begin(node, lacks=lacks)
        self._check_choice(node, before, after)

    def _begin(self, node: Node, *, lacks: bool) -> None:
        del self._asked[node.name]
        self._world.say(node.name, "its copy is a line of its own from now on")
        node.ledger = node.ledger.fork(node.data.image, lacks=lacks)
        self.discarded.discard(node.name)
        self.all.append(node.ledger)

    def _check(self, node: Node, what: str) -> None:
        whole = len(node.data.image) // 512 * 512
        node.ledger.check(node.data.image[:whole], f"{node.name}, {what}")

    # Ends.

    def overwritten(self, node: Node) -> None:
        """From now on this node's copy is made like the other's: may its line end?"""
        source = self._world.other(node)
        if node.ledger is not source.ledger:
            self._check_end(node, source)
            node.ledger = source.ledger
            node.ledger.behind.add(node.name)

    def _check_end(self, node: Node, source: Node) -> None:
        if node.ledger.ended:
            return
        allowed = node.name in self.discarded or node.ledger.gives_up(source.ledger)
        if not self._ordered(node, source) and not allowed:
            raise Violation(
                f"{node.name} is overwritten from {source.name}, but acknowledged "
                f"{node.ledger.acked_alone} writes of its own that nobody gave up"
            )

    def _ordered(self, node: Node, source: Node) -> bool:
        for order in self._orders:
            opposite = order.given_up is source.ledger and node.ledger.comes_from(order.kept)
            if opposite and order.verdict is not None and order.verdict.ok:
                text = f"{node.name} is given up, but {order.keep} was confirmed to be kept"
                raise Violation(text)
        return any(
            order.given_up is node.ledger
            and source.ledger.comes_from(order.kept)
            and order.acked_alone == node.ledger.acked_alone
            and (order.verdict is None or order.verdict.ok or order.verdict.code in UNSURE)
            for order in self._orders
        )

    def _check_choice(self, node: Node, before: Facts, after: Facts) -> None:
        """The two sides are never chosen against each other, and never given up both."""
        other = self._world.other(node)
        if not other.incarnation or not other.laws.facts.lineage:
            return
        theirs = other.laws.facts
        if after.generation.id in theirs.discarded and theirs.generation.id in after.discarded:
            raise Violation("each copy is chosen against the other")
        went_back = bool(before.lineage) and before.generation.id not in {
            entry.id for entry in after.lineage
        }
        if went_back and theirs.inconsistent:
            raise Violation(f"{node.name} gives up its own, and the other copy is no whole one")
        if went_back and node.ledger is not other.ledger:
            self._check_end(node, other)
            node.ledger.ended = True

    # Orders.

    def resolve(self, node: Node, keep: Node) -> list[Verdict]:
        """`replctl splitbrain resolve --keep` on `node`; the list gets the verdict."""
        verdicts: list[Verdict] = []
        if not node.running or node.stopping:
            return verdicts
        other = self._world.other(keep)
        order = _Order(keep.name, keep.ledger, other.ledger, other.ledger.acked_alone)
        self._orders.append(order)
        self._world.say(node.name, f"splitbrain resolve --keep {keep.name}")

        def answered(verdict: Verdict) -> None:
            order.verdict = verdict
            verdicts.append(verdict)
            if verdict.ok:
                self.granted += 1
                self._confirmed(order)

        node.admin(lambda number: node.core.resolve(number, keep.name), answered)
        return verdicts

    def _confirmed(self, order: _Order) -> None:
        for earlier in self._orders:
            opposite = earlier.kept is order.given_up and earlier.given_up is order.kept
            if opposite and earlier.verdict is not None and earlier.verdict.ok:
                raise Violation("both copies were confirmed to be kept")

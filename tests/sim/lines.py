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
from repl.core.lineage import Generation, Origin, sole_and_answered
from repl.core.verdict import Verdict
from tests.sim.cells import Event
from tests.sim.ledger import Ledger
from tests.sim.violation import Rule, Violation

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

    def __init__(self, world: World, first: Ledger) -> None:
        self._world = world
        #: All that ever were; more than one after an operator gave up data.
        self.all = [first]
        self._orders: list[_Order] = []
        #: Nodes whose copy was declared worthless: it may be overwritten whatever it holds.
        self.discarded: set[str] = set()
        self.granted = 0
        #: Generations under which a client got an answer, and those whose mark says that one may
        #: have got one because a request waited when the mark was about to be stored.
        self.answered_under: set[int] = set()
        self._waited_under: set[int] = set()

    # Beginnings.

    def stored(self, node: Node, before: Facts, after: Facts) -> None:
        """A commit of the node is durable."""
        if not after.lineage:
            return
        if after.everything_suspect and not before.everything_suspect:
            # By an operator's word nothing in this copy is to be relied on, or its disk failed.
            self._world.copy_lost(node)
        # One whose mark is stored is not new, nor one that the copy goes back to.
        if after.generation.id not in {entry.id for entry in before.lineage}:
            self._generation_stored(node, after.generation)
        self._check_choice(node, before, after)

    def _generation_stored(self, node: Node, generation: Generation) -> None:
        """A copy that an operator promotes goes on as a line of its own, if he gave up data."""
        if generation.origin is Origin.ADOPTED and generation.counter == 1:
            other = self._world.other(node)
            if not other.started or other.stored_facts().fresh:
                node.ledger.lose_history(node.data.image)
            else:
                self.fork(node, lacks=False, reason="an operator declared a copy the one")
        request = node.request
        if generation.primary != node.node_id or request is None:
            return
        if generation.origin is Origin.DATA_LOST and request.lose_data:
            node.request = None
            self.fork(node, lacks=False, reason="an operator accepted a loss of data")
        elif generation.origin is Origin.PEER_DEAD and request.peer_dead:
            node.request = None
            if not node.vouched_truly or self._claims(self._world.other(node), generation):
                lacks = node.name in node.ledger.behind
                if not lacks:
                    node.ledger.check(node.data.image, f"{node.name}, promoted by a wrong word")
                self.fork(node, lacks=lacks, reason="an operator vouched and was wrong")

    def _claims(self, other: Node, mine: Generation) -> bool:
        """Whether a node that was rightly vouched for will serve all the same: it was started
        before the word took effect, or died as a lone one with its first answer on its way."""
        if other.running and other.core.is_primary and not other.backlog.frozen:
            return True
        entries = other.stored_facts().lineage if other.started else ()
        return sole_and_answered(entries, other.node_id) and mine.counter <= entries[0].counter

    def answered_alone(self, node: Node) -> bool:
        """Whether a client got an answer while this node was alone in the in-sync set, as it is."""
        for entry in node.core.facts.lineage:
            if entry.members != (node.node_id,):
                return False
            if entry.id in self.answered_under:
                return True
        return False

    def fork(self, node: Node, *, lacks: bool, reason: str) -> None:
        """The copy of this node is a line of its own from now on."""
        node.say("its copy is a line of its own from now on")
        node.ledger = node.ledger.fork(node.name, node.data.image, lacks=lacks)
        self.discarded.discard(node.name)
        self.all.append(node.ledger)
        self._world.excuse(reason)

    def mark_begins(self, node: Node, facts: Facts) -> None:
        """A record is about to be stored; it may say that its generation has answered."""
        if facts.lineage and facts.generation.answered and node.client_port.in_flight:
            self._waited_under.add(facts.generation.id)

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
                Rule.KEPT,
                f"{node.name} is overwritten from {source.name}, but acknowledged "
                f"{node.ledger.acked_writes} writes, and some of its own that nobody gave up",
            )

    def _ordered(self, node: Node, source: Node) -> bool:
        for order in self._orders:
            opposite = order.given_up is source.ledger and node.ledger.comes_from(order.kept)
            if opposite and order.verdict is not None and order.verdict.ok:
                text = f"{node.name} is given up, but {order.keep} was confirmed to be kept"
                raise Violation(Rule.KEPT, text)
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
            raise Violation(Rule.KEPT, "each copy is chosen against the other")
        went_back = bool(before.lineage) and before.generation.id not in {
            entry.id for entry in after.lineage
        }
        if went_back and theirs.inconsistent and not theirs.everything_suspect:
            # One whose disk failed meanwhile was a whole one when the choice was made.
            text = f"{node.name} gives up its own, and the other copy is no whole one"
            raise Violation(Rule.KEPT, text)
        if went_back and node.ledger is not other.ledger:
            self._check_end(node, other)
            node.ledger.ended = True

    def split(self, node: Node) -> None:
        """The handshake says split-brain: only after an operator's word, and both are kept.

        Or if a primary died between the storing of the mark and the answer that it was for.
        """
        other = self._world.other(node)
        if node.ledger is not other.ledger:
            return
        mine, theirs = node.core.facts.lineage, other.stored_facts().lineage
        known = {entry.id for entry in mine} & {entry.id for entry in theirs}
        for side in (mine, theirs):
            marked = {entry.id for entry in side if entry.answered} - known
            if not marked & self.answered_under and marked <= self._waited_under:
                self._world.excuse("a primary died with an answer on its way")
                return
        raise Violation(Rule.KEPT, f"{node.name} says split-brain though nobody forced one")

    # Orders.

    def resolve(self, node: Node, keep: Node) -> list[Verdict]:
        """`replctl splitbrain resolve --keep` on `node`; the list gets the verdict."""
        verdicts: list[Verdict] = []
        if not node.running or node.stopping:
            return verdicts
        other = self._world.other(keep)
        order = _Order(keep.name, keep.ledger, other.ledger, other.ledger.acked_alone)
        self._orders.append(order)
        node.say(f"splitbrain resolve --keep {keep.name}")
        node.note(Event.RESOLVE)

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
                raise Violation(Rule.KEPT, "both copies were confirmed to be kept")

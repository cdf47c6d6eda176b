"""Two nodes, one link, one clock, one ledger: a whole simulated installation and its checkers.

Everything random comes from one seeded generator, and nothing depends on the order of a set, so
that a seed replays exactly.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from repl.core import full_compare, lineage
from repl.core.full_compare import Ordered
from repl.core.lineage import Origin
from repl.core.permits import AskOperator, Manual, Provider
from repl.core.promotion import PromoteRequest
from repl.core.states import Phase
from repl.core.verdict import Verdict
from tests.sim.clock import Clock
from tests.sim.disk import Loss
from tests.sim.geometry import Geometry
from tests.sim.ledger import Ledger, Violation
from tests.sim.lines import Lines
from tests.sim.network import Network
from tests.sim.node import Node

NODE_IDS = {"alpha": 11, "beta": 22}
DIAL_INTERVAL_S = 0.15


class World:
    """The installation. `alpha` dials `beta`, as the lower name does."""

    def __init__(
        self,
        seed: int,
        geometry: Geometry | None = None,
        *,
        verbose: bool = False,
        swap_ids: bool | None = None,
    ) -> None:
        self.choice = random.Random(seed)
        self.geometry = geometry or Geometry()
        self.verbose = verbose
        self.clock = Clock()
        self.network = Network(self.clock, self.choice)
        self.ledger = Ledger(self.geometry.size_bytes // 512 * 512)
        self.log: list[str] = []
        #: (phase before, phase after) pairs that happened.
        self.cells: set[tuple[str, str]] = set()
        self.resync_bytes = 0
        self.answered_ops = 0
        self.faults = 0
        self.strict_protocol = True
        #: An operator lied: two primaries are his doing.
        self.forced = False
        self.lines = Lines(self)
        #: `alone = "ask"` on both nodes, and the generations (by node) that an operator let go on.
        self.alone_asks = False
        self.continued: set[tuple[str, int]] = set()
        #: The only complete copy failed while the other was being brought up to it.
        self.nothing_left = False
        self._version = 0
        self._slow: dict[str, float] = {}
        ids = dict(NODE_IDS)
        swap = self.choice.random() < 0.5 if swap_ids is None else swap_ids
        if swap:
            ids = {"alpha": ids["beta"], "beta": ids["alpha"]}
        self._names = {number: name for name, number in ids.items()}
        self.alpha = Node(self, "alpha", "beta", ids["alpha"])
        self.beta = Node(self, "beta", "alpha", ids["beta"])
        self.nodes = {"alpha": self.alpha, "beta": self.beta}
        self.clock.after(DIAL_INTERVAL_S, self._dial)

    # Small services.

    def random_id(self) -> int:
        return self.choice.getrandbits(62) + 1

    def provider(self) -> Provider:
        """Who gives leave to go on alone, for a process that starts."""
        return AskOperator() if self.alone_asks else Manual()

    def next_version(self) -> int:
        self._version += 1
        return self._version

    def disk_delay_s(self, node: Node) -> float:
        slow = self._slow.get(node.name, 1.0)
        return (0.0002 + self.choice.random() * 0.002) * slow

    def set_slow(self, node: Node, factor: float) -> None:
        self._slow[node.name] = factor

    def names_of(self, members: Iterable[int]) -> set[str]:
        return {self._names[member] for member in members}

    def say(self, who: str, text: str) -> None:
        self.log.append(f"{self.clock.now_s:10.4f} {who:6} {text}")

    def other(self, node: Node) -> Node:
        return self.nodes[node.peer]

    # Contact.

    def _dial(self) -> None:
        self.clock.after(DIAL_INTERVAL_S * (0.5 + self.choice.random()), self._dial)
        alpha, beta = self.alpha, self.beta
        if self.network.cut or self.network.stalled:
            return
        ready = alpha.running and beta.running and not alpha.stopping and not beta.stopping
        ready = ready and not (alpha.backlog.frozen or beta.backlog.frozen)
        if ready and alpha.connection is None:
            connection = self.network.connect("alpha", "beta")
            # The dialler's side is up at once; the other accepts a little later.
            alpha.attach(connection)
            self.clock.after(
                self.network.delay_s, lambda: self._accept(connection, beta.incarnation)
            )

    def _accept(self, connection: object, incarnation: int) -> None:
        beta = self.beta
        if beta.backlog.frozen:
            beta.backlog.unless_frozen(lambda: self._accept(connection, incarnation))
            return
        for live in self.network.connections:
            if live is connection:
                if beta.running and not beta.stopping and "alpha" in live.ends:
                    beta.attach(live)
                else:
                    live.close("beta")

    # Faults.

    def power_loss(self, *nodes: Node) -> None:
        for node in nodes:
            loss = self.choice.choice((Loss.ALL, Loss.SOME, Loss.SOME, Loss.NONE))
            self.say(node.name, f"loses power ({loss.value}: {node.data.unsynced_sectors} sectors)")
            node.lose_power(loss, self.choice)

    def replace_disk(self, node: Node) -> None:
        """A new, unknown disk under the configured name: fresh metadata, another node id."""
        node.node_id = 1000 + self.next_version()
        self._names[node.node_id] = node.name
        node.data.zero(0, node.data.size_bytes, punch=True)
        node.data.write(4096, bytes([170]) * 8192)
        node.data.sync()
        node.make_metadata(known_zeroes=False)
        self.cache_lost(node)
        self.lines.discarded.add(node.name)

    def cache_lost(self, node: Node) -> None:
        """What was only in this node's cache may be gone."""
        for line in self.lines.all:
            line.power_lost(node.name)

    def process_ended(self, node: Node) -> None:
        self.say(node.name, "process ended")

    # Judging.

    def peer_error(self, node: Node, text: str) -> None:
        self.say(node.name, f"protocol error: {text}")
        if self.strict_protocol:
            raise Violation(f"{node.name}: the protocol broke between honest peers: {text}")

    def check_lone_primary(self, node: Node) -> None:
        other = self.other(node)
        if self.forced or not other.running or other.volume is None:
            return
        if other.ledger is not node.ledger:
            return  # an operator's doing
        if other.backlog.frozen or other.volume.absence.doubtful:
            # It was stopped, and answers nobody before it has met this node again.
            return
        if other.volume.is_primary:
            raise Violation(f"{node.name} answers while {other.name} is primary too")

    def check_permitted(self, node: Node) -> None:
        """Where leave must be asked for, nobody is answered alone without an operator's word, or
        the peer's own."""
        entries = node.laws.facts.lineage
        if not self.alone_asks or entries[0].origin is not Origin.ALONE or len(entries) < 2:
            return
        if (node.name, entries[1].id) in self.continued:
            return
        if not entries[0].permit.startswith(node.peer) or "nobody is answered" in entries[0].permit:
            raise Violation(f"{node.name} answers alone: {entries[0].permit!r}")

    def became_primary(self, node: Node) -> None:
        self.say(node.name, "is primary")
        self.check_lone_primary(node)
        assert node.volume is not None
        if len(node.volume.facts.lineage) > 1:
            # Whoever promotes a node that is alone already has said that it may go on so.
            self.continued.add((node.name, node.volume.facts.lineage[1].id))
        if node.volume.facts.inconsistent:
            raise Violation(f"{node.name} became primary with an inconsistent copy")
        whole = len(node.data.image) // 512 * 512
        node.ledger.check(node.data.image[:whole], f"{node.name} as new primary")

    def may_vouch(self, node: Node) -> bool:
        """Whether an operator can say with truth that the other node is stopped and acknowledged
        nothing after contact was lost."""
        other = self.other(node)
        if not node.running or not self._stands_still(node) or other.ledger is not node.ledger:
            return False
        if other.stored_facts().holds_release:
            # It may be promoted without a word; only "stopped for good" would be true.
            return False
        mine, theirs = node.stored_facts().lineage, other.stored_facts().lineage
        if not mine or not theirs:
            return not theirs
        ancestor = lineage.common_ancestor(mine, theirs)
        if ancestor is None or ancestor.id != mine[0].id:
            return False
        # The truth as the clients know it, not as the core marked it.
        return node.name not in node.ledger.behind

    def _stands_still(self, node: Node) -> bool:
        """Whether the other node is down, or frozen where it does nothing but wait for this one."""
        other = self.other(node)
        if not other.running or not other.backlog.frozen:
            return not other.running
        assert node.volume is not None
        return (
            node.volume.sessions[other.name].phase is Phase.DOWN
            and not other.core.changes.busy
            and not other.core.roles.busy
        )

    def primary(self) -> Node | None:
        for node in self.nodes.values():
            if node.running and node.volume is not None and node.volume.is_primary:
                return node
        return None

    def established(self) -> bool:
        """Whether both copies are in sync, by both sides' word."""
        for node in self.nodes.values():
            if not node.running or node.volume is None:
                return False
            if node.volume.sessions[node.peer].phase is not Phase.ESTABLISHED:
                return False
        return True

    def check_equal(self) -> None:
        """All is quiet: both copies are the same, and hold what was promised."""
        alpha, beta = self.alpha.data.image, self.beta.data.image
        if alpha != beta:
            for start in range(0, len(alpha), 512):
                if alpha[start : start + 512] != beta[start : start + 512]:
                    raise Violation(f"the copies differ at byte {start} while all is quiet")
        whole = len(alpha) // 512 * 512
        if self.alpha.ledger is not self.beta.ledger:
            raise Violation("the copies are in sync, but of two lines")
        self.alpha.ledger.check(alpha[:whole], "all is quiet")

    # Operators.

    def let_go_on(self, node: Node) -> None:
        """`replctl continue` on a node that waits for it."""
        question = node.volume.alone.question if node.volume is not None else None
        if question is not None and not node.stopping:
            self.say(node.name, "continue")
            self.continued.add((node.name, question.generation_id))
            node.admin(lambda number: node.core.alone.give(number, "uid 0"), lambda _verdict: None)

    def compare_all(self, node: Node) -> None:
        """`replctl resync --full` on a node whose copy may be the target."""
        core = node.core
        if not node.stopping and full_compare.judge(core, node.peer) is Ordered.GIVE_UP_CLAIM:
            self.say(node.name, "resync --full")

            def order(number: int) -> None:
                full_compare.give_up_claim(core, number, node.peer, "uid 0")

            node.admin(order, lambda _verdict: None)

    def promote(self, node: Node, request: PromoteRequest | None = None) -> list[Verdict]:
        """Ask; the list gets the verdict when there is one."""
        verdicts: list[Verdict] = []
        if node.running and not node.stopping:
            asked = request or PromoteRequest()
            self.say(node.name, f"promote {'--peer-dead' if asked.peer_dead else ''}")
            node.promote(asked, verdicts.append)
        return verdicts

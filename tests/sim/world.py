"""Two nodes, one link, one clock, one ledger: a whole simulated installation and its checkers.

Everything random comes from generators made of one seed, and nothing depends on the order of a set,
so that a seed replays exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from repl.core import full_compare, lineage
from repl.core.full_compare import Ordered
from repl.core.lineage import Origin
from repl.core.permits import AskOperator, Manual, Provider
from repl.core.promotion import PromoteRequest
from repl.core.states import Phase
from repl.core.timeouts import Timeouts
from repl.core.verdict import Verdict
from tests.sim.cells import Coverage, Event
from tests.sim.clock import Clock
from tests.sim.dice import Dice
from tests.sim.disk import Loss
from tests.sim.geometry import Geometry
from tests.sim.ledger import WRITES, Ledger, Op
from tests.sim.lines import Lines
from tests.sim.network import Link, Network, Socket
from tests.sim.node import Node
from tests.sim.violation import Rule, Violation

NODE_IDS = {"alpha": 11, "beta": 22}
DIAL_INTERVAL_S = 0.15


class World:
    """The installation. `alpha` dials `beta`, as the lower name does."""

    def __init__(
        self,
        seed: int,
        geometry: Geometry | None = None,
        *,
        link: Link | None = None,
        timeouts: Timeouts | None = None,
        verbose: bool = False,
        swap_ids: bool = False,
        alone_asks: bool = False,
    ) -> None:
        self.dice = Dice(seed)
        self.geometry = geometry or Geometry()
        self.timeouts = timeouts or Timeouts()
        self.verbose = verbose
        self.clock = Clock()
        self.network = Network(self.clock, self.dice.link, link or Link())
        self.ledger = Ledger(self.geometry.size_bytes)
        self.lines = Lines(self, self.ledger)
        #: `alone = "ask"` on both nodes, and the generations (by node) that an operator let go on.
        self.alone_asks = alone_asks
        self.continued: set[tuple[str, int]] = set()
        self.log: list[str] = []
        self.coverage = Coverage()
        self.resync_bytes = 0
        self.answered_ops = 0
        #: Whatever was done to the world from outside, and how much of it to a world in motion.
        self.faults = 0
        self.live_faults = 0
        #: Called after each change of a node's role or phase: aimed faults wait for one.
        self.on_seen: list[Callable[[Node], None]] = []
        #: The same, for whoever does not care which node it was.
        self.on_change: list[Callable[[], None]] = []
        #: Called after each step of a commit that stores a record.
        self.on_record: list[Callable[[], None]] = []
        #: Called with the node that has just acknowledged a request.
        self.on_answer: list[Callable[[Node], None]] = []
        #: A node was frozen, and nothing comes between it and its peer until they have met again.
        self.sheltered = False
        #: Why a person may be needed; empty while the system must get well by itself.
        self.excuses: list[str] = []
        self._version = 0
        self._slow: dict[str, float] = {}
        ids = dict(NODE_IDS)
        if swap_ids:
            ids = {"alpha": ids["beta"], "beta": ids["alpha"]}
        self._names = {number: name for name, number in ids.items()}
        self.alpha = Node(self, "alpha", "beta", ids["alpha"])
        self.beta = Node(self, "beta", "alpha", ids["beta"])
        self.nodes = {"alpha": self.alpha, "beta": self.beta}
        self.clock.after(DIAL_INTERVAL_S, self._dial)

    # Small services.

    def random_id(self) -> int:
        return self.dice.ids.getrandbits(62) + 1

    def provider(self) -> Provider:
        """Who gives leave to go on alone, for a process that starts."""
        return AskOperator() if self.alone_asks else Manual()

    def next_version(self) -> int:
        self._version += 1
        return self._version

    def disk_delay_s(self, node: Node) -> float:
        slow = self._slow.get(node.name, 1.0)
        return (0.0002 + self.dice.disks.random() * 0.002) * slow

    def set_slow(self, node: Node, factor: float) -> None:
        self._slow[node.name] = factor

    def names_of(self, members: Iterable[int]) -> set[str]:
        return {self._names[member] for member in members}

    def say(self, who: str, text: str) -> None:
        self.log.append(f"{self.clock.now_s:10.4f} {who:6} {text}")

    def other(self, node: Node) -> Node:
        return self.nodes[node.peer]

    @property
    def acked_writes(self) -> int:
        return sum(line.acked_writes for line in self.lines.all)

    @property
    def acked_flushes(self) -> int:
        return sum(line.acked_flushes for line in self.lines.all)

    # Contact.

    def _dial(self) -> None:
        self.clock.after(DIAL_INTERVAL_S * (0.5 + self.dice.world.random()), self._dial)
        alpha, beta = self.alpha, self.beta
        if self.network.cut or self.network.stalled:
            return
        ready = alpha.running and beta.running and not alpha.stopping and not beta.stopping
        ready = ready and not (alpha.backlog.frozen or beta.backlog.frozen)
        if ready and not alpha.port.connected:
            ours, theirs = self.network.connect("alpha", "beta")
            # The dialler's side is up at once; the other accepts a little later.
            alpha.attach(ours)
            self.clock.after(self.network.link.delay_s, lambda: self._accept(theirs))

    def _accept(self, end: Socket) -> None:
        if self.beta.backlog.frozen:
            self.beta.backlog.unless_frozen(lambda: self._accept(end))
        elif self.beta.running and not self.beta.stopping:
            self.beta.attach(end)
        else:
            end.close()

    # Faults.

    def fault(self, who: str, text: str) -> None:
        """Something is done to the world."""
        self.faults += 1
        if self.in_motion:
            self.live_faults += 1
        self.say(who, text)

    @property
    def in_motion(self) -> bool:
        """Whether any node is in the middle of something: a request, a handshake, a copy, a change
        of generation or of role."""
        for node in self.nodes.values():
            if not node.running:
                continue
            volume = node.core
            phase = volume.sessions[node.peer].phase
            if (
                node.client_port.in_flight
                or volume.changes.busy
                or volume.roles.busy
                or phase not in (Phase.DOWN, Phase.ESTABLISHED, *_ENDED)
            ):
                return True
        return False

    def power_loss(self, *nodes: Node) -> None:
        choice = self.dice.disks
        for node in nodes:
            loss = choice.choice((Loss.ALL, Loss.SOME, Loss.SOME, Loss.NONE))
            self.say(node.name, f"loses power ({loss.value}: {node.data.unsynced_sectors} sectors)")
            node.lose_power(loss, choice)

    def cache_lost(self, node: Node) -> None:
        """What was only in this node's cache may be gone."""
        for line in self.lines.all:
            line.power_lost(node.name)

    def copy_lost(self, node: Node) -> None:
        """What this node holds, its stable storage included, is worth nothing any more."""
        for line in self.lines.all:
            line.copy_lost(node.name)

    def replace_disk(self, node: Node, *, blank: bool) -> None:
        """`volume adopt --discard`: fresh metadata with another node id, on a new disk or, unless
        `blank`, on the old one as it is."""
        assert not node.running
        other = self.other(node)
        one_line = other.ledger is node.ledger and node.name not in other.ledger.behind
        if one_line and not self.complete(other):
            # What only this copy had is given up by name: the other one is the truth now.
            other.data.sync()
            self.lines.fork(other, lacks=False, reason="an operator discarded the better copy")
        node.node_id = 1000 + self.next_version()
        self._names[node.node_id] = node.name
        if blank:
            node.data.wipe()
            node.data.write(4096, bytes([170]) * 8192)
            node.data.sync()
        node.make_metadata(known_zeroes=False)
        self.lines.discarded.add(node.name)
        self.copy_lost(node)

    def process_ended(self, node: Node) -> None:
        self.say(node.name, "process ended")

    def copy_failed(self, node: Node) -> None:
        """The copy of this node can be trusted no more."""
        self.copy_lost(node)
        if not self.complete(self.other(node)):
            self.excuse("the only complete copy failed")
        elif node.core.facts.alone:
            self.excuse("the copy with the newest generation failed")

    def excuse(self, reason: str) -> None:
        """From now on a person may be needed."""
        if reason not in self.excuses:
            self.say("world", f"a person may be needed: {reason}")
            self.excuses.append(reason)

    def complete(self, node: Node) -> bool:
        """Whether this node's copy has all that was acknowledged in its line, and says so."""
        source = self.other(node)
        if source.running and source.core.sessions[node.name].phase in _MADE_EQUAL:
            # It is inconsistent meanwhile, or will be when what is under way to it arrives.
            return False
        facts = node.laws.facts if node.running else node.stored_facts()
        failed = node.running and bool(node.core.failed)
        whole = bool(facts.lineage) and not facts.inconsistent and not failed
        if facts.outdated or (facts.cache_lost and not facts.alone):
            return False
        return whole and node.name not in node.ledger.behind

    # Judging.

    def peer_error(self, node: Node, text: str) -> None:
        raise Violation(
            Rule.PROTOCOL, f"{node.name}: the protocol broke between honest peers: {text}"
        )

    def seen(self, node: Node) -> None:
        """A node's role or phase changed."""
        for listener in list(self.on_seen):
            listener(node)
        for look in self.on_change:
            look()

    def check_lone_primary(self, node: Node) -> None:
        """Nobody else is primary of this line of copies."""
        other = self.other(node)
        if other.ledger is not node.ledger or other.volume is None:
            return  # an operator's doing
        if other.backlog.frozen or other.volume.absence.doubtful:
            # It was stopped, and answers nobody before it has met this node again.
            return
        if other.volume.is_primary:
            text = f"{node.name} answers while {other.name} is primary too"
            raise Violation(Rule.TWO_PRIMARIES, text)

    def check_permitted(self, node: Node) -> None:
        """Where leave must be asked for, nobody is answered alone without an operator's word, or
        the peer's own."""
        entries = node.laws.facts.lineage
        if not self.alone_asks or entries[0].origin is not Origin.ALONE or len(entries) < 2:
            return
        if (node.name, entries[1].id) in self.continued:
            return
        if not entries[0].permit.startswith(node.peer) or "nobody is answered" in entries[0].permit:
            text = f"{node.name} answers alone: {entries[0].permit!r}"
            raise Violation(Rule.PERMIT, text)

    def became_primary(self, node: Node) -> None:
        """The node serves from now on: what it holds is what was promised."""
        self.say(node.name, "is primary")
        if len(node.core.facts.lineage) > 1:
            # Whoever promotes a node that is alone already has said that it may go on so.
            self.continued.add((node.name, node.core.facts.lineage[1].id))
        if node.core.facts.inconsistent:
            text = f"{node.name} became primary with an inconsistent copy"
            raise Violation(Rule.INCONSISTENT, text)
        self.check_lone_primary(node)
        if node.hidden_failure:
            # A sync failed there, and the process died before that was stored: who vouches for the
            # other one's death cannot know that only that one has it all.
            self.cache_lost(self.other(node))
        node.ledger.check(node.data.image, f"{node.name} as new primary")

    def check_answer(self, node: Node, op: Op, members: tuple[int, ...], made: list[Op]) -> None:
        """What was just acknowledged is where the promise says, and `made` is on stable storage."""
        line = op.ledger
        assert line is not None
        for holder in self.nodes.values():
            if holder.node_id not in members or holder.ledger is not line:
                continue
            what = f"{op} is acknowledged by {node.name}; {holder.name}"
            if op.kind in WRITES and holder.name in op.holders:
                found = holder.data.image[op.offset : op.offset + op.length]
                if found != op.payload:
                    line.check(found, what, op.offset)
            for flushed in made:
                found = holder.data.durable(flushed.offset, flushed.length)
                line.check(found, f"{what} on stable storage", flushed.offset, durable=True)
            if op.kind in WRITES and self._gives_way(holder, node):
                found = node.data.durable(op.offset, op.length)
                line.check_lasts(op, found, f"{what} gives way; stable storage there")
        for listener in self.on_answer:
            listener(node)

    @staticmethod
    def _gives_way(holder: Node, node: Node) -> bool:
        """Whether a member's copy would be overwritten by this node's, or be nowhere, if this one
        lost power now; and this node, which has met it since, knows."""
        if holder is node or node.core.sessions[node.peer].phase is Phase.ESTABLISHED:
            return False
        if not holder.running:
            return holder.without_cache
        return holder.laws.facts.cache_lost or holder.laws.facts.inconsistent

    def check_durable(self, *nodes: Node) -> None:
        """What must survive every loss of power is on stable storage on these nodes."""
        for node in nodes:
            what = f"{node.name} on stable storage"
            node.ledger.check_written(node.data.durable_sector, what, durable=True)

    def overwritten(self, node: Node) -> None:
        """From now on this node's copy is made like the other's: it must be allowed to vanish."""
        source = self.other(node)
        if source.hidden_failure and node.laws.facts.crashed:
            # Both processes died, and one sync failed unseen: nobody can know which copy is better.
            self.cache_lost(node)
        self.lines.overwritten(node)

    def may_vouch(self, node: Node) -> bool:
        """Whether an operator can say with truth that the other node is stopped and acknowledged
        nothing after contact was lost."""
        other = self.other(node)
        if not node.running or other.ledger is not node.ledger or not self._stands_still(node):
            return False
        theirs = other.stored_facts()
        if theirs.holds_release:
            # It may be promoted without a word; only "stopped for good" would be true.
            return False
        mine = node.stored_facts()
        if not mine.lineage or not theirs.lineage:
            return not theirs.lineage
        ancestor = lineage.common_ancestor(mine.lineage, theirs.lineage)
        if ancestor is None or ancestor.id != mine.lineage[0].id:
            return False
        # The truth as the clients know it, not as the core marked it.
        return node.name not in node.ledger.behind

    def _stands_still(self, node: Node) -> bool:
        """Whether the other node is down, or frozen where it will do nothing but wait for this
        one, which it can reach."""
        other = self.other(node)
        if not other.running or not other.backlog.frozen:
            return not other.running
        # Alone it waits as long as nobody was answered; the mark of that may be on its way.
        waits = other.core.is_primary and not self.lines.answered_alone(other)
        return (
            self.sheltered
            and waits
            and node.core.sessions[other.name].phase is Phase.DOWN
            and not other.core.roles.busy
        )

    def primary(self) -> Node | None:
        """A node that serves, if any."""
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
                    text = f"the copies differ at byte {start} while all is quiet"
                    raise Violation(Rule.EQUAL, text)
        if self.alpha.ledger is not self.beta.ledger:
            raise Violation(Rule.KEPT, "the copies are in sync, but of two lines")
        self.alpha.ledger.check(alpha, "all is quiet")

    # Operators.

    def let_go_on(
        self, node: Node, answer: Callable[[Verdict], None] = lambda _verdict: None
    ) -> None:
        """`replctl continue`."""
        if not node.running or node.stopping:
            return
        question = node.core.alone.question
        if question is not None:
            self.continued.add((node.name, question.generation_id))
        node.say("continue")
        node.note(Event.CONTINUE)
        node.admin(lambda number: node.core.alone.give(number, "uid 0"), answer)

    def compare_all(self, node: Node) -> None:
        """`replctl resync --full` on a node whose copy may be the target."""
        core = node.core
        if not node.stopping and full_compare.judge(core, node.peer) is Ordered.GIVE_UP_CLAIM:
            self.fault(node.name, "resync --full")
            node.note(Event.COMPARE)
            node.admin(
                lambda number: full_compare.order(core, number, node.peer, "uid 0"),
                lambda _verdict: None,
            )

    def claim_given_up(self, node: Node) -> None:
        """A record that may become durable from now on says that nothing of this copy, which was
        one, is to be relied on: the other one has all that it holds, on stable storage."""
        heir = self.other(node)
        if node.laws.facts.inconsistent or heir.ledger is not node.ledger:
            return
        node.ledger.left_to(heir.name, by=node.name)
        self.check_durable(heir)

    def promote(self, node: Node, request: PromoteRequest | None = None) -> list[Verdict]:
        """Ask; the list gets the verdict when there is one."""
        verdicts: list[Verdict] = []
        if node.running and not node.stopping:
            asked = request or PromoteRequest()
            words = [
                "--peer-dead" * bool(asked.peer_dead),
                "--lose-data" * asked.lose_data,
                "--accept-half-copied" * asked.accept_half_copied,
            ]
            self.say(node.name, " ".join(["promote", *filter(None, words)]))
            node.promote(asked, verdicts.append)
        return verdicts


#: What a source is in while its target is no whole copy.
_MADE_EQUAL = (Phase.SOURCE_STARTING, Phase.SOURCE, Phase.JOINING)
_ENDED = (Phase.IDLE, Phase.REFUSED, Phase.SPLIT_BRAIN)

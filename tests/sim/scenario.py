"""One seed: a random installation under load and faults, then calm, in which it must converge."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from repl.core.changes import Kind
from repl.core.roles import Task
from repl.core.states import Role
from repl.core.verdict import Verdict
from tests.sim import actions, orders
from tests.sim.cells import Coverage, Row
from tests.sim.client import Client
from tests.sim.cover import Cover
from tests.sim.geometry import applied
from tests.sim.ledger import Op, OpKind, sector_bytes
from tests.sim.network import Link
from tests.sim.node import Node
from tests.sim.operators import Operators
from tests.sim.plan import FORCED_SEEDS, Plan, Step, make_plan
from tests.sim.splits import forced
from tests.sim.violation import Rule, Violation
from tests.sim.world import World

#: Where the kinds of steps are.
KINDS = (actions, orders)
#: Virtual time in which everything must be well again once the faults stop; longer where a person
#: has to find out and act.
CONVERGENCE_S = 60.0
WITH_PEOPLE_S = 240.0
#: How often an operator tries to adopt the first copy.
ADOPTIONS_MAX = 60
#: A seed counts only with at least this much of each (design §9).
ACKED_WRITES_MIN = 200
LIVE_FAULTS_MIN = 3


@dataclass(slots=True)
class Outcome:
    """What a seed did; `failure` is empty when it ran clean."""

    seed: int
    acked_writes: int = 0
    acked_flushes: int = 0
    faults: int = 0
    live_faults: int = 0
    turns: int = 0
    virtual_s: float = 0.0
    #: How often a copy was forced to go on by itself, and how often one of two was chosen.
    forced: int = 0
    chosen: int = 0
    #: The broken rule's name, or the type of the exception that nobody foresaw.
    rule: str = ""
    failure: str = ""
    log: list[str] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)

    @property
    def counts(self) -> bool:
        """Whether enough happened for the seed to say something."""
        return self.acked_writes >= ACKED_WRITES_MIN and self.live_faults >= LIVE_FAULTS_MIN


class Scenario:
    """A run of one plan."""

    def __init__(self, plan: Plan, *, verbose: bool = False) -> None:
        self.plan = plan
        self.lying = actions.lies_in(plan)
        self.world = World(
            plan.seed,
            plan.geometry,
            link=plan.link,
            timeouts=plan.timeouts,
            verbose=verbose,
            swap_ids=plan.swap_ids,
            alone_asks=plan.alone_asks,
        )
        world = self.world
        for node, factor in zip(world.nodes.values(), plan.slow, strict=True):
            world.set_slow(node, factor)
        self.clients = [Client(world, plan.load) for _ in range(plan.clients)]
        self.operators = Operators(self)
        self._cover = Cover(world)
        #: When an aimed fault struck last; 0 before the first.
        self.struck_s = 0.0

    def execute(self) -> Outcome:
        """Run to the end of the plan, or to the first broken promise."""
        outcome = Outcome(self.plan.seed)
        try:
            self._begin()
            for number, steps in enumerate(self.plan.rounds):
                if number >= self.plan.rounds_wanted and self._counts:
                    break
                self._faults(steps)
                self._calm()
        except Violation as error:
            outcome.rule, outcome.failure = error.rule.value, str(error)
        except Exception as error:
            # Whatever breaks is this seed's failure, and the swarm goes on with the next one.
            last = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{last.filename.rsplit('/', 1)[-1]}:{last.lineno}"
            outcome.rule = type(error).__name__
            outcome.failure = f"{type(error).__name__}: {error} (at {place})"
        world = self.world
        if outcome.failure:
            world.say("FAIL", outcome.failure)
        outcome.acked_writes, outcome.acked_flushes = world.acked_writes, world.acked_flushes
        outcome.faults, outcome.live_faults = world.faults, world.live_faults
        outcome.turns = sum(node.turns for node in world.nodes.values())
        outcome.virtual_s = world.clock.now_s
        outcome.forced, outcome.chosen = len(world.lines.all) - 1, world.lines.granted
        outcome.log, outcome.coverage = world.log, world.coverage
        return outcome

    @property
    def _counts(self) -> bool:
        world = self.world
        return world.acked_writes >= ACKED_WRITES_MIN and world.live_faults >= LIVE_FAULTS_MIN

    # Phases.

    def _begin(self) -> None:
        world, images = self.world, self.plan.image_on
        for node in world.nodes.values():
            node.make_metadata(known_zeroes=node.name not in images)
        for step in self.plan.opening:
            actions.ACTIONS[step.action].do(self, world.alpha, step.values)
        for name in images:
            self._make_image(world.nodes[name])
        for node in world.nodes.values():
            node.start()
        if images:
            # Let them meet first, where neither knows which copy is the one.
            self.run(2.0 if len(images) > 1 else 0.0)
            self._adopt(world.nodes[images[0]])
        self._wait_until_well()
        world.excuses.clear()
        self._until_primary()
        for client in self.clients:
            client.start()
        self.run(0.5)
        self._cover.start()

    def _make_image(self, node: Node) -> None:
        choice, size_bytes = self.world.dice.world, self.plan.geometry.size_bytes
        for _ in range(8):
            sector = choice.randrange(size_bytes // 512)
            node.data.write(sector * 512, sector_bytes(self.world.next_version(), sector))
        node.data.sync()

    def _adopt(self, node: Node) -> None:
        """Declare the copy of this node the one, as soon as it runs."""
        for _ in range(ADOPTIONS_MAX):
            self.heal()
            self.operators.repair()
            if node.running and not node.stopping:
                if node.core.facts.lineage:
                    return
                node.adopt(lambda _verdict: None)
            self.run(1.0)
        raise Violation(Rule.CONVERGENCE, f"{node.name} cannot be adopted: {self._state()}")

    def _faults(self, steps: tuple[Step, ...]) -> None:
        world, choice, plan = self.world, self.world.dice.world, self.plan
        world.network.link = plan.link
        world.sheltered = False
        for step in steps:
            node = world.nodes.get(step.node, world.alpha)
            actions.ACTIONS[step.action].do(self, node, step.values)
            self.run(step.wait_s)
            if step.action in actions.AIMS:
                continue
            self.start_somebody(plan.restart_eager)
            if choice.random() < plan.attention:
                self.operators.attend()
            if choice.random() < 0.3:
                self.heal()
            self._cover.check_apart()

    def _calm(self) -> None:
        world = self.world
        world.say("world", "the faults stop")
        self.heal()
        for node in world.nodes.values():
            world.set_slow(node, 1.0)
        world.network.link = Link(split=self.plan.link.split)
        self.operators.repair()
        self._wait_until_well()
        self._until_primary()
        self._quiet()

    def _wait_until_well(self) -> None:
        """What was aimed may still strike; the time counts from the last fault."""
        world = self.world
        begun_s = world.clock.now_s
        while not self._well():
            limit_s = WITH_PEOPLE_S if world.excuses else CONVERGENCE_S
            if world.clock.now_s - max(begun_s, self.struck_s) > limit_s:
                text = f"the copies do not get in sync: {self._state()}"
                raise Violation(Rule.CONVERGENCE, text)
            self.heal()
            self.operators.repair()
            self.run(1.0)
        # From here on nothing happens that was not ordered; what was aimed strikes no more.
        world.on_seen.clear()
        world.sheltered = True
        self.operators.repair()

    def _well(self) -> bool:
        world = self.world
        return world.established() and not any(
            node.stopping or node.unanswered or node.core.roles.busy or node.core.changes.busy
            for node in world.nodes.values()
        )

    def _until_primary(self) -> None:
        world = self.world
        deadline_s = world.clock.now_s + CONVERGENCE_S
        verdicts: list[Verdict] = []
        while world.primary() is None:
            if world.clock.now_s > deadline_s:
                reason = verdicts[-1].reason if verdicts else ""
                text = f"nobody can be promoted: {reason}; {self._state()}"
                raise Violation(Rule.CONVERGENCE, text)
            asked = world.promote(world.dice.world.choice((world.alpha, world.beta)))
            self.run(1.0)
            verdicts += asked

    def _quiet(self) -> None:
        """Let every request end, flush, and compare."""
        world = self.world
        for client in self.clients:
            client.stop()
        self._wait("all requests to be answered", self._idle, CONVERGENCE_S)
        primary = world.primary()
        assert primary is not None
        self._wait("no ghosts", lambda: not primary.ghosts, CONVERGENCE_S)
        for client in self.clients:
            client.leave()
        client = self.clients[0]
        self._wait("the export to be served", lambda: primary.serving, CONVERGENCE_S)
        client.attach_to(primary)
        last = Op(world.next_version(), OpKind.WRITE, 0, 512, False)
        client.submit(last)
        self._wait("a last write", self._idle, CONVERGENCE_S)
        client.submit(Op(world.next_version(), OpKind.FLUSH, 0, 0, False))
        self._wait("a last flush", self._idle, CONVERGENCE_S)
        if not last.acked:
            raise Violation(Rule.CONVERGENCE, "the last write was not answered")
        self._wait("sync again", world.established, CONVERGENCE_S)
        if any(node.client_port.in_flight for node in world.nodes.values()):
            raise Violation(Rule.OPS, f"a request was lost: {self._state()}")
        world.check_equal()
        world.check_durable(world.alpha, world.beta)
        world.alpha.ledger.narrow(world.alpha.data.image)
        world.excuses.clear()
        client.leave()
        for client in self.clients:
            client.start()

    def _idle(self) -> bool:
        return all(client.idle for client in self.clients)

    # What steps do.

    def run(self, seconds: float) -> None:
        """Let virtual time pass."""
        self.world.clock.run_until(self.world.clock.now_s + seconds)

    def run_until(self, seconds: float, until: Callable[[], bool]) -> None:
        """Let virtual time pass until something is so, at most so long."""
        self.world.clock.run_until(self.world.clock.now_s + seconds, until)

    def start_somebody(self, eager: float) -> None:
        """Start a node that is down, as often as `eager` says (0: always)."""
        choice = self.world.dice.world
        if eager and choice.random() >= eager:
            return
        down = [node for node in self.world.nodes.values() if not node.running]
        if down:
            node = choice.choice(down)
            node.say("starts")
            node.start()

    def heal(self) -> None:
        """The link is well again."""
        network = self.world.network
        if network.cut or network.stalled:
            self.world.say("link", "healed")
            network.heal()

    def pause_clients(self, seconds: float) -> None:
        """The clients send nothing for a while."""
        for client in self.clients:
            client.pause(seconds)

    def in_row(self, node: Node, row: Row) -> bool:
        """Whether a node is in a state of the coverage table now."""
        volume = node.volume
        if volume is None:
            return False
        if isinstance(row, Kind):
            return volume.changes.kind is row
        if isinstance(row, Task):
            return volume.roles.task is row
        role = Role.PRIMARY if volume.is_primary else Role.SECONDARY
        return row == (volume.sessions[node.peer].phase, role)

    def _wait(self, what: str, until: object, limit_s: float) -> None:
        assert callable(until)
        if not self.world.clock.run_until(self.world.clock.now_s + limit_s, until):
            raise Violation(Rule.CONVERGENCE, f"waited {limit_s:g} s for {what}: {self._state()}")

    def _state(self) -> str:
        parts = []
        for node in self.world.nodes.values():
            volume = node.volume
            if volume is None:
                parts.append(f"{node.name} down")
                continue
            session = volume.sessions[node.peer]
            rule = session.decision.rule if session.decision is not None else ""
            parts.append(
                f"{node.name} {volume.role_text} {volume.disk_state_text} {session.phase.value}"
                f" ({rule}) changes={volume.changes.kind} task={volume.roles.task}"
                f" pending={volume.writes.pending} freezes={sorted(volume._freezes)}"
            )
        return "; ".join(parts)


def plan_of(seed: int) -> Plan:
    """Draw the plan of a seed."""
    honest = actions.drawn(lie=False)
    plan = make_plan(seed, honest, actions.drawn(lie=True), actions.drawn(lie=False, aimed=True))
    return forced(plan, honest) if seed % 10 in FORCED_SEEDS else plan


def run_plan(plan: Plan, *, verbose: bool = False) -> Outcome:
    """Run one plan to its end."""
    with applied(plan.geometry):
        return Scenario(plan, verbose=verbose).execute()


def run_seed(seed: int, *, verbose: bool = False) -> Outcome:
    """Run one seed to its end."""
    return run_plan(plan_of(seed), verbose=verbose)

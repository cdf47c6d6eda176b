"""One seed: a random installation under load and faults, then calm, in which it must converge."""

from __future__ import annotations

from dataclasses import dataclass

from repl.core.promotion import PromoteRequest
from repl.core.verdict import Verdict
from tests.sim.client import Client, Load
from tests.sim.geometry import Geometry, applied
from tests.sim.ledger import Op, OpKind, Violation
from tests.sim.node import Node
from tests.sim.world import World

CONVERGENCE_S = 60.0
START_S = 20.0
#: No fault comes between a node that was frozen and its peer for this long.
CONTACT_S = 5.0


@dataclass(slots=True)
class Outcome:
    """What a seed did; `failure` is empty when it ran clean."""

    seed: int
    acked_writes: int
    acked_flushes: int
    faults: int
    turns: int
    virtual_s: float
    failure: str
    log: list[str]
    cells: set[tuple[str, str]]


class Scenario:
    """A run of one seed."""

    #: Virtual time in which everything must be well again once the faults stop.
    convergence_s = CONVERGENCE_S

    def __init__(self, seed: int, *, verbose: bool = False) -> None:
        self.seed = seed
        self.world = World(seed, verbose=verbose)
        choice = self.world.choice
        self.choice = choice
        self.load = Load(
            depth=choice.choice((1, 4, 8, 16)),
            pause_s=choice.choice((0.005, 0.02, 0.06)),
            hot_areas=choice.randint(1, 5),
            area_bytes=choice.choice((16 << 10, 96 << 10)),
            longest_bytes=choice.choice((4 << 10, 32 << 10)),
            flush=choice.choice((0.0, 0.03, 0.1)),
            fua=choice.choice((0.0, 0.1)),
            vanish=choice.choice((0.0, 0.003)),
        )
        network = self.world.network
        network.delay_s = choice.choice((0.0002, 0.002, 0.02))
        network.jitter_s = network.delay_s * choice.choice((0.1, 1.0, 5.0))
        for node in self.world.nodes.values():
            self.world.set_slow(node, choice.choice((0.5, 1.0, 4.0)))
        self.clients = [Client(self.world, self.load) for _ in range(choice.choice((1, 1, 2)))]
        self.world.alone_asks = choice.random() < 0.3
        #: Relative weights of what may happen; each seed prefers something else.
        self.weights = {name: choice.choice((0, 1, 1, 3)) for name in _ACTIONS}
        self.restart_eager = choice.random()

    def run(self) -> Outcome:
        failure = ""
        try:
            self._begin()
            for _round in range(self.choice.choice((1, 2, 2, 3))):
                self._faults(self.choice.randint(4, 12))
                self._calm()
        except AssertionError as error:
            import traceback

            kind = type(error).__name__
            last = traceback.extract_tb(error.__traceback__)[-1]
            failure = f"{kind}: {error} (at {last.filename.rsplit('/', 1)[-1]}:{last.lineno})"
            self.world.say("FAIL", failure)
        world = self.world
        return Outcome(
            self.seed,
            sum(line.acked_writes for line in world.lines.all),
            sum(line.acked_flushes for line in world.lines.all),
            world.faults,
            sum(node.turns for node in world.nodes.values()),
            world.clock.now_s,
            failure,
            world.log,
            world.cells,
        )

    # Phases.

    def _begin(self) -> None:
        world = self.world
        for node in world.nodes.values():
            node.make_metadata(known_zeroes=True)
            node.start()
        self._wait("first contact", world.established, START_S)
        self._until_primary()
        for client in self.clients:
            client.start()
        world.clock.run_until(world.clock.now_s + 0.5)

    def _faults(self, count: int) -> None:
        world, choice = self.world, self.choice
        names = [name for name in _ACTIONS if self.weights[name]] or ["crash"]
        weights = [self.weights[name] or 1 for name in names]
        for _ in range(count):
            name = choice.choices(names, weights)[0]
            node = choice.choice((world.alpha, world.beta))
            _ACTIONS[name](self, node)
            pause_s = choice.choice((0.0, 0.05, 0.3, 1.0, 3.0)) * choice.random() * 2
            world.clock.run_until(world.clock.now_s + pause_s)
            if choice.random() < self.restart_eager:
                self._start_somebody()
            if choice.random() < 0.5:
                self._operate()
            if choice.random() < 0.3 and (world.network.cut or world.network.stalled):
                self._heal()

    def _start_somebody(self) -> None:
        down = [node for node in self.world.nodes.values() if not node.running]
        if down:
            node = self.choice.choice(down)
            self.world.say(node.name, "starts")
            node.start()

    def _operate(self) -> None:
        """What an attentive operator does when nobody serves."""
        world = self.world
        for node in world.nodes.values():
            if self.choice.random() < 0.5:
                world.let_go_on(node)
        if world.primary() is not None:
            return
        node = self.choice.choice((world.alpha, world.beta))
        if world.may_vouch(node) and self.choice.random() < 0.8:
            world.promote(node, PromoteRequest(peer_dead=node.peer))
        else:
            world.promote(node)
        world.clock.run_until(world.clock.now_s + self.choice.random())

    def _heal(self) -> None:
        network = self.world.network
        if network.cut or network.stalled:
            self.world.say("link", "healed")
        network.cut = False
        network.set_stalled(False)

    def _calm(self) -> None:
        world = self.world
        world.say("world", "the faults stop")
        self._heal()
        for node in world.nodes.values():
            node.fuse = None
            node.fail_syncs = False
            node.full = False
            world.set_slow(node, 1.0)
        deadline_s = world.clock.now_s + self.convergence_s
        while world.clock.now_s < deadline_s:
            self._attend()
            for node in world.nodes.values():
                if node.volume is not None and node.volume.failed:
                    node.crash()
                if not node.running:
                    world.say(node.name, "starts")
                    node.start()
            world.clock.run_until(world.clock.now_s + 1.0)
            if world.established() and not any(
                node.stopping or node.unanswered for node in world.nodes.values()
            ):
                break
        if world.nothing_left and all(n.laws.facts.inconsistent for n in world.nodes.values()):
            # Nobody could have kept it; what is promised is that nobody serves what is left.
            self._nobody_serves()
            return
        if not world.established():
            raise Violation(f"the copies do not get in sync: {self._state()}")
        self._until_primary()
        self._quiet()

    def _attend(self) -> None:
        """What only a person can end, every second of a calm: here, nothing is."""

    def _nobody_serves(self) -> None:
        for node in self.world.nodes.values():
            verdicts = self.world.promote(node)
            self.world.clock.run_until(self.world.clock.now_s + 1.0)
            if self.world.primary() is not None or any(verdict.ok for verdict in verdicts):
                raise Violation(f"{node.name} serves an inconsistent copy")

    def _until_primary(self) -> None:
        world = self.world
        deadline_s = world.clock.now_s + CONVERGENCE_S
        verdicts: list[Verdict] = []
        while world.primary() is None:
            if world.clock.now_s > deadline_s:
                raise Violation(
                    f"nobody can be promoted: {verdicts and verdicts[-1].reason}; {self._state()}"
                )
            node = self.choice.choice((world.alpha, world.beta))
            asked = world.promote(node)
            world.clock.run_until(world.clock.now_s + 1.0)
            verdicts += asked

    def _quiet(self) -> None:
        """Let every request end, flush, and compare."""
        world = self.world
        for client in self.clients:
            client.active = False
        self._wait("all requests to be answered", self._idle, CONVERGENCE_S)
        primary = world.primary()
        assert primary is not None
        self._wait("no ghosts", lambda: not primary.ghosts, CONVERGENCE_S)
        for client in self.clients:
            client.leave()
        client = self.clients[0]
        client.attach_to(primary)
        number = world.next_version()
        ops = [Op(number, OpKind.WRITE, 0, 512, False)]
        client.submit(ops[0])
        self._wait("a last write", self._idle, CONVERGENCE_S)
        client.submit(Op(world.next_version(), OpKind.FLUSH, 0, 0, False))
        self._wait("a last flush", self._idle, CONVERGENCE_S)
        if not ops[0].acked:
            raise Violation("the last write was not answered")
        self._wait("sync again", world.established, CONVERGENCE_S)
        world.check_equal()
        world.alpha.ledger.narrow(world.alpha.data.image)
        client.leave()
        for client in self.clients:
            client.start()

    def _idle(self) -> bool:
        return not any(client.in_flight for client in self.clients)

    def _wait(self, what: str, until: object, limit_s: float) -> None:
        assert callable(until)
        if not self.world.clock.run_until(self.world.clock.now_s + limit_s, until):
            raise Violation(f"waited {limit_s:g} s for {what}: {self._state()}")

    def _state(self) -> str:
        parts = []
        for node in self.world.nodes.values():
            volume = node.volume
            if volume is None:
                parts.append(f"{node.name} down")
                continue
            session = volume.sessions[node.peer]
            parts.append(
                f"{node.name} {volume.role_text} {volume.disk_state_text} {session.phase.value}"
                f" changes={volume.changes.kind} task={volume.roles.task}"
                f" pending={volume.writes.pending} freezes={sorted(volume._freezes)}"
            )
        return "; ".join(parts)

    # What may happen.

    def crash(self, node: Node) -> None:
        if node.running:
            self._fault(node, "crashes")
            node.crash()

    def crash_both(self, node: Node) -> None:
        self.crash(node)
        self.crash(self.world.other(node))

    def fuse(self, node: Node) -> None:
        if node.running:
            self._fault(node, "will die in the middle of something")
            node.fuse = self.choice.choice((1, 2, 3, 5, 8, 13, 30, 80))
            node.fuse_loses_power = self.choice.random() < 0.4

    def power(self, node: Node) -> None:
        self.world.faults += 1
        self.world.power_loss(node)

    def power_both(self, node: Node) -> None:
        self.world.faults += 1
        self.world.power_loss(node, self.world.other(node))

    def cut(self, _node: Node) -> None:
        self.world.faults += 1
        self.world.say("link", "cut")
        self.world.network.cut = self.choice.random() < 0.6
        self.world.network.reset()

    def stall(self, _node: Node) -> None:
        if not self.world.network.stalled:
            self.world.faults += 1
            self.world.say("link", "stalled")
            self.world.network.set_stalled(True)
            self.world.clock.after(self.choice.choice((0.3, 2.0, 9.0)), self._heal)

    def stop(self, node: Node) -> None:
        if node.running and not node.stopping:
            self._fault(node, "is stopped cleanly")
            node.stop()

    def stop_both(self, node: Node) -> None:
        self.stop(node)
        if self.choice.random() < 0.5:
            self.world.clock.run_until(self.world.clock.now_s + self.choice.random() * 0.2)
        self.stop(self.world.other(node))

    def switch(self, node: Node) -> None:
        """A graceful switch-over to the other node."""
        world = self.world
        primary = world.primary()
        if primary is None or primary.stopping:
            return
        self._fault(primary, "is demoted")
        primary.demote(lambda _verdict: None)
        world.clock.run_until(world.clock.now_s + self.choice.random() * 0.2)
        world.promote(world.other(primary))

    def demote(self, node: Node) -> None:
        if node.running and not node.stopping:
            self._fault(node, "is demoted")
            node.demote(lambda _verdict: None)

    def promote(self, node: Node) -> None:
        self.world.promote(node)

    def promote_both(self, node: Node) -> None:
        self.world.promote(node)
        self.world.promote(self.world.other(node))

    def disk_error(self, node: Node) -> None:
        """Syncs fail, and the kernel drops what was not synced; only where the peer has it all."""
        other = self.world.other(node)
        if node.running and self.world.established() and not other.fail_syncs:
            self._fault(node, "its disk fails")
            node.fail_syncs = True

    def fill(self, node: Node) -> None:
        """No block can be added to the node's backing for a while."""
        if not node.full:
            self._fault(node, "its disk is full")
            node.full = True
            self.world.clock.after(self.choice.choice((0.5, 3.0, 12.0)), lambda: self._drain(node))

    def _drain(self, node: Node) -> None:
        if node.full:
            self.world.say(node.name, "its disk has room again")
            node.full = False

    def new_disk(self, node: Node) -> None:
        """The disk of a node that is not primary is replaced: `adopt --discard`."""
        other = self.world.other(node)
        if self.world.primary() is other and not (other.stopping or other.fail_syncs):
            self._fault(node, "gets a new disk")
            if node.running:
                node.crash()
            self.world.replace_disk(node)

    def freeze(self, node: Node) -> None:
        """SIGSTOP; an operator may put the other node in its place; then it runs on, and the two
        can reach each other."""
        world, other = self.world, self.world.other(node)
        if not node.running or node.stopping:
            return
        self._fault(node, "is frozen")
        node.backlog.frozen = True
        world.clock.run_until(world.clock.now_s + self.choice.choice((0.6, 3.0, 9.0)))
        if world.may_vouch(other) and self.choice.random() < 0.8:
            node.fuse = other.fuse = None
            world.promote(other, PromoteRequest(peer_dead=node.name))
            world.clock.run_until(world.clock.now_s + self.choice.random() * 3)
        self._heal()
        world.say(node.name, "runs on")
        node.backlog.thaw()
        world.clock.run_until(
            world.clock.now_s + CONTACT_S,
            lambda: node.volume is None or not node.volume.absence.doubtful,
        )

    def compare_all(self, node: Node) -> None:
        other = self.world.other(node)
        if node.running and self.world.established() and not (node.fail_syncs or other.fail_syncs):
            self.world.faults += 1
            self.world.compare_all(node)

    def slow(self, node: Node) -> None:
        self.world.set_slow(node, self.choice.choice((0.5, 1.0, 10.0, 100.0)))

    def _fault(self, node: Node, text: str) -> None:
        self.world.faults += 1
        self.world.say(node.name, text)


_ACTIONS = {
    "crash": Scenario.crash,
    "crash_both": Scenario.crash_both,
    "fuse": Scenario.fuse,
    "power": Scenario.power,
    "power_both": Scenario.power_both,
    "cut": Scenario.cut,
    "stall": Scenario.stall,
    "stop": Scenario.stop,
    "stop_both": Scenario.stop_both,
    "switch": Scenario.switch,
    "demote": Scenario.demote,
    "promote": Scenario.promote,
    "promote_both": Scenario.promote_both,
    "slow": Scenario.slow,
    "freeze": Scenario.freeze,
    "disk_error": Scenario.disk_error,
    "new_disk": Scenario.new_disk,
    "compare_all": Scenario.compare_all,
    "fill": Scenario.fill,
}


def run_seed(seed: int, *, verbose: bool = False, kind: type[Scenario] = Scenario) -> Outcome:
    """Run one seed to its end."""
    with applied(Geometry()):
        return kind(seed, verbose=verbose).run()

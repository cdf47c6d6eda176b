"""What can be done to the world: the steps of a plan, by name.

A new kind of fault or order is one function here (or in a file of its own) under `@action`: it gets
the running scenario, a node and the parameters that `draw` made, and does it if it can be done now.
`lie=True` marks what only an operator who errs does, `aimed=False` what no aim should use.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from repl.core.promotion import PromoteRequest
from repl.core.roles import Task
from repl.core.states import Phase, Role
from tests.sim.cells import Event, row_name
from tests.sim.disk import Operation
from tests.sim.node import Node
from tests.sim.plan import AIM_ROWS, Drawn, Plan, Value

if TYPE_CHECKING:
    from tests.sim.scenario import Scenario

#: Steps that arrange for others.
AIMS = ("aim", "aim-after")
#: No fault comes between a node that was frozen and its peer for this long.
CONTACT_S = 5.0

Values = tuple[Value, ...]
Draw = Callable[[random.Random], Values]
Do = Callable[["Scenario", Node, Values], None]


@dataclass(frozen=True, slots=True)
class Action:
    """How a kind of step is drawn and done."""

    name: str
    draw: Draw
    do: Do
    lie: bool
    aimed: bool


ACTIONS: dict[str, Action] = {}


def action(
    name: str, draw: Draw = lambda _choice: (), *, lie: bool = False, aimed: bool = True
) -> Callable[[Do], Do]:
    """Register a function as the action of this name."""

    def register(do: Do) -> Do:
        assert name not in ACTIONS, name
        ACTIONS[name] = Action(name, draw, do, lie, aimed)
        return do

    return register


def drawn(*, lie: bool, aimed: bool = False) -> list[Drawn]:
    """The actions that a plan draws from."""
    return [
        (known.name, known.draw)
        for known in ACTIONS.values()
        if known.lie == lie and (known.aimed or not aimed) and known.name not in AIMS
    ]


def lies_in(plan: Plan) -> bool:
    """Whether an operator of this plan errs."""
    names = [step.values[1] if step.action in AIMS else step.action for step in plan.steps]
    return any(ACTIONS[str(name)].lie for name in names)


# Processes and machines.


@action("crash")
def crash(scenario: Scenario, node: Node, _values: Values) -> None:
    if node.running:
        scenario.world.fault(node.name, "crashes")
        node.crash()


@action("crash-both", aimed=False)
def crash_both(scenario: Scenario, node: Node, values: Values) -> None:
    crash(scenario, node, values)
    crash(scenario, scenario.world.other(node), values)


def _fuse(choice: random.Random) -> Values:
    return (choice.choice((1, 2, 3, 5, 8, 13, 30, 80)), choice.random() < 0.4)


@action("fuse", _fuse)
def fuse(scenario: Scenario, node: Node, values: Values) -> None:
    """The process dies (or the machine loses power) a few effects from now, amid a turn."""
    if node.running:
        scenario.world.fault(node.name, f"will die {values[0]} effects from now")
        node.fuse = cast(int, values[0])
        node.fuse_loses_power = cast(bool, values[1])


@action("power")
def power(scenario: Scenario, node: Node, _values: Values) -> None:
    scenario.world.fault(node.name, "is cut off from power")
    scenario.world.power_loss(node)


@action("power-both", aimed=False)
def power_both(scenario: Scenario, node: Node, _values: Values) -> None:
    scenario.world.fault("world", "both machines are cut off from power")
    scenario.world.power_loss(node, scenario.world.other(node))


def _blink(choice: random.Random) -> Values:
    return (choice.random() < 0.6, choice.choice((0.0, 0.03, 0.3)), choice.choice((0.2, 0.6, 2.0)))


@action("blink", _blink, aimed=False)
def blink(scenario: Scenario, node: Node, values: Values) -> None:
    """The process (or the machine) of a member is gone and back before the primary goes on without
    it, and the primary's disk takes its time to read what they then compare."""
    world = scenario.world
    primary = world.primary() or world.other(node)
    member = world.other(primary)
    scenario.heal()
    scenario.run_until(CONTACT_S, lambda: _settled(primary))
    if not member.running or not _settled(primary):
        return
    world.fault(member.name, "is gone for a moment")
    if values[0]:
        world.power_loss(member)
    else:
        member.crash()
    hang(scenario, primary, ("reads", values[2]))

    def back() -> None:
        if not member.running:
            member.say("starts")
            member.start()
            # It knows nothing of the old connection, and says so.
            world.network.reset()

    delays_s = {Phase.SOURCE: cast(float, values[2]) / 2, Phase.JOINING: 0.0}

    def seen(on: Node) -> None:
        """Something is written before they are compared, and when that has just been done."""
        for phase in list(delays_s):
            if on is primary and scenario.in_row(on, (phase, Role.PRIMARY)):
                world.clock.after(delays_s.pop(phase), lambda: burst(scenario, primary, (4,)))
        if not delays_s:
            world.on_seen.remove(seen)

    # They are often compared only after this step: until they are, or the round ends, it waits.
    world.on_seen.append(seen)
    world.clock.after(cast(float, values[1]), back)
    scenario.run(cast(float, values[1]) + cast(float, values[2]))


def _settled(node: Node) -> bool:
    return node.running and node.core.sessions[node.peer].phase is Phase.ESTABLISHED


@action("stop")
def stop(scenario: Scenario, node: Node, _values: Values) -> None:
    if node.running and not node.stopping:
        scenario.world.fault(node.name, "is stopped cleanly")
        node.stop()


@action("stop-both", lambda choice: (choice.choice((0.0, choice.random() * 0.2)),), aimed=False)
def stop_both(scenario: Scenario, node: Node, values: Values) -> None:
    stop(scenario, node, values)
    scenario.run(cast(float, values[0]))
    stop(scenario, scenario.world.other(node), values)


@action("start", aimed=False)
def start(scenario: Scenario, _node: Node, _values: Values) -> None:
    scenario.start_somebody(0.0)


def _freeze(choice: random.Random) -> Values:
    return (choice.choice((0.6, 3.0, 9.0)), choice.random() < 0.8, choice.random() * 3)


@action("freeze", _freeze, aimed=False)
def freeze(scenario: Scenario, node: Node, values: Values) -> None:
    """SIGSTOP; an operator may put the other node in its place; then it runs on, and the two can
    reach each other: nothing comes between them for a while."""
    world, other = scenario.world, scenario.world.other(node)
    if not node.running or node.stopping or node.backlog.frozen:
        return
    world.fault(node.name, "is frozen")
    node.note(Event.FREEZES)
    node.backlog.frozen = True
    scenario.run(cast(float, values[0]))
    world.sheltered = True
    if values[1] and world.may_vouch(other):
        node.fuse = other.fuse = None
        world.promote(other, PromoteRequest(peer_dead=node.name))
        scenario.run(cast(float, values[2]))
    scenario.heal()
    node.say("runs on")
    node.backlog.thaw()
    scenario.run_until(CONTACT_S, lambda: node.volume is None or not node.volume.absence.doubtful)
    world.sheltered = False


@action("pause", lambda choice: (choice.choice((0.6, 3.0, 9.0)),))
def pause(scenario: Scenario, node: Node, values: Values) -> None:
    """SIGSTOP for a while, and nobody acts on it."""
    if not node.running or node.backlog.frozen:
        return
    scenario.world.fault(node.name, "is paused")
    node.note(Event.FREEZES)
    backlog = node.backlog
    backlog.frozen = True

    def go_on() -> None:
        if node.backlog is backlog:
            backlog.thaw()

    scenario.world.clock.after(cast(float, values[0]), go_on)


# The link.


@action("cut", lambda choice: (choice.random() < 0.6,))
def cut(scenario: Scenario, _node: Node, values: Values) -> None:
    """Every connection breaks at some byte; perhaps no new one can be made for a while."""
    world = scenario.world
    world.fault("link", "cut")
    world.network.cut = cast(bool, values[0])
    world.network.reset()


@action("stall", lambda choice: (choice.choice((0.3, 2.0, 9.0)), choice.randrange(3)))
def stall(scenario: Scenario, node: Node, values: Values) -> None:
    """Nothing arrives, in both directions or in one, and nobody is told; later it all does."""
    world = scenario.world
    if world.network.stalled:
        return
    receivers = [(node.name, node.peer), (node.name,), (node.peer,)][cast(int, values[1])]
    world.fault("link", f"stalled towards {' and '.join(receivers)}")
    world.network.stall(*receivers)
    world.clock.after(cast(float, values[0]), scenario.heal)


@action("heal", aimed=False)
def heal(scenario: Scenario, _node: Node, _values: Values) -> None:
    scenario.heal()


@action("corrupt")
def corrupt(scenario: Scenario, node: Node, _values: Values) -> None:
    """A byte that is on its way to the node arrives changed."""
    if node.port.connected:
        scenario.world.fault("link", f"changes a byte towards {node.name}")
        scenario.world.network.corrupt(node.name)


@action("disconnect", lambda choice: (choice.choice((0.1, 1.0, 4.0)),))
def disconnect(scenario: Scenario, node: Node, values: Values) -> None:
    """An operator disconnects the peer for a while."""
    world = scenario.world
    if node.running and node.port.connected:
        world.fault(node.name, "is disconnected by an operator")
        world.network.cut = True
        node.disconnect()
        world.clock.after(cast(float, values[0]), scenario.heal)


# Disks.


@action("slow", lambda choice: (choice.choice((0.5, 1.0, 10.0, 100.0)),), aimed=False)
def slow(scenario: Scenario, node: Node, values: Values) -> None:
    scenario.world.set_slow(node, cast(float, values[0]))


@action(
    "hang",
    lambda choice: (
        choice.choice(("commits", "syncs", "reads", "zeroings")),
        choice.choice((0.2, 1.5, 7.0)),
    ),
)
def hang(scenario: Scenario, node: Node, values: Values) -> None:
    """A disk does nothing for a while."""
    if not node.running:
        return
    world = scenario.world
    world.fault(node.name, f"its {values[0]} hang")
    node.held.add(cast(str, values[0]))
    incarnation = node.incarnation

    def go_on() -> None:
        if node.incarnation == incarnation:
            node.release()

    world.clock.after(cast(float, values[1]), go_on)


def _disk_error(choice: random.Random) -> Values:
    operation = choice.choice(("read", "write", "sync", "sync"))
    # Often the process dies before it has stored the mark that its copy failed.
    return (operation, choice.choice((0, 1, 1, 2)))


@action("disk-error", _disk_error)
def disk_error(scenario: Scenario, node: Node, values: Values) -> None:
    """The backing returns errors from now on; only where the peer has it all, in most seeds."""
    world = scenario.world
    if not node.running or node.data.failing or world.other(node).data.failing:
        return
    if not world.complete(world.other(node)) and not scenario.lying:
        return
    world.fault(node.name, f"its disk does not {values[0]}")
    node.data.failing.add(Operation(values[0]))
    node.dies_after_failure = cast(int, values[1])


@action("disk-fails", lambda choice: (choice.choice((0, 1, 3)),))
def disk_fails(scenario: Scenario, node: Node, values: Values) -> None:
    """Something that the backing was asked for earlier returns an error, now."""
    world = scenario.world
    if not node.running or node.core.failed or node.backlog.frozen:
        return
    if world.complete(node) and not world.complete(world.other(node)) and not scenario.lying:
        return
    world.fault(node.name, "its disk fails")
    node.dies_after_failure = cast(int, values[0])
    node.turn(lambda: node.disk_failed("read: the disk said no"))


@action("metadata-fails")
def metadata_fails(scenario: Scenario, node: Node, _values: Values) -> None:
    """The metadata file returns an error, now, and goes on with that for a while."""
    if node.running and not node.backlog.frozen:
        scenario.world.fault(node.name, "its metadata file fails")
        node.meta.failing.add(Operation.WRITE)
        node.metadata_failed(OSError(errno.EIO, "the disk said no"))


@action("metadata-error", lambda choice: (choice.choice(("write", "sync")),))
def metadata_error(scenario: Scenario, node: Node, values: Values) -> None:
    """The metadata file returns errors from now on: the process ends, and does not start again."""
    if node.running and not node.meta.failing:
        scenario.world.fault(node.name, f"its metadata file does not {values[0]}")
        node.meta.failing.add(Operation(values[0]))


@action("fill", lambda choice: (choice.choice((0.5, 3.0, 12.0)),))
def fill(scenario: Scenario, node: Node, values: Values) -> None:
    """No block can be added to the node's backing for a while."""
    if node.full:
        return
    scenario.world.fault(node.name, "its disk is full")
    node.full = True

    def drain() -> None:
        if node.full:
            node.say("its disk has room again")
            node.full = False

    scenario.world.clock.after(cast(float, values[0]), drain)


@action("mend", aimed=False)
def mend(_scenario: Scenario, node: Node, _values: Values) -> None:
    node.data.mend()
    node.meta.mend()


@action("new-disk", lambda choice: (choice.random() < 0.6,), aimed=False)
def new_disk(scenario: Scenario, node: Node, values: Values) -> None:
    """`adopt --discard`, on a new disk or the old one, where the other copy is complete."""
    world = scenario.world
    other = world.other(node)
    if world.primary() is node or not other.running or not world.complete(other):
        return
    if other.stopping or other.data.failing or other.meta.failing:
        return
    if other.core.facts.inconsistent or other.core.roles.task is Task.COMPARING:
        # An order gives that copy up in favour of this one: whoever gave it knows of it.
        return
    world.fault(node.name, "gets a new disk")
    if node.running:
        node.crash()
    world.replace_disk(node, blank=cast(bool, values[0]))


# Clients.


@action("vanish")
def vanish(scenario: Scenario, node: Node, _values: Values) -> None:
    """The clients of a node disappear."""
    for client in list(node.clients):
        scenario.world.fault("client", "disappears")
        client.vanish()


@action("burst", lambda choice: (choice.choice((1, 4, 20)),))
def burst(scenario: Scenario, node: Node, values: Values) -> None:
    """The clients of a node send more than they have in flight at most."""
    for client in list(node.clients):
        client.burst(cast(int, values[0]))


@action("idle", lambda choice: (choice.choice((0.5, 3.0, 6.0)),), aimed=False)
def idle(scenario: Scenario, _node: Node, values: Values) -> None:
    """The clients send nothing for a while."""
    scenario.pause_clients(cast(float, values[0]))


# Operators.


@action("promote")
def promote(scenario: Scenario, node: Node, _values: Values) -> None:
    scenario.world.promote(node)


@action("promote-both")
def promote_both(scenario: Scenario, node: Node, _values: Values) -> None:
    scenario.world.promote(node)
    scenario.world.promote(scenario.world.other(node))


@action("demote")
def demote(scenario: Scenario, node: Node, _values: Values) -> None:
    if node.running and not node.stopping:
        scenario.world.fault(node.name, "is demoted")
        node.demote(lambda _verdict: None)


@action("switch", lambda choice: (choice.random() * 0.2,), aimed=False)
def switch(scenario: Scenario, _node: Node, values: Values) -> None:
    """A graceful switch-over to the other node."""
    world = scenario.world
    primary = world.primary()
    if primary is not None and not primary.stopping:
        world.fault(primary.name, "is demoted")
        primary.demote(lambda _verdict: None)
        scenario.run(cast(float, values[0]))
        world.promote(world.other(primary))


# Aims.


@action("aim", aimed=False)
def aim(scenario: Scenario, _node: Node, values: Values) -> None:
    """Do something else to the first node that enters a state."""
    _arm(scenario, values, after=False)


@action("aim-after", aimed=False)
def aim_after(scenario: Scenario, _node: Node, values: Values) -> None:
    """The same, once another aim has struck."""
    _arm(scenario, values, after=True)


def _arm(scenario: Scenario, values: Values, *, after: bool) -> None:
    index, name, delay_s, *parameters = values
    row, known = AIM_ROWS[cast(int, index)], ACTIONS[cast(str, name)]
    world = scenario.world

    def seen(node: Node) -> None:
        if scenario.in_row(node, row) and (scenario.struck_s or not after):
            world.on_seen.remove(seen)
            world.say("aim", f"{node.name} is {row_name(row)}: {name}")
            world.clock.after(cast(float, delay_s), lambda: strike(node))

    def strike(node: Node) -> None:
        scenario.struck_s = world.clock.now_s
        if not world.sheltered:
            known.do(scenario, node, tuple(parameters))

    world.on_seen.append(seen)

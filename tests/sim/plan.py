"""A scenario as data: a configuration and the steps that are done to the world, drawn from a seed.

Nothing of it is drawn while the world runs, so that steps can be left out one by one and the rest
stays what it was: that is how a failure is shrunk. What a step does is `actions.py`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from repl.core.timeouts import Timeouts
from tests.sim.cells import NEVER_ENTERED, PROCEDURES, STATES, Row
from tests.sim.client import Load
from tests.sim.dice import Dice
from tests.sim.geometry import Geometry, random_geometry
from tests.sim.network import Link

#: A parameter of a step.
Value = str | int | float | bool
#: Rounds that a plan has; a run takes as many as it wants, and more until the seed counts.
ROUNDS_MAX = 5
#: Aimed faults of one round.
AIMS = 3
NODE_NAMES = ("alpha", "beta")
#: Seeds in which operators say what is not so, of ten; and those in which they force two histories
#: and choose between them (splits.py).
LYING_SEEDS = frozenset({0, 1})
FORCED_SEEDS = frozenset({9})


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that is done to the world, and the time that passes afterwards."""

    action: str
    node: str = "alpha"
    wait_s: float = 0.0
    values: tuple[Value, ...] = ()

    def __str__(self) -> str:
        words = [self.action, self.node, *map(str, self.values)]
        return f"{' '.join(words)}, then {self.wait_s:.3f} s"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything about a scenario that is not left to the world's own dice."""

    seed: int
    geometry: Geometry
    link: Link
    timeouts: Timeouts
    load: Load
    clients: int
    #: How slow the disks of alpha and beta are.
    slow: tuple[float, float]
    swap_ids: bool
    #: `alone = "ask"` on both nodes.
    alone_asks: bool
    #: Names of the nodes that begin with an image of unknown worth; the first one's is adopted.
    image_on: tuple[str, ...]
    #: How often an operator attends to a world in which nobody serves, after each step.
    attention: float
    #: How often a node that is down is started, after each step.
    restart_eager: float
    #: Rounds that are run at least.
    rounds_wanted: int
    #: Steps that are done before the first process starts: aims.
    opening: tuple[Step, ...]
    rounds: tuple[tuple[Step, ...], ...]

    @property
    def steps(self) -> list[Step]:
        """All steps, in their order."""
        return [*self.opening, *(step for steps in self.rounds for step in steps)]


#: A weighted action: its name, and how its parameters are drawn.
Drawn = tuple[str, Callable[[random.Random], tuple[Value, ...]]]


def make_plan(seed: int, actions: list[Drawn], lies: list[Drawn], aimed: list[Drawn]) -> Plan:
    """Draw a plan. `lies` join the actions in some seeds; `aimed` are for aims, too."""
    choice = Dice(seed).plan
    delay_s = choice.choice((0.0002, 0.002, 0.02))
    lying = seed % 10 in LYING_SEEDS
    pool = actions + lies if lying else actions
    # Relative weights of what may happen; each seed prefers something else.
    weighted = [(drawn, choice.choice((0, 1, 1, 3))) for drawn in pool]
    likely = [drawn for drawn, weight in weighted for _ in range(weight)] or pool
    targets = aimed + lies if lying else aimed
    rounds = tuple(
        _round(seed * AIMS + number * 104_729, choice, likely, targets)
        for number in range(ROUNDS_MAX)
    )
    return Plan(
        seed=seed,
        geometry=random_geometry(choice),
        link=Link(
            delay_s=delay_s,
            jitter_s=delay_s * choice.choice((0.1, 1.0, 5.0)),
            split=choice.choice((0.02, 0.2, 0.6)),
            send_buffer_bytes=choice.choice((48 << 10, 4 << 20)),
        ),
        timeouts=Timeouts(
            peer_timeout_s=choice.choice((1.5, 5.0, 5.0)),
            reconnect_grace_s=choice.choice((0.2, 1.0, 1.0, 3.0)),
            ping_interval_s=choice.choice((0.3, 1.0)),
        ),
        load=_load(choice),
        clients=choice.choice((1, 1, 2)),
        slow=(choice.choice((0.5, 1.0, 4.0)), choice.choice((0.5, 1.0, 4.0))),
        swap_ids=choice.random() < 0.5,
        alone_asks=random.Random(f"alone {seed}").random() < 0.3,
        image_on=choice.choice(((), (), (), ("alpha",), ("beta",), ("beta", "alpha"))),
        attention=choice.choice((0.2, 0.5, 0.9)),
        restart_eager=choice.random(),
        rounds_wanted=choice.choice((1, 2, 2, 3)),
        opening=(),
        rounds=rounds,
    )


def _load(choice: random.Random) -> Load:
    return Load(
        depth=choice.choice((1, 4, 8, 16)),
        pause_s=choice.choice((0.01, 0.03, 0.06)),
        hot_areas=choice.randint(1, 5),
        area_bytes=choice.choice((16 << 10, 96 << 10)),
        longest_bytes=choice.choice((4 << 10, 32 << 10)),
        flush=choice.choice((0.0, 0.03, 0.1)),
        fua=choice.choice((0.0, 0.1)),
        vanish=choice.choice((0.0, 0.003)),
        huge=choice.choice((0.0, 0.002, 0.01)),
        resend=choice.random() < 0.6,
    )


def _round(
    number: int, choice: random.Random, likely: list[Drawn], targets: list[Drawn]
) -> tuple[Step, ...]:
    """The steps of one round: aims first, then what happens at any moment."""
    steps = [_aim(number + index, choice, targets) for index in range(AIMS)]
    for _ in range(choice.randint(4, 12)):
        name, draw = choice.choice(likely)
        wait_s = choice.choice((0.0, 0.05, 0.3, 1.0, 3.0)) * choice.random() * 2
        steps.append(Step(name, choice.choice(NODE_NAMES), wait_s, draw(choice)))
    return tuple(steps)


#: The states that a fault is aimed at.
AIM_ROWS: tuple[Row, ...] = tuple(row for row in (*STATES, *PROCEDURES) if row not in NEVER_ENTERED)


def _aim(number: int, choice: random.Random, targets: list[Drawn]) -> Step:
    """A fault for the moment at which some node enters a state; numbers walk over all pairs."""
    # A stride that shares no factor with the number of pairs reaches each of them.
    index = number * 7919 % (len(AIM_ROWS) * len(targets))
    row, (name, draw) = index % len(AIM_ROWS), targets[index // len(AIM_ROWS)]
    delay_s = choice.choice((0.0, 0.0, 0.0005, 0.01))
    return Step("aim", "", 0.0, (row, name, delay_s, *draw(choice)))


def aimed_at(plan: Plan, aims: list[tuple[int, Step]]) -> Plan:
    """Return the plan with steps for whenever a node first enters these states, in each round.

    A state is an index into `AIM_ROWS`. The first aim is the one that counts: until it has struck,
    so that the seed replays up to there, the others wait.
    """
    steps = tuple(
        Step("aim-after" if place else "aim", "", 0.0, (row, step.action, 0.0, *step.values))
        for place, (row, step) in enumerate(aims)
    )
    rounds = tuple((*steps, *others) for others in plan.rounds)
    return replace(plan, opening=(*steps, *plan.opening), rounds=rounds)

"""What a seed means: for each round the load, the faults, their moments and how long they last.

Pure: the same seed and round number give the same plan. Processes on a real machine do not repeat
to the microsecond, so a plan that failed may need several runs to fail again.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

#: A fault lasts between these, drawn evenly on a logarithmic scale: shorter and longer than every
#: timeout of the torture's nodes.
LASTS_MIN_S, LASTS_MAX_S = 0.05, 6.0
#: The faults of one round begin within this time.
SPREAD_S = 3.0
STRIKES_MAX = 3


class Kind(enum.Enum):
    """A fault, or something that an operator does at a bad moment."""

    KILL_WORKER = "kill -9 of the worker"
    KILL_DAEMON = "kill -9 of the supervisor"
    KILL_NODE = "kill -9 of all processes"
    KILL_BOTH = "kill -9 of both nodes"
    STOP_NODE = "clean stop"
    STOP_BOTH = "clean stop of both nodes"
    FREEZE_WORKER = "SIGSTOP of the worker"
    FREEZE_DAEMON = "SIGSTOP of the supervisor"
    FREEZE_NODE = "SIGSTOP of all processes"
    CUT = "link cut once"
    PART = "link down"
    DISCONNECT = "replctl disconnect"
    FILL_DISK = "full disk"
    SWITCH = "roles switched"
    FAIL_OVER = "primary killed, the other promoted"


#: How often each is drawn.
WEIGHTS = {
    Kind.KILL_WORKER: 4,
    Kind.KILL_DAEMON: 2,
    Kind.KILL_NODE: 4,
    Kind.KILL_BOTH: 2,
    Kind.STOP_NODE: 3,
    Kind.STOP_BOTH: 1,
    Kind.FREEZE_WORKER: 2,
    Kind.FREEZE_DAEMON: 1,
    Kind.FREEZE_NODE: 3,
    Kind.CUT: 3,
    Kind.PART: 4,
    Kind.DISCONNECT: 1,
    Kind.FILL_DISK: 2,
    Kind.SWITCH: 3,
    Kind.FAIL_OVER: 3,
}
#: These need a pair in sync, since an operator vouches in them: first in a round or not at all.
ONLY_FIRST = frozenset({Kind.FAIL_OVER})


@dataclass(frozen=True, slots=True)
class Strike:
    """One fault: when it begins, counted from the round's begin, and how long it lasts."""

    kind: Kind
    at_primary: bool
    at_s: float
    lasts_s: float

    def __str__(self) -> str:
        where = "primary" if self.at_primary else "secondary"
        return f"{self.at_s:.2f} s: {self.kind.value} ({where}) for {self.lasts_s:.2f} s"


@dataclass(frozen=True, slots=True)
class Load:
    """The shape of what one client sends; the fields are those of `LedgerClient`."""

    depth: int
    run_blocks: int
    flush_every: int
    fua_every: int
    zero_every: int
    overlapping: bool


@dataclass(frozen=True, slots=True)
class RoundPlan:
    """One round. `preferred` is the node (0: alpha, 1: beta) that an operator promotes if nobody is
    primary at its end."""

    number: int
    loads: tuple[Load, ...]
    strikes: tuple[Strike, ...]
    preferred: int


def plan_round(seed: int, number: int, kinds: frozenset[Kind] = frozenset(Kind)) -> RoundPlan:
    """Return the plan of a round; `kinds` are the faults that this machine can make."""
    # A string seeds the same on every Python version and platform.
    chance = random.Random(f"{seed}/{number}")
    drawn = [kind for kind in Kind if kind in kinds]
    weights = [WEIGHTS[kind] for kind in drawn]
    strikes: list[Strike] = []
    for place in range(chance.randint(1, STRIKES_MAX)):
        kind = chance.choices(drawn, weights)[0]
        if place > 0 and kind in ONLY_FIRST:
            continue
        at_s = 0.0 if place == 0 else chance.uniform(0.0, SPREAD_S)
        lasts_s = LASTS_MIN_S * (LASTS_MAX_S / LASTS_MIN_S) ** chance.random()
        strikes.append(Strike(kind, chance.random() < 0.6, at_s, lasts_s))
    loads = tuple(_plan_load(chance) for _ in range(chance.randint(1, 2)))
    ordered = tuple(sorted(strikes, key=lambda strike: strike.at_s))
    return RoundPlan(number, loads, ordered, chance.randint(0, 1))


def _plan_load(chance: random.Random) -> Load:
    return Load(
        depth=chance.choice((1, 4, 16, 32, 64)),
        run_blocks=chance.choice((1, 4, 16, 64)),
        flush_every=chance.choice((0, 5, 60)),
        fua_every=chance.choice((0, 0, 7)),
        zero_every=chance.choice((0, 5, 20)),
        overlapping=chance.random() < 0.3,
    )

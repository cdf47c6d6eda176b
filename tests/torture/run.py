"""Round after round until the time is over: load, faults, mending, and the judge.

Owns the command line and the clock of a round; decides nothing that the plan has not decided.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import re
import secrets
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.daemon import ROOT
from tests.torture.faults import FAULTS
from tests.torture.plan import Kind, RoundPlan, Strike, plan_round
from tests.torture.scene import Mend, Scene, can_mount

#: Where a failed round's logs, metadata and copies are kept.
KEPT = ROOT / ".cache" / "torture"
#: Writes before the first fault and after the last one is mended: the volume is in use.
WARM_UP_WRITES = 30
WRITES_AFTER = 30
DURATION = re.compile(r"(\d+)([smh]?)")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass
class Tally:
    """What the rounds so far amount to."""

    rounds: int = 0
    acknowledged: int = 0
    flushes: int = 0
    struck: Counter[Kind] = field(default_factory=Counter)

    def __str__(self) -> str:
        faults = ", ".join(f"{kind.value} {count}" for kind, count in self.struck.most_common())
        return (
            f"{self.rounds} rounds, {self.acknowledged} writes and {self.flushes} flushes "
            f"acknowledged, {self.struck.total()} faults: {faults}"
        )


def possible_kinds() -> frozenset[Kind]:
    """The faults that this machine can make."""
    return frozenset(Kind) - (frozenset() if can_mount() else {Kind.FILL_DISK})


def play_round(scene: Scene, plan: RoundPlan, tally: Tally) -> None:
    """Play one round on a pair that is well, and leave it well and judged.

    Raises an AssertionError with what is wrong.
    """
    scene.start_clients(plan)
    clients = scene.clients
    for client in clients:
        client.wait_acknowledged(WARM_UP_WRITES)
    _strike_and_mend(scene, plan.strikes, tally)
    scene.become_well(scene.pair.nodes[plan.preferred])
    for client in clients:
        client.wait_acknowledged(WRITES_AFTER)
    scene.stop_clients()
    scene.judge()
    tally.rounds += 1
    tally.acknowledged += sum(client.acknowledged for client in clients)
    tally.flushes += sum(client.flushes for client in clients)


def _strike_and_mend(scene: Scene, strikes: tuple[Strike, ...], tally: Tally) -> None:
    """Begin and end the faults in the order of the plan's times; all are mended at the end."""
    begun_s = time.monotonic()
    order = itertools.count()
    due: list[tuple[float, int, Strike, Mend | None]] = [
        (strike.at_s, next(order), strike, None) for strike in strikes
    ]
    heapq.heapify(due)
    at_work = 0
    while due:
        at_s, _, strike, mend = heapq.heappop(due)
        # The moment is what is tested: this pause waits for nothing.
        time.sleep(max(0.0, begun_s + at_s - time.monotonic()))
        if mend is not None:
            mend()
            at_work -= 1
            continue
        scene.calm = at_work == 0
        node = scene.primary if strike.at_primary else scene.secondary
        mend = FAULTS[strike.kind](scene, node)
        if mend is not None:
            at_work += 1
            tally.struck[strike.kind] += 1
            ends_s = time.monotonic() - begun_s + strike.lasts_s
            heapq.heappush(due, (ends_s, next(order), strike, mend))


def torture(seed: int, rounds: range | itertools.count[int], ends_s: float, keep: Path) -> Tally:
    """Play rounds until they are over or the monotonic clock shows `ends_s`; print each.

    Raises what a round fails with, after it has kept the evidence in `keep` and printed how to
    repeat it.
    """
    tally = Tally()
    with Scene.make(seed) as scene:
        for number in rounds:
            if time.monotonic() >= ends_s and tally.rounds:
                break
            plan = plan_round(seed, number, possible_kinds())
            begun_s = time.monotonic()
            try:
                play_round(scene, plan, tally)
            except KeyboardInterrupt:
                raise
            except BaseException:
                _keep_evidence(scene, plan, seed, keep)
                raise
            faults = "; ".join(str(strike) for strike in plan.strikes)
            print(f"round {number}, {time.monotonic() - begun_s:.1f} s: {faults}", flush=True)
    return tally


def _keep_evidence(scene: Scene, plan: RoundPlan, seed: int, keep: Path) -> None:
    """Copy both nodes' folders (logs, metadata, copies) and say what was done to them."""
    place = keep / f"seed-{seed}-round-{plan.number}"
    shutil.rmtree(place, ignore_errors=True)
    for node in scene.pair.nodes:
        sockets = shutil.ignore_patterns("*.sock", "filler")
        shutil.copytree(node.folder, place / node.name, ignore=sockets)
    print(f"round {plan.number} FAILED; logs, metadata and both copies: {place}")
    for load in plan.loads:
        print(f"  {load}")
    for strike in plan.strikes:
        print(f"  {strike}")
    print(
        f"repeat this round (or, with --rounds, many like it):\n"
        f"  python -m tests.torture --seed {seed} --first-round {plan.number} --rounds 1\n"
        f"repeat all that led to it:\n"
        f"  python -m tests.torture --seed {seed} --rounds {plan.number}",
        flush=True,
    )


def parse_duration(text: str) -> int:
    """Return the seconds of `90`, `90s`, `10m` or `2h`; raises argparse.ArgumentTypeError."""
    match = DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration like 90, 90s, 10m or 2h")
    return int(match[1]) * SECONDS[match[2]]


def main(argv: list[str] | None = None) -> int:
    """Run until the time is over; return 0 if every promise was kept, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--duration", type=parse_duration, default=3600, help="90, 10m, 2h: 1h")
    parser.add_argument("--rounds", type=int, help="play so many rounds, however long they take")
    parser.add_argument("--seed", type=int, help="what decides the faults: drawn if not given")
    parser.add_argument("--first-round", type=int, default=1, help="begin with this one's plan: 1")
    parser.add_argument("--keep", type=Path, default=KEPT, help="folder for a failure's evidence")
    arguments = parser.parse_args(argv)
    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(10**9)
    first = arguments.first_round
    rounds: range | itertools.count[int] = itertools.count(first)
    ends_s = time.monotonic() + arguments.duration
    if arguments.rounds is not None:
        rounds, ends_s = range(first, first + arguments.rounds), float("inf")
    # A stopped run takes its nodes down as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"seed {seed}: python -m tests.torture --seed {seed} repeats this plan", flush=True)
    if not can_mount():
        print("without root no disk is filled up", flush=True)
    try:
        tally = torture(seed, rounds, ends_s, arguments.keep)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(f"seed {seed}: every promise kept; {tally}")
    return 0

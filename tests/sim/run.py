"""The command line of the simulator: one seed, a range of them, or new ones until it is stopped.

python -m tests.sim                          new seeds until stopped (or the first failure)
python -m tests.sim --seeds 1..1000          these
python -m tests.sim --seed 17 --trace        one, with everything that happened
python -m tests.sim --seed 17 --only 3,5     what shrinking left of it
python -m tests.sim --seeds 1..300 --fill 400    these, and up to 400 more runs aimed at what they
                                             did not hit; fails if a cell is not hit
python -m tests.sim --tally FILE             new seeds until stopped, added to those of earlier runs
                                             of the same core, store and simulator
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import repl
from tests.sim.aiming import Hunter
from tests.sim.cells import named
from tests.sim.scenario import Outcome, plan_of, run_plan
from tests.sim.shrink import parse, shrink
from tests.sim.swarm import Totals, run_many
from tests.sim.tally import Tally, TallyError
from tests.sim.unreachable import missing_cells, wrongly_unreachable

TRACE_LINES = 60
#: Cells that are named of those that few seeds did not hit.
SHOWN_CELLS = 20
#: Seeds that hit every cell that can be hit.
COMPLETE_SEEDS = 20_000
#: Seconds between two lines of a run without an end.
SAYS_EVERY_S = 20.0


def main(argv: list[str] | None = None) -> int:
    """Run the seeds; return 0 if all ran clean, 1 otherwise."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.sim",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--seeds", help="run a range: A..B (B included)")
    parser.add_argument("--only", help="with --seed: the steps that are done")
    parser.add_argument("--plain", default="", help="with --seed: what is made plain")
    parser.add_argument("--hasty", default="", help="with --seed: steps without a wait")
    parser.add_argument("--aim", default="", help="with --seed: STATE:ACTION, aimed each round")
    parser.add_argument("--trace", action="store_true", help="print everything that happened")
    parser.add_argument("--verbose", action="store_true", help="with --trace: every frame too")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a failure")
    parser.add_argument("--no-shrink", action="store_true", help="do not shrink a failure")
    parser.add_argument("--fill", type=int, default=0, help="runs aimed at cells that were not hit")
    parser.add_argument("--tally", type=Path, help="add to the runs that are counted in this file")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--json", action="store_true", help="end with one object, say no more")
    arguments = parser.parse_args(argv)
    if arguments.seed is not None:
        return _one(parser, arguments)
    return _many(parser, arguments)


def _one(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    try:
        smaller = parse(
            arguments.seed, arguments.only, arguments.plain, arguments.hasty, arguments.aim
        )
    except ValueError as error:
        parser.error(str(error))
    whole = arguments.only is None and not (arguments.plain or arguments.hasty or arguments.aim)
    plan = smaller.plan()
    if whole:
        plan = plan_of(arguments.seed)
    begun_s = time.process_time()
    outcome = run_plan(plan, verbose=arguments.verbose)
    if arguments.trace:
        print("\n".join(outcome.log))
    totals = Totals(busy_s=time.process_time() - begun_s)
    totals.take(outcome)
    if outcome.failure:
        _print_failure(outcome, trace=not arguments.trace, shrunk=not whole or arguments.no_shrink)
    print(totals.summary())
    return 1 if outcome.failure else 0


def _many(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    seeds: Iterable[int]
    end: int | None = None
    tally = None
    # Seeds that nobody has run yet, far from the fixed ones.
    start = random.SystemRandom().randrange(1 << 20, 1 << 40)
    try:
        if arguments.tally:
            tally = Tally.open(arguments.tally)
            start = tally.next_seed or start
        if arguments.seeds:
            first, _, last = arguments.seeds.partition("..")
            if not first.isdecimal() or not (last or first).isdecimal():
                parser.error("--seeds is A..B")
            start, end = int(first), int(last or first)
            seeds = range(start, end + 1)
        else:
            seeds = itertools.count(start)
        if tally:
            tally.begin(start, end)
            # What cannot be written is better known now than after hours.
            tally.save()
    except TallyError as error:
        parser.error(str(error))
    totals = _sit(seeds, arguments, tally)
    if tally:
        tally.save()
    if arguments.json:
        print(json.dumps(_as_json(totals)))
        return 1 if totals.failures or (tally and tally.failures()) else 0
    print(totals.summary())
    if tally:
        print(tally.summary())
        totals = tally.totals
    whole = _print_coverage(totals, every=bool(arguments.fill))
    return 1 if totals.failures or (tally and tally.failed) or not whole else 0


def _sit(seeds: Iterable[int], arguments: argparse.Namespace, tally: Tally | None) -> Totals:
    """Run the seeds and say so from time to time; return what they did."""
    totals = Totals()
    said_s = saved_s = begun_s = time.monotonic()
    try:
        for batch in run_many(seeds, arguments.jobs):
            totals.add(batch)
            now_s = time.monotonic()
            if tally:
                tally.add(batch, now_s - saved_s)
                saved_s = now_s
            for outcome in batch.failures:
                if not arguments.json:
                    stops = not arguments.keep_going
                    _print_failure(outcome, trace=stops, shrunk=arguments.no_shrink or not stops)
            if totals.failures and not arguments.keep_going:
                break
            if now_s - said_s > SAYS_EVERY_S:
                said_s = now_s
                if not arguments.json:
                    print(f"{said_s - begun_s:7.0f} s  {totals.summary()}", flush=True)
                if tally:
                    tally.save()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    if arguments.fill and not totals.failures:
        into = tally.totals if tally else totals
        busy_s = time.process_time()
        Hunter(into).hunt(arguments.fill, lambda text: print(text, flush=True))
        into.busy_s += time.process_time() - busy_s
    return totals


def _as_json(totals: Totals) -> dict[str, object]:
    failures = [
        {"seed": outcome.seed, "rule": outcome.rule, "failure": outcome.failure}
        for outcome in totals.failures
    ]
    product = repl.__file__ or ""
    return {
        "seeds": totals.seeds,
        "turns": totals.turns,
        "failures": failures,
        "product": product,
    }


def _print_failure(outcome: Outcome, *, trace: bool, shrunk: bool) -> None:
    if trace:
        print("\n".join(outcome.log[-TRACE_LINES:]))
    print(f"seed {outcome.seed} FAILED: {outcome.failure}")
    print(f"  replay: python -m tests.sim --seed {outcome.seed} --trace", flush=True)
    if shrunk:
        return
    smaller = shrink(outcome, lambda text: print(f"  {text}", flush=True))
    print("shrunken scenario:")
    print("\n".join(smaller.listing()))
    print(f"  replay: python -m tests.sim {smaller.options()} --trace", flush=True)


def _print_coverage(totals: Totals, *, every: bool) -> bool:
    """Print which cells were hit; return whether that is as it has to be.

    A few seeds cannot hit all of them: what is missing counts from so many seeds on, or if `every`.
    """
    hit = len(totals.coverage.hits)
    missing = [named(cell) for cell in missing_cells(totals.coverage)]
    wrong = wrongly_unreachable(totals.coverage)
    print(f"cells: {hit} hit, {len(missing)} reachable ones not hit")
    every = every or totals.counted >= COMPLETE_SEEDS
    for name in missing if every else missing[:SHOWN_CELLS]:
        print(f"  not hit: {name}")
    for name in wrong:
        print(f"  hit, though called unreachable: {name}")
    return not wrong and not (missing and every)


def jobs_of_this_machine() -> int:
    """Return how many processes make sense here."""
    return len(os.sched_getaffinity(0))

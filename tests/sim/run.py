"""The command line of the simulator."""

from __future__ import annotations

import argparse
import time

from tests.sim.scenario import Outcome, Scenario, run_seed
from tests.sim.splits import SplitScenario

TRACE_LINES = 60


def main(argv: list[str] | None = None) -> int:
    """Run the seeds; return 0 if all ran clean, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one")
    parser.add_argument("--seeds", help="run a range: A..B (B included)")
    parser.add_argument("--trace", action="store_true", help="print everything that happened")
    parser.add_argument("--verbose", action="store_true", help="with --trace: every frame too")
    parser.add_argument(
        "--split-brains", action="store_true", help="force two histories, and choose (splits.py)"
    )
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a failure")
    arguments = parser.parse_args(argv)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    elif arguments.seeds:
        first, _, last = arguments.seeds.partition("..")
        seeds = range(int(first), int(last or first) + 1)
    else:
        parser.error("one of --seed and --seeds is needed")
    kind = SplitScenario if arguments.split_brains else Scenario
    failures = 0
    acked = faults = turns = 0
    begun = time.monotonic()
    for seed in seeds:
        outcome = run_seed(seed, verbose=arguments.verbose, kind=kind)
        acked, faults = acked + outcome.acked_writes, faults + outcome.faults
        turns += outcome.turns
        if arguments.trace:
            print("\n".join(outcome.log))
        if outcome.failure:
            failures += 1
            _print_failure(
                outcome,
                with_log=not arguments.trace and not arguments.keep_going,
                option=" --split-brains" if arguments.split_brains else "",
            )
            if not arguments.keep_going:
                break
    passed_s = time.monotonic() - begun
    print(
        f"{len(seeds)} seeds, {failures} failed, {acked} writes acknowledged, {faults} faults, "
        f"{turns} turns, {turns / max(passed_s, 1e-9):.0f} turns/s, "
        f"{len(seeds) / max(passed_s, 1e-9):.2f} seeds/s"
    )
    return 1 if failures else 0


def _print_failure(outcome: Outcome, *, with_log: bool, option: str) -> None:
    if with_log:
        print("\n".join(outcome.log[-TRACE_LINES:]))
    print(f"seed {outcome.seed} FAILED: {outcome.failure}")
    print(f"  replay: python -m tests.sim{option} --seed {outcome.seed} --trace", flush=True)

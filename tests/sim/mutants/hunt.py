"""Running the simulator on a copy of the product with one deliberate bug in it.

The copy lives in a temporary folder; the simulator runs on it in a process of its own with
assertions switched off (`python -O`), so that only the checkers can find the bug. In production the
assertions stay on: nothing starts `repld` with -O.

    python -m tests.sim.mutants.hunt [NAME…]      hunt these, or all, and print the table
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.sim.mutants.catalogue import MUTANTS, SEEDS_MAX, Mutant

ROOT = Path(__file__).resolve().parents[3]
#: Real time that one hunt may take, on a busy machine.
TIMEOUT_S = 1200
#: The first seed of every hunt: seeds of their own, so that no fixed one is made for a mutant.
FIRST_SEED = 700_000


@dataclass(frozen=True, slots=True)
class Kill:
    """How a mutant was found; `rule` is empty if it was not."""

    rule: str
    failure: str
    seeds: int


def hunt(mutant: Mutant, seeds: int = SEEDS_MAX) -> Kill:
    """Run seeds on the mutated product until one fails."""
    with tempfile.TemporaryDirectory(prefix="repl-mutant-") as folder:
        shutil.copytree(ROOT / "repl", Path(folder, "repl"), ignore=_caches)
        path = Path(folder, mutant.file)
        path.write_text(mutant.apply(path.read_text()))
        done = subprocess.run(
            [
                *(sys.executable, "-O", "-m", "tests.sim", "--json"),
                *("--seeds", f"{FIRST_SEED}..{FIRST_SEED + seeds - 1}"),
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode not in (0, 1) or not done.stdout.strip():
            raise RuntimeError(f"{mutant.name}: the simulator did not run:\n{done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
        if not found["product"].startswith(folder):
            raise RuntimeError(f"{mutant.name}: {found['product']} is not the mutated product")
    if not found["failures"]:
        return Kill("", "", found["seeds"])
    first = found["failures"][0]
    return Kill(first["rule"], first["failure"], first["seed"] - FIRST_SEED + 1)


def _caches(_folder: str, names: list[str]) -> set[str]:
    """What is made from the sources: a compiled module would hide the bug in its source."""
    return {name for name in names if name == "__pycache__" or name.endswith(".so")}


def main(names: list[str]) -> int:
    """Hunt and print the table; return how many got away."""
    away = 0
    for mutant in MUTANTS:
        if names and mutant.name not in names:
            continue
        try:
            kill = hunt(mutant)
        except (ValueError, RuntimeError) as error:
            print(f"!! {error}", flush=True)
            away += 1
            continue
        expected = kill.rule in {rule.value for rule in mutant.killed_by}
        away += not expected
        verdict = f"{kill.rule} after {kill.seeds} seeds" if kill.rule else "got away"
        print(f"{'' if expected else '!! '}{mutant.name}: {verdict}", flush=True)
        if not expected and kill.failure:
            print(f"     {kill.failure[:300]}", flush=True)
    return away


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

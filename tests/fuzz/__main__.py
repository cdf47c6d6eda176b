"""`python -m tests.fuzz`: run the fuzz targets for a while, replay one input, or keep good ones.

    python -m tests.fuzz [--target NAME …] [--duration 10m] [--seed N] [--jobs N]
    python -m tests.fuzz --replay FILE
    python -m tests.fuzz --keep

Each target runs in a process of its own, under atheris where it is installed. Inputs that reached
something new collect in `.cache/fuzz/TARGET` and are begun with the next time. An input that fails
is put into `tests/fuzz/regressions/TARGET`, where a test runs it from then on.

Exit status: 0 nothing found, 1 something failed, 2 usage.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.fuzz import keeping
from tests.fuzz.targets import CORPUS, REGRESSIONS, TARGETS

ROOT: Final = Path(__file__).resolve().parent.parent.parent
WORKING: Final = ROOT / ".cache" / "fuzz"
SHOW_EVERY_S: Final = 30.0
#: Time beyond the asked one for a target to start and to end.
SPARE_S: Final = 120
LINES_SHOWN: Final = 30
LINE_SHOWN_MAX: Final = 300
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "": 1}
_STATISTICS: Final = re.compile(r"#(\d+)\t(\w+) .*?cov: (\d+).*?exec/s: (\d+)")
_PRINTING: Final = threading.Lock()


@dataclass
class Progress:
    """What a target's process has said so far."""

    runs: int = 0
    runs_per_s: int = 0
    coverage: int = 0
    coverage_at_first: int = 0
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_SHOWN))

    def take(self, line: str) -> None:
        found = _STATISTICS.match(line)
        if found is None:
            self.last_lines.append(line.rstrip()[:LINE_SHOWN_MAX])
            return
        self.runs, self.runs_per_s = int(found[1]), int(found[4])
        self.coverage = int(found[3])
        if found[2] == "INITED":
            self.coverage_at_first = self.coverage

    def shown(self) -> str:
        new = self.coverage - self.coverage_at_first
        covered = f", coverage {self.coverage} (+{new} new)" if self.coverage else ""
        return f"{self.runs:,} runs, {self.runs_per_s:,}/s{covered}"


def say(text: str) -> None:
    with _PRINTING:
        print(text, flush=True)


def seconds(text: str) -> int:
    """90, 10m or 2h as seconds. Raises ArgumentTypeError."""
    found = re.fullmatch(r"(\d+)([smh]?)", text)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration like 90, 10m or 2h")
    return int(found[1]) * _UNITS[found[2]]


def run_target(name: str, engine: str, duration_s: int, seed: int) -> bool:
    """Fuzz one target; whether nothing was found."""
    working = WORKING / name
    working.mkdir(parents=True, exist_ok=True)
    folders = [working, *(each / name for each in (CORPUS, REGRESSIONS) if (each / name).exists())]
    command = [sys.executable, "-m", f"tests.fuzz.{engine}", name, str(duration_s), str(seed)]
    progress, shown_s = Progress(), time.monotonic()
    with subprocess.Popen(
        [*command, *map(str, folders)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    ) as process:  # fmt: skip
        guard = threading.Timer(duration_s + SPARE_S, process.kill)
        guard.start()
        assert process.stdout is not None
        for line in process.stdout:
            progress.take(line)
            if time.monotonic() > shown_s + SHOW_EVERY_S:
                shown_s = time.monotonic()
                say(f"{name}: {progress.shown()}")
        status = process.wait()
        guard.cancel()
    say(f"{name}: {'ended' if not status else 'FAILED'}: {progress.shown()}, seed {seed}")
    if status:
        _report(name, working, progress)
    return not status


def _report(name: str, working: Path, progress: Progress) -> None:
    """Say what failed, keep its input, and how to see it again."""
    say("\n".join(f"    {line}" for line in progress.last_lines))
    failed = sorted(working.glob("failed-*"))
    if not failed:
        say(f"{name}: the process ended without an input that failed; its last lines are above")
    for path in failed:
        data = path.read_bytes()
        target = REGRESSIONS / name / f"{hashlib.sha256(data).hexdigest()[:16]}.bin"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        path.unlink()
        say(f"{name}: replay it with: {sys.executable} -m tests.fuzz --replay {target}")


def replay(path: Path) -> int:
    """Run one input, of the target whose folder it is in; its failure is a traceback."""
    name = path.resolve().parent.name
    if name not in TARGETS:
        say(f"{path} is not in a folder named after a target: {', '.join(TARGETS)}")
        return 2
    TARGETS[name].run(path.read_bytes())
    say(f"{path}: everything is as it should be")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one")
    parser.add_argument("--duration", type=seconds, default=60, help="each target's: 90, 10m, 2h")
    parser.add_argument("--seed", type=int, default=None, help="decides what is tried")
    parser.add_argument("--jobs", type=int, default=1, help="targets that run side by side")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run this input and end")
    parser.add_argument("--keep", action="store_true", help="choose inputs for the repository")
    chosen = parser.parse_args(arguments)
    names = chosen.target or list(TARGETS)
    if chosen.replay is not None:
        return replay(chosen.replay)
    if chosen.keep:
        for name in names:
            say(f"{name}: {keeping.keep(name, WORKING / name)}")
        return 0
    engine = "guided" if importlib.util.find_spec("atheris") else "unguided"
    if engine == "unguided":
        say("atheris is not installed: mutations without coverage (tests/README.md, Fuzzing)")
    seed = random.randrange(1, 1 << 31) if chosen.seed is None else chosen.seed
    with ThreadPoolExecutor(max_workers=max(1, chosen.jobs)) as pool:
        good = pool.map(lambda name: run_target(name, engine, chosen.duration, seed), names)
        return 0 if all(list(good)) else 1


if __name__ == "__main__":
    sys.exit(main())

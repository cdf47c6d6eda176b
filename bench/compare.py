"""`python -m bench.compare A [B]`: two commits beside each other, interleaved in one run.

The daemons come from the commits, everything else (this harness, fio, Python packages) is the same.
Without B, A is compared with the files as they are in this folder. Exit status: 0 no row became
clearly slower from A to B, 1 one did, or something broke, 2 usage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from bench import fio, runner
from bench.cells import FULL, Row, Suite
from bench.contender import Contender
from bench.contenders.ours import Repl
from bench.report import median_of
from bench.results import Cell
from bench.summary import CLEAR_RATIO, Spread, Verdict, spread, verdict
from tests.daemon import ROOT

BEFORE, AFTER = "before", "after"
DEFAULT_ROWS = "write-4k-1 write-4k-32 read-4k-32 write-128k write-1m read-1m flush-32"


@contextlib.contextmanager
def checkout(commit: str, folder: Path) -> Iterator[Path]:
    """Yield a worktree of a commit. Raises click.UsageError if git does not know it."""
    target = folder / commit.replace("/", "-")
    add = ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(target), commit]
    done = subprocess.run(add, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise click.UsageError(f"git cannot check out {commit!r}: {done.stderr.strip()}")
    try:
        yield target
    finally:
        remove = ["git", "-C", str(ROOT), "worktree", "remove", "--force", str(target)]
        subprocess.run(remove, capture_output=True, check=False)


def suite_of(keys: str, repetitions: int, runtime_s: int) -> Suite:
    """Return the named rows of the full suite in which a pair of ours takes part, for two of them.

    Raises click.UsageError for others.
    """
    by_key = {row.key: row for row in FULL.rows if "repl" in row.contenders}
    unknown = [key for key in keys.split() if key not in by_key]
    if unknown:
        raise click.UsageError(f"no row {', '.join(unknown)}; rows are: {' '.join(by_key)}")
    rows = tuple(
        dataclasses.replace(by_key[key], contenders=(BEFORE, AFTER)) for key in keys.split()
    )
    return Suite("compare", rows, repetitions, runtime_s)


@dataclasses.dataclass(frozen=True)
class Change:
    """One row before and after."""

    row: Row
    before: Spread
    after: Spread
    #: Medians of processor time per operation: what other work on the machine disturbs least.
    cpu_before_us: float
    cpu_after_us: float

    @property
    def verdict(self) -> Verdict:
        return verdict(self.after, self.before)

    def __str__(self) -> str:
        return (
            f"{self.row.title:<48} {_shown(self.before)} → {_shown(self.after)} IOPS  "
            f"{self.after.over(self.before):.2f} ×  {self.verdict.value}  "
            f"CPU {self.cpu_before_us:.1f} → {self.cpu_after_us:.1f} µs/op"
        )


def _shown(spread: Spread) -> str:
    return f"{spread.median:,.0f} ({spread.low:,.0f} – {spread.high:,.0f})"


def changes(suite: Suite, cells: tuple[Cell, ...]) -> list[Change]:
    """Return the rows that were measured on both sides."""
    by_key: Mapping[tuple[str, str], Cell] = {(cell.row, cell.contender): cell for cell in cells}
    found = []
    for row in suite.rows:
        before, after = by_key.get((row.key, BEFORE)), by_key.get((row.key, AFTER))
        if before is not None and after is not None:
            cpu = [median_of(cell, lambda sample: sample.cpu_us_per_op) for cell in (before, after)]
            found.append(Change(row, spread(before), spread(after), *cpu))
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("before")
@click.argument("after", required=False)
@click.option("--rows", default=DEFAULT_ROWS, show_default=True, help="Keys of bench/cells.py.")
@click.option("--repetitions", type=click.IntRange(1, 50), default=5, show_default=True)
@click.option("--seconds", "runtime_s", type=click.IntRange(1, 300), default=2, show_default=True)
def main(before: str, after: str | None, rows: str, repetitions: int, runtime_s: int) -> None:
    """Compare the speed of two commits: BEFORE, and AFTER (default: the files as they are)."""
    if reason := fio.missing():
        raise click.UsageError(f"fio with its nbd engine is what loads both: {reason}")
    suite = suite_of(rows, repetitions, runtime_s)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="repl-compare-")))
        roots = {BEFORE: stack.enter_context(checkout(before, folder))}
        roots[AFTER] = stack.enter_context(checkout(after, folder)) if after else ROOT
        contenders: dict[str, Contender] = {
            key: Repl(key, key, replicated=True, root=root) for key, root in roots.items()
        }
        place = folder / "run"
        place.mkdir()
        running = runner.Runner(suite, contenders, place, lambda text: click.echo(text, err=True))
        running.run()
    found = changes(suite, running.cells)
    for change in found:
        click.echo(str(change))
    for broke in running.breakages:
        click.echo(f"BROKE: {broke.contender} ({broke.where}): {broke.reason}")
    differing = [check for check in running.checks if check.difference_offset is not None]
    for check in differing:
        click.echo(f"COPIES DIFFER: {check.contender} at offset {check.difference_offset}")
    click.echo(f"clear: ranges apart, or medians by a factor of {CLEAR_RATIO:g}")
    slower = any(change.verdict is Verdict.SLOWER for change in found)
    sys.exit(1 if slower or running.breakages or differing else 0)


if __name__ == "__main__":
    main()

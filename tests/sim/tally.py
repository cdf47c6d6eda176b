"""A swarm that is split over time: what its runs did together, kept in a file between them.

It says how many seeds ran clean on the core, the store and the simulator as they are. Once one of
these changes, what ran before says nothing any more, and the file takes no more runs.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.sim.cells import PROCEDURES, STATES, Row, all_cells, named, row_name
from tests.sim.swarm import SUMMED, Totals

#: Where every module is that is ours.
_PACKAGES = frozenset({"bench", "deploy", "nbdserver", "repl", "tests"})
#: It imports all that seeds run, and what aims them at cells.
_COMMAND_LINE = "tests.sim.run"
#: They decide nothing about what a seed does.
_LEFT_OUT = frozenset({_COMMAND_LINE, "tests.sim.tally"})


class TallyError(Exception):
    """The file cannot take these runs; the text says why."""


def digest_of_sources() -> str:
    """Return one word for every module of the product and the simulator that a seed runs.

    Raises:
        TallyError: a module has no source.
    """
    digest = hashlib.sha256()
    for name, path in sorted(counted_sources().items()):
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def counted_sources() -> Mapping[str, Path]:
    """Return every module that decides what a seed does, and its source.

    They are found by what the sources import, wherever the statement stands. What is loaded would
    depend on who asks: seeds run in other processes, which may load more while they run. To find
    them takes most of a second, and what a process runs stays the same.

    Raises:
        TallyError: a module has no source.
    """
    found: dict[str, Path] = {}
    waiting = [_COMMAND_LINE]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = _source(name)
        if path is None:
            raise TallyError(f"{name} has no source: nobody could tell whether it changes")
        found[name] = path
        package, _, _ = name.rpartition(".")
        waiting += [package] if package else []
        waiting += _imported_by(path)
    return {name: path for name, path in found.items() if name not in _LEFT_OUT}


def _imported_by(path: Path) -> Iterator[str]:
    """The modules of ours that a source imports."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_ours(alias.name))
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise TallyError(f"{path} imports what it does not name in full")
            if node.module and _is_ours(node.module):
                yield node.module
                # A name that is imported from a package is a module of it, or defined by it.
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (name for name in names if name in sys.modules or _source(name))


def _is_ours(name: str) -> bool:
    return name.split(".")[0] in _PACKAGES


def _source(name: str) -> Path | None:
    """Where a module's source is; a compiled one has it beside it."""
    top, *inner = name.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*inner)
    candidates = (place / "__init__.py", place.with_name(place.name + ".py"))
    return next((path for path in candidates if path.exists()), None)


@dataclass(slots=True)
class Tally:
    """What ran so far, in all sittings."""

    path: Path
    sources: str
    #: First and last seed of each sitting, in their order.
    ranges: list[list[int]] = field(default_factory=list)
    wall_s: float = 0.0
    totals: Totals = field(default_factory=Totals)
    #: Those that failed in earlier sittings: seed, rule, text.
    failed: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> Tally:
        """Go on with the file, or begin it.

        Raises:
            TallyError: it is no tally, or one of other sources.
        """
        tally = cls(path, digest_of_sources())
        try:
            if not path.exists():
                return tally
            kept = json.loads(path.read_text())
            sources = kept["sources"]
            if sources == tally.sources:
                tally._take_up(kept)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TallyError(f"{path} is no tally of a swarm ({error!r})") from error
        if sources != tally.sources:
            raise TallyError(
                f"{path} counts runs of other sources ({sources}, these are {tally.sources}): "
                "name another file"
            )
        return tally

    @property
    def next_seed(self) -> int | None:
        """The first one after all that ran, if any did."""
        return max((last for _, last in self._run_ranges), default=-1) + 1 or None

    @property
    def _run_ranges(self) -> list[list[int]]:
        """Of the sittings, those that ran a seed at all."""
        return [[first, last] for first, last in self.ranges if first <= last]

    def begin(self, first: int, last: int | None = None) -> None:
        """A sitting begins that runs these seeds; without a last one, all that follow.

        Raises:
            TallyError: one of them ran already.
        """
        for known_first, known_last in self._run_ranges:
            if first <= known_last and (last is None or known_first <= last):
                seed = max(first, known_first)
                raise TallyError(
                    f"seed {seed} is in {self.path} already: go on with {self.next_seed}"
                )
        self.ranges.append([first, first - 1])

    def add(self, batch: Totals, wall_s: float) -> None:
        """Add the seeds that follow those of this sitting."""
        self.ranges[-1][1] += batch.seeds
        self.wall_s += wall_s
        self.totals.add(batch)

    def failures(self) -> list[dict[str, Any]]:
        """Return all that failed, in this sitting as well."""
        fresh = (
            {"seed": outcome.seed, "rule": outcome.rule, "failure": outcome.failure}
            for outcome in self.totals.failures
        )
        return [*self.failed, *fresh]

    def save(self) -> None:
        """Write the file anew; a run that is killed leaves the last one.

        Raises:
            TallyError: it cannot be written.
        """
        totals = self.totals
        kept = {
            "sources": self.sources,
            "ranges": self._run_ranges,
            "wall_s": round(self.wall_s, 1),
            "totals": {name: getattr(totals, name) for name in SUMMED},
            "failed": self.failures(),
            "hits": {named(cell): hits for cell, hits in totals.coverage.hits.items()},
            "rows": sorted(row_name(row) for row in totals.coverage.rows),
            "visitors": {row_name(row): seeds for row, seeds in totals.visitors.items()},
        }
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            fresh.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
            fresh.replace(self.path)
        except OSError as error:
            raise TallyError(f"{self.path} cannot be written ({error})") from error

    def _take_up(self, kept: dict[str, Any]) -> None:
        rows: dict[str, Row] = {row_name(row): row for row in (*STATES, *PROCEDURES)}
        cells = {named(cell): cell for cell in all_cells()}
        self.ranges, self.wall_s, self.failed = kept["ranges"], kept["wall_s"], kept["failed"]
        for name in SUMMED:
            setattr(self.totals, name, kept["totals"][name])
        coverage = self.totals.coverage
        coverage.hits.update({cells[name]: hits for name, hits in kept["hits"].items()})
        coverage.rows.update(rows[name] for name in kept["rows"])
        self.totals.visitors.update({rows[name]: seeds for name, seeds in kept["visitors"].items()})

    def summary(self) -> str:
        """What ran in all, for people."""
        seeds = ", ".join(f"{first}..{last}" for first, last in self._run_ranges)
        failures = self.failures()
        failed = "".join(f"\n  seed {each['seed']} failed: {each['failure']}" for each in failures)
        totals = self.totals
        return (
            f"in all, sources {self.sources}: {totals.seeds} seeds ({totals.counted} count), "
            f"{len(failures)} failed, {totals.acked_writes} writes acknowledged, "
            f"{totals.live_faults} live faults, {totals.busy_s / 3600:.2f} processor hours, "
            f"{self.wall_s / 3600:.2f} hours\n  seeds {seeds or 'none'}{failed}"
        )

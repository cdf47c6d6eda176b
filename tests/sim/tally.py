"""A swarm that is split over time: what its runs did together, kept in a file between them.

It says how many seeds ran clean on the core, the store and the simulator as they are. Once one of
these changes, what ran before says nothing any more, and the file takes no more runs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import repl
from tests.sim.cells import PROCEDURES, STATES, Row, all_cells, named, row_name
from tests.sim.swarm import Totals

#: They decide nothing about what a seed does.
_COMMAND_LINE = frozenset({"tests.sim.__main__", "tests.sim.run", "tests.sim.tally"})
_COUNTED = ("seeds", "counted", "acked_writes", "faults", "live_faults", "turns", "busy_s")


class TallyError(Exception):
    """The file cannot take these runs; the text says why."""


def digest_of_sources() -> str:
    """Return one word for every module of the product and the simulator that a seed runs."""
    root = Path(repl.__file__ or "").parent.parent
    digest = hashlib.sha256()
    for name in sorted(sys.modules):
        if name.split(".")[0] != "repl" and not name.startswith("tests.sim."):
            continue
        # A compiled module has its source beside it.
        path = root / (name.replace(".", "/") + ".py")
        if name not in _COMMAND_LINE and path.exists():
            digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


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
        if not path.exists():
            return tally
        try:
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
        """Write the file anew; a run that is killed leaves the last one."""
        totals = self.totals
        kept = {
            "sources": self.sources,
            "ranges": self._run_ranges,
            "wall_s": round(self.wall_s, 1),
            "totals": {name: getattr(totals, name) for name in _COUNTED},
            "failed": self.failures(),
            "hits": {named(cell): hits for cell, hits in totals.coverage.hits.items()},
            "rows": sorted(row_name(row) for row in totals.coverage.rows),
            "visitors": {row_name(row): seeds for row, seeds in totals.visitors.items()},
        }
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
        fresh.replace(self.path)

    def _take_up(self, kept: dict[str, Any]) -> None:
        rows: dict[str, Row] = {row_name(row): row for row in (*STATES, *PROCEDURES)}
        cells = {named(cell): cell for cell in all_cells()}
        self.ranges, self.wall_s, self.failed = kept["ranges"], kept["wall_s"], kept["failed"]
        for name in _COUNTED:
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

"""Takes every sample of `bench.scale` in rotating order; what breaks is recorded and left out."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import machine, runner
from bench.contenders.ours import build_of, commit_of, product_root
from bench.processes import ContenderBroke
from bench.scale.curves import CURVES, Figures
from bench.scale.tables import Point, ScaleRun, Table
from bench.scale.times import EVENTS, idle, resync
from repl.errors import ReplError
from tests.daemon import ROOT, DeadlineMissed

Sampling = Callable[[Path], Figures]


@dataclass(frozen=True)
class Planned:
    """A table to be measured: its lines, by label."""

    key: str
    title: str
    axis: str
    method: str
    lines: dict[str, Sampling]


def plan(runtime_s: int) -> list[Planned]:
    """Return all tables; `runtime_s` is the length of a sample under load."""
    tables = []
    for curve in CURVES:
        lines: dict[str, Sampling] = {
            curve.label(line): partial(curve.sample, line=line, runtime_s=runtime_s)
            for line in curve.lines
        }
        tables.append(Planned(curve.key, curve.title, curve.axis, curve.method, lines))
    tables.append(
        Planned(
            "resync",
            "Resync, no application",
            "missed",
            "A peer is brought up to date; then the same amount as a plain file with one sync, "
            "over one loopback connection, and through the C program into two copies.",
            {"1 GiB": resync},
        )
    )
    tables.append(
        Planned(
            "times",
            "How long it takes",
            "what",
            "Volumes of 256 MiB; `peer_timeout_s` = 5, `reconnect_grace_s` = 1.",
            {event.label: event.sample for event in EVENTS},
        )
    )
    tables.append(
        Planned(
            "idle",
            "Two nodes that do nothing",
            "volumes",
            "All processes of both nodes, in sync, no client, over 20 s; memory is PSS.",
            {str(count): partial(idle, count=count) for count in (1, 16)},
        )
    )
    return tables


class Measuring:
    """One run. `say` is told of each sample."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._samples: dict[tuple[str, str], list[Figures]] = {}
        self.breakages: list[str] = []

    def run(self, folder: Path, tables: list[Planned], repetitions: int) -> tuple[Table, ...]:
        """Measure in new folders inside `folder`."""
        for repetition in range(repetitions):
            for planned in tables:
                for label in runner.rotated(list(planned.lines), repetition):
                    self._sample(folder, planned, label)
        return tuple(self._table(planned) for planned in tables)

    def _sample(self, folder: Path, planned: Planned, label: str) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="repl-scale-", dir=folder) as inner:
                figures = planned.lines[label](Path(inner))
        except (ContenderBroke, DeadlineMissed, ReplError, ValueError, AssertionError) as broke:
            self.breakages.append(f"{planned.title}, {label}: {broke}")
            self._say(f"{planned.key} {label} BROKE: {broke}")
            return
        self._samples.setdefault((planned.key, label), []).append(figures)
        self._say(f"{planned.key:<8} {label:<50} {_line(figures)}")

    def _table(self, planned: Planned) -> Table:
        points = []
        for label in planned.lines:
            samples = self._samples.get((planned.key, label), [])
            names = samples[0] if samples else {}
            figures = {name: tuple(sample[name] for sample in samples) for name in names}
            points.append(Point(label=label, figures=figures))
        return Table(
            key=planned.key,
            title=planned.title,
            axis=planned.axis,
            method=planned.method,
            points=tuple(points),
        )


def _line(figures: Figures) -> str:
    return "  ".join(f"{name} {value:,.2f}" for name, value in figures.items())


def measure(
    folder: Path, only: str, repetitions: int, runtime_s: int, say: Callable[[str], None]
) -> ScaleRun:
    """Measure the tables whose keys match `only` on files in `folder`."""
    facts, started = machine.facts(folder), runner.now_text()
    measuring = Measuring(say)
    tables = [planned for planned in plan(runtime_s) if re.search(only, planned.key)]
    return ScaleRun(
        commit=commit_of(ROOT),
        build=build_of(product_root()),
        started=started,
        repetitions=repetitions,
        runtime_s=runtime_s,
        machine=facts,
        tables=measuring.run(folder, tables, repetitions),
        breakages=tuple(measuring.breakages),
    )

"""What `make bench-scale` leaves behind: tables of figures, as JSON and as Markdown. Pure."""

from __future__ import annotations

import statistics

from bench.report import table
from bench.results import Machine, Record


class Point(Record):
    """One line of a table: what was varied, and every sample of each figure (units in the name)."""

    label: str
    figures: dict[str, tuple[float, ...]]


class Table(Record):
    """One question, and its answers line by line."""

    key: str
    title: str
    #: What the first column holds.
    axis: str
    #: How it was measured, for whoever doubts a figure.
    method: str
    points: tuple[Point, ...]


class ScaleRun(Record):
    """Everything of one run."""

    commit: str
    build: str
    started: str
    repetitions: int
    runtime_s: int
    machine: Machine
    tables: tuple[Table, ...]
    #: What could not be measured, and why.
    breakages: tuple[str, ...] = ()


def shown(values: tuple[float, ...]) -> str:
    """Return the median with the lowest and the highest, as precise as its size deserves."""
    median, low, high = statistics.median(values), min(values), max(values)
    if low == high:
        return _figure(median)
    return f"{_figure(median)} ({_figure(low)} – {_figure(high)})"


def _figure(value: float) -> str:
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def heading(figure: str) -> str:
    """Return a figure's name as people read it: the unit stays last."""
    return figure.replace("_per_", "/").replace("_", " ")


def markdown(run: ScaleRun) -> str:
    """Return the report; what broke comes before any figure."""
    machine = run.machine
    lines = [
        f"# Scale, commit {run.commit}, {run.build}",
        "",
        f"{run.started}; {machine.cpus} × {machine.cpu_model}, Linux {machine.kernel}, Python "
        f"{machine.python}, {machine.fio}, {machine.filesystem}; load before: "
        f"{machine.load_average}. Medians (lowest – highest) of {run.repetitions} samples of "
        f"{run.runtime_s} s, each on new processes and files.",
        "",
    ]
    lines += [f"- **Broke**: {text}" for text in run.breakages]
    for each in run.tables:
        names = list(dict.fromkeys(name for point in each.points for name in point.figures))
        head = " | ".join([each.axis, *map(heading, names)])
        body = [
            [point.label, *(shown(point.figures[n]) if n in point.figures else "" for n in names)]
            for point in each.points
        ]
        lines += [f"## {each.title}", "", each.method, "", *table(body, head), ""]
    return "\n".join(lines)

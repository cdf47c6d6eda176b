"""A run as two pictures: our speed over the limit's and over the fastest other one's, row by row.

Only the drawing is here; what is drawn comes from `summary`. matplotlib is in the `bench` extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.results import Run
from bench.summary import Comparison, comparisons

BAR_HEIGHT = 0.38
ROW_INCHES = 0.42
WIDTH_INCHES = 8.5
LIMIT_COLOUR, PEER_COLOUR = "#4477aa", "#cc6677"


class NoMatplotlib(Exception):
    """The pictures cannot be drawn here."""


def groups(run: Run) -> dict[str, list[Comparison]]:
    """Return what each picture shows: its name → rows that have somebody to be compared with."""
    replicated = {contender.key for contender in run.contenders if contender.replicated}
    shown = [each for each in comparisons(run) if each.limit or each.peer]
    return {
        name: chosen
        for name, chosen in (
            ("two-copies", [each for each in shown if each.contender in replicated]),
            ("one-copy", [each for each in shown if each.contender not in replicated]),
        )
        if chosen
    }


def label(found: Comparison) -> str:
    """Return what stands beside a pair of bars."""
    title = found.row.title.removesuffix(", one copy")
    return f"{title} ({found.contender})" if found.contender == "nbdserver" else title


def draw(run: Run, path: Path) -> list[Path]:
    """Write one SVG for each group beside `path`; return them. Raises NoMatplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise NoMatplotlib("matplotlib is not installed: pip install '.[bench]'") from error
    matplotlib.use("svg")
    # Text stays text, and the same run gives the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "repl-nbd"})
    written = []
    for name, found in groups(run).items():
        target = path.with_name(f"{path.stem}-{name}.svg")
        _draw_one(found, f"{run.suite}, commit {run.commit}: {name.replace('-', ' ')}", target)
        written.append(target)
    return written


def _draw_one(found: Sequence[Comparison], title: str, target: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, 1.4 + ROW_INCHES * len(found)), layout="constrained")
    axes = figure.add_subplot()
    for place, each in enumerate(found):
        bars = (
            (each.of_limit, place - BAR_HEIGHT / 2, LIMIT_COLOUR),
            (each.of_peer, place + BAR_HEIGHT / 2, PEER_COLOUR),
        )
        for ratio, height, colour in bars:
            if ratio is not None:
                axes.barh(height, ratio, BAR_HEIGHT, color=colour)
                axes.text(ratio, height, f" {ratio:.2f}", va="center", fontsize=8)
    axes.barh(0, 0, color=LIMIT_COLOUR, label="of the C limit")
    axes.barh(0, 0, color=PEER_COLOUR, label="of the fastest other one")
    axes.axvline(1.0, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(found)), [label(each) for each in found], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("our requests per second, as a ratio of medians (more is better)")
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(target, metadata={"Date": None})

"""Medians, ranges and ratios of a run. Pure; the only place that says what counts as a win."""

from __future__ import annotations

import enum
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.contender import Kind
from bench.results import Cell, RowFacts, Run, Sample

#: A smaller difference than this is none while the ranges overlap.
CLEAR_RATIO = 1.2


@dataclass(frozen=True)
class Spread:
    """What samples say: their median, the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def over(self, other: Spread) -> float:
        """Return the ratio of the medians."""
        return self.median / other.median


class Verdict(enum.Enum):
    """How one contender did beside another; the value is what a report says."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "no clear difference"


def verdict(ours: Spread, theirs: Spread) -> Verdict:
    """Compare: clear if the ranges are apart, or the medians by more than CLEAR_RATIO."""
    if ours.low > theirs.high or ours.over(theirs) > CLEAR_RATIO:
        return Verdict.FASTER
    if ours.high < theirs.low or ours.over(theirs) < 1 / CLEAR_RATIO:
        return Verdict.SLOWER
    return Verdict.SAME


def speed(sample: Sample) -> float:
    """What is compared: requests per second. In one row they are all of one size."""
    return sample.iops


def spread(cell: Cell) -> Spread:
    """Return the spread of a cell's speed."""
    return Spread.of([speed(sample) for sample in cell.samples])


@dataclass(frozen=True)
class Comparison:
    """One of ours in a row, beside the limit and the fastest of the others."""

    row: RowFacts
    contender: str
    ours: Spread
    limit: Spread | None = None
    peer: Spread | None = None
    peer_key: str = ""

    @property
    def of_limit(self) -> float | None:
        return self.ours.over(self.limit) if self.limit else None

    @property
    def of_peer(self) -> float | None:
        return self.ours.over(self.peer) if self.peer else None


def row_comparisons(run: Run, row: RowFacts) -> list[Comparison]:
    """Compare each of our contenders in a row.

    The limit is the first one listed, which is the one without checksums.
    """
    kinds = {contender.key: contender.kind for contender in run.contenders}
    spreads = {cell.contender: spread(cell) for cell in run.cells if cell.row == row.key}

    def of(kind: Kind) -> list[str]:
        return [key for key in kinds if kinds[key] is kind and key in spreads]

    limits = of(Kind.LIMIT)
    peers = sorted(of(Kind.PEER), key=lambda peer: spreads[peer].median)
    return [
        Comparison(
            row,
            key,
            spreads[key],
            limit=spreads[limits[0]] if limits else None,
            peer=spreads[peers[-1]] if peers else None,
            peer_key=peers[-1] if peers else "",
        )
        for key in of(Kind.OURS)
    ]


def comparisons(run: Run) -> list[Comparison]:
    """Return those of all rows."""
    return [found for row in run.rows for found in row_comparisons(run, row)]


@dataclass(frozen=True)
class Floor:
    """Something that the project wants to hold; `value` is None where it was not measured."""

    text: str
    value: float | None
    least: float

    @property
    def reached(self) -> bool | None:
        return None if self.value is None else self.value >= self.least

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.text}: not measured"
        word = "reached" if self.reached else "NOT REACHED"
        return f"{self.text}: {self.value:.2f}, wanted at least {self.least:g}: {word}"


#: At depth 32, of 4 KiB random writes in two copies.
FLOOR_ROW = "write-4k-32"
LIMIT_RATIO_MIN = 0.5
PEER_RATIO_MIN = 2.0


def floors(run: Run) -> list[Floor]:
    """Return the floors of the first speed figure."""
    rows = {row.key: row for row in run.rows}
    title = rows[FLOOR_ROW].title if FLOOR_ROW in rows else FLOOR_ROW
    # The first of ours is the pair as it is configured by default.
    found = next((each for each in comparisons(run) if each.row.key == FLOOR_ROW), None)
    return [
        Floor(f"{title}, of the C limit", found.of_limit if found else None, LIMIT_RATIO_MIN),
        Floor(f"{title}, of the fastest peer", found.of_peer if found else None, PEER_RATIO_MIN),
    ]

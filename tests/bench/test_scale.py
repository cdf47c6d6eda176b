"""The scale tables: what a line says, that what breaks is told, and one real sample."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.processes import ContenderBroke
from bench.scale import curves, tables, times
from bench.scale.measuring import Measuring, Planned, plan
from bench.scale.tables import Point, ScaleRun, Table
from tests.bench.runs import MACHINE


def run_of(*points: Point, breakages: tuple[str, ...] = ()) -> ScaleRun:
    table = Table(key="size", title="Size", axis="size", method="How.", points=points)
    return ScaleRun(
        commit="abc1234",
        build="compiled",
        started="2026-01-01T00:00:00+0000",
        repetitions=3,
        runtime_s=5,
        machine=MACHINE,
        tables=(table,),
        breakages=breakages,
    )


def test_a_line_shows_the_median_and_the_range_of_each_figure() -> None:
    point = Point(label="1 GiB", figures={"CPU_us_per_op": (12.0, 30.0, 14.0), "IOPS": (9000.0,)})
    lines = tables.markdown(run_of(point)).splitlines()
    assert "| size | CPU us/op | IOPS |" in lines
    assert "| 1 GiB | 14.0 (12.0 – 30.0) | 9,000 |" in lines


def test_what_broke_comes_before_the_figures() -> None:
    text = tables.markdown(run_of(Point(label="x", figures={}), breakages=("it broke",)))
    assert text.index("**Broke**: it broke") < text.index("## Size")


def test_a_sample_that_breaks_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    taken: list[str] = []

    def fails(folder: Path) -> curves.Figures:
        raise ContenderBroke("it fell over")

    def works(folder: Path) -> curves.Figures:
        taken.append(folder.name)
        return {"s": float(len(taken))}

    planned = Planned("t", "T", "what", "How.", {"bad": fails, "good": works})
    measuring = Measuring(lambda text: None)
    (table,) = measuring.run(tmp_path, [planned], 3)
    assert [point.figures for point in table.points] == [{}, {"s": (1.0, 2.0, 3.0)}]
    assert measuring.breakages == ["T, bad: it fell over"] * 3
    assert list(tmp_path.iterdir()) == []


def test_every_table_of_the_plan_has_lines() -> None:
    keys = [planned.key for planned in plan(1)]
    assert keys == ["size", "volumes", "clients", "dirty", "resync", "times", "idle"]
    assert all(len(planned.lines) >= 1 for planned in plan(1))


def test_a_switch_is_timed_on_real_nodes(tmp_path: Path) -> None:
    assert 0 < times.switch(tmp_path)["s"] < 60


@pytest.mark.slow
@pytest.mark.parametrize("curve", curves.CURVES, ids=lambda curve: curve.key)
def test_every_curve_takes_a_sample(tmp_path: Path, curve: curves.Curve) -> None:
    figures = curve.sample(tmp_path, curve.lines[0], 1)
    assert figures["IOPS"] > 0
    assert figures["CPU_us_per_op"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("event", times.EVENTS, ids=lambda event: event.sample.__name__)
def test_every_change_of_state_is_timed(tmp_path: Path, event: times.Event) -> None:
    assert event.sample(tmp_path)["s"] > 0

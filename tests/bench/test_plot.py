"""Which rows are drawn in which picture. The drawing itself needs the `bench` extra."""

from __future__ import annotations

from bench import plot
from tests.bench.runs import run_of


def test_rows_are_drawn_by_how_many_copies_they_keep() -> None:
    run = run_of(
        {
            "write-4k-32": {"repl": [100], "limit": [200]},
            "busy": {"repl": [100]},
            "one": {"repl-single": [10], "mirror-tcp": [5]},
        }
    )
    shown = plot.groups(run)
    assert [each.row.key for each in shown["two-copies"]] == ["write-4k-32"]
    assert [each.row.key for each in shown["one-copy"]] == ["one"]


def test_nothing_is_drawn_without_somebody_to_compare_with() -> None:
    assert plot.groups(run_of({"busy": {"repl": [100]}})) == {}

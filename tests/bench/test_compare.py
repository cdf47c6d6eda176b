"""Comparing two commits: rows, verdicts, and what git does not know."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
import pytest

from bench.compare import AFTER, BEFORE, changes, checkout, suite_of
from bench.results import Cell
from bench.summary import Verdict
from tests.bench.runs import sample
from tests.daemon import ROOT


def cell(row: str, contender: str, *speeds: float) -> Cell:
    return Cell(row=row, contender=contender, samples=tuple(map(sample, speeds)))


def test_rows_are_taken_from_the_full_suite_for_both_sides() -> None:
    suite = suite_of("write-4k-32 read-4k-1", 3, 2)
    assert [row.key for row in suite.rows] == ["write-4k-32", "read-4k-1"]
    assert all(row.contenders == (BEFORE, AFTER) for row in suite.rows)


@pytest.mark.parametrize("key", ["nothing", "one-write-4k-1"])
def test_row_without_a_pair_of_ours_is_refused(key: str) -> None:
    with pytest.raises(click.UsageError, match=key):
        suite_of(key, 3, 2)


def test_change_is_judged_from_before_to_after() -> None:
    suite = suite_of("write-4k-1 write-4k-32 read-4k-1", 3, 2)
    cells = (
        cell("write-4k-1", BEFORE, 100, 110, 120),
        cell("write-4k-1", AFTER, 50, 55, 60),
        cell("write-4k-32", BEFORE, 100, 110, 120),
        cell("write-4k-32", AFTER, 119, 121, 130),
        cell("read-4k-1", BEFORE, 100),
    )
    found = changes(suite, cells)
    assert [(each.row.key, each.verdict) for each in found] == [
        ("write-4k-1", Verdict.SLOWER),
        ("write-4k-32", Verdict.SAME),
    ]
    assert "110 (100 – 120) → 55 (50 – 60) IOPS  0.50 ×  slower" in str(found[0])


def test_checkout_is_another_tree_and_goes_away(tmp_path: Path) -> None:
    with checkout("HEAD", tmp_path) as root:
        assert (root / "repl/node/main.py").exists()
        assert root != ROOT
    assert not root.exists()
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert str(root) not in listed.stdout


def test_unknown_commit_is_a_usage_error(tmp_path: Path) -> None:
    with (
        pytest.raises(click.UsageError, match="no-such-commit"),
        checkout("no-such-commit", tmp_path),
    ):
        pass

"""The suites: every cell can be named, found and paid for."""

from __future__ import annotations

import pytest

from bench.cells import FULL, QUICK, STANDARD, SUITES, Stage, Suite
from bench.contenders import CONTENDERS
from bench.runner import estimate_s

MINUTE_S = 60.0
EVERY_SUITE = pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))


@EVERY_SUITE
def test_row_keys_and_titles_are_unique(suite: Suite) -> None:
    for names in ([row.key for row in suite.rows], [row.title for row in suite.rows]):
        assert len(set(names)) == len(names)


@EVERY_SUITE
def test_every_contender_of_a_row_exists(suite: Suite) -> None:
    for row in suite.rows:
        assert set(row.contenders) <= set(CONTENDERS)
        assert row.contenders or row.missing, row.key


@EVERY_SUITE
def test_contenders_of_a_row_keep_the_same_promise(suite: Suite) -> None:
    for row in suite.rows:
        assert len({CONTENDERS[key].replicated for key in row.contenders}) <= 1, row.key


@EVERY_SUITE
def test_only_ours_are_asked_for_what_others_have_not(suite: Suite) -> None:
    for row in suite.rows:
        if row.polled or row.stage is Stage.RESYNC:
            assert row.contenders == ("repl",), row.key


def test_suites_are_as_long_as_they_say() -> None:
    assert estimate_s(QUICK) < 4 * MINUTE_S
    assert 50 <= STANDARD.cells <= 70
    assert estimate_s(STANDARD) < 15 * MINUTE_S
    assert FULL.runtime_s >= 5
    assert FULL.repetitions >= 5
    assert estimate_s(FULL) < 110 * MINUTE_S

"""Clients can cause only so many lines, and it is told how many were left out."""

from __future__ import annotations

import logging

import pytest

from nbdserver import client_log as module
from nbdserver.client_log import BURST_LINES, LINES_PER_S, ClientLog

LOG = logging.getLogger("tests.client_log")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [each.getMessage() for each in caplog.records]
    caplog.clear()
    return found


def test_burst_is_logged_in_full_and_a_flood_is_not(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = ClientLog(LOG, clock)
    with caplog.at_level(logging.INFO):
        for number in range(BURST_LINES + 1000):
            log.warning("client %d", number)
        assert lines(caplog) == [f"client {number}" for number in range(BURST_LINES)]
        clock.now_s += 1.0
        for number in range(100):
            log.info("later %d", number)
        found = lines(caplog)
        assert found[0] == "1000 lines about clients were left out here"
        assert found[1:] == [f"later {number}" for number in range(int(LINES_PER_S))]


def test_quiet_time_earns_no_more_than_one_burst(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = ClientLog(LOG, clock)
    with caplog.at_level(logging.INFO):
        clock.now_s += 1e6
        for _ in range(2 * BURST_LINES):
            log.warning("x")
        assert len(lines(caplog)) == BURST_LINES


def test_lines_that_nobody_reads_cost_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = ClientLog(LOG, Clock())
    with caplog.at_level(logging.ERROR):
        for _ in range(2 * BURST_LINES):
            log.info("x")
    with caplog.at_level(logging.INFO):
        log.warning("heard")
        assert lines(caplog) == ["heard"]


def test_clients_are_logged_under_the_name_of_the_package() -> None:
    assert module.client_log._log is logging.getLogger("nbdserver")

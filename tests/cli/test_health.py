"""The rules of the verdict: what is critical, what is degraded, and what is well."""

from __future__ import annotations

from typing import Any

import pytest

from repl.cli.health import Level, check_line, judge_node, judge_volume
from repl.cli.snapshot import read_node, read_volume
from tests.cli import recorded


@pytest.mark.parametrize(
    ("fields", "level", "words"),
    [
        (recorded.volume(), Level.OK, "in sync"),
        (recorded.secondary(), Level.OK, "in sync"),
        (recorded.volume(peers=[]), Level.OK, "no peer"),
        (recorded.secondary(peers=[]), Level.OK, "no peer"),
        (recorded.volume(serving=False), Level.CRITICAL, "does not serve"),
        (recorded.split_brain(), Level.CRITICAL, "split-brain with beta"),
        (recorded.closed(), Level.CRITICAL, "not usable: The backing"),
        (recorded.resyncing(), Level.DEGRADED, "6.1 GiB left"),
        (recorded.alone(), Level.DEGRADED, "not connected to beta"),
        (recorded.cut_off(), Level.DEGRADED, "not connected to beta"),
        (recorded.secondary(worker_pid=None), Level.DEGRADED, "worker"),
        (recorded.secondary(worker_silent=True), Level.DEGRADED, "worker"),
        (recorded.closed(code="WORKER_SILENT"), Level.DEGRADED, "worker"),
        (recorded.volume(worker_pid=None, serving=False), Level.CRITICAL, "does not answer"),
        (recorded.volume(peers=[], disk_state="failed"), Level.DEGRADED, "failed"),
        (recorded.secondary(disk_state="outdated"), Level.DEGRADED, "outdated"),
        (recorded.hostile(), Level.DEGRADED, "not connected"),
    ],
)
def test_verdict_of_a_volume(fields: dict[str, Any], level: Level, words: str) -> None:
    finding = judge_volume(read_volume(fields))
    assert finding.level is level
    assert words in finding.sentence


@pytest.mark.parametrize("state", ["disconnected", "connecting", "refused", "odd", None])
def test_peer_that_is_not_connected_degrades(state: str | None) -> None:
    fields = recorded.volume(peers=[recorded.peer(connection_state=state)])
    assert judge_volume(read_volume(fields)).level is Level.DEGRADED


@pytest.mark.parametrize(
    "state", ["off", "settling", "sync-source", "sync-target", "paused", "verify-source", None]
)
def test_peer_that_is_not_established_degrades(state: str | None) -> None:
    fields = recorded.volume(peers=[recorded.peer(replication_state=state)])
    assert judge_volume(read_volume(fields)).level is Level.DEGRADED


def test_slow_peer_degrades_before_it_is_dropped_though_nothing_is_lost_yet() -> None:
    slow = recorded.volume(peers=[recorded.peer(slow_s=2.1)])
    finding = judge_volume(read_volume(slow))
    words = "beta is slow: no answer for 2.1s"
    assert (finding.level, finding.sentence) == (Level.DEGRADED, words)
    assert judge_node(read_node(recorded.status(slow))).sentence == f"r0: {words}."


def test_one_bad_peer_of_two_degrades() -> None:
    peers = [recorded.peer(), recorded.peer(name="gamma", disk_state="failed")]
    finding = judge_volume(read_volume(recorded.volume(peers=peers)))
    assert (finding.level, finding.sentence) == (Level.DEGRADED, "the copy on gamma is failed")


def test_check_line_names_every_sick_volume_worst_first() -> None:
    node = read_node(
        recorded.status(
            recorded.volume("a"), recorded.alone("b"), recorded.split_brain("c"), recorded.volume()
        )
    )
    level, line = check_line(node)
    assert level is Level.CRITICAL
    assert line == (
        "CRITICAL c: split-brain with beta: both copies were written without the other; "
        "b: not connected to beta (connecting), 4 KiB out of sync"
    )


@pytest.mark.parametrize(
    ("volumes", "sentence"),
    [
        ([], "no volumes are configured."),
        ([recorded.volume()], "1 volume is well."),
        ([recorded.volume(), recorded.volume("r1")], "2 volumes are well."),
        ([recorded.alone()], "1 of 1 volume has lost redundancy; service is up."),
        ([recorded.cut_off()], "1 of 1 volume has lost redundancy."),
        (
            [recorded.alone(), recorded.alone("r1"), recorded.volume("r2")],
            "2 of 3 volumes have lost redundancy; service is up.",
        ),
        (
            [recorded.alone(), recorded.closed("r1")],
            "r1: not usable: The backing /srv/repl/r0.img is missing (1 more need attention).",
        ),
        ([recorded.secondary(worker_pid=None)], "r1: its worker process does not answer."),
    ],
)
def test_sentence_of_the_node(volumes: list[dict[str, Any]], sentence: str) -> None:
    assert judge_node(read_node(recorded.status(*volumes))).sentence == sentence


@pytest.mark.parametrize(
    "status", [{}, {"volumes": None}, {"volumes": {"r0": 1}}, {"volumes": [3]}]
)
def test_status_of_another_form_is_read_as_no_volumes(status: dict[str, Any]) -> None:
    assert read_node(status).volumes == ()

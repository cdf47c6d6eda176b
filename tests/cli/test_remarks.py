"""What status says beside its table: times as people read them, permits, and what holds back."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.cli.moments import ago, moment
from repl.cli.remarks import permits, remarks
from repl.cli.snapshot import read_volume
from tests.cli import recorded
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import FakeDaemon

NOW_S = datetime.datetime(2026, 11, 22, 12, 0, 0).timestamp()


def said(fields: dict[str, Any]) -> list[str]:
    return list(remarks(read_volume(fields), NOW_S))


def away(**changed: Any) -> dict[str, Any]:
    gone = {"connection_state": "connecting", "replication_state": "off"}
    return recorded.volume(peers=[recorded.peer(**gone, **changed)])


def test_a_moment_of_today_needs_no_date() -> None:
    assert moment(NOW_S - 60, NOW_S) == "11:59:00"
    assert moment(NOW_S - 86_400, NOW_S) == "2026-11-21 12:00:00"
    assert moment(None, NOW_S) is None


@given(st.one_of(st.none(), st.floats(0, 1e300)), st.floats(0, 4e9))
def test_no_time_of_a_daemon_breaks_the_words(time_s: float | None, now_s: float) -> None:
    text = moment(time_s, now_s)
    assert text is None or text.isprintable()
    if time_s is not None:
        assert ago(time_s, now_s)


def test_how_long_contact_is_lost_is_said() -> None:
    assert said(away(contact_lost_time_s=NOW_S - 250)) == [
        "contact with beta was lost at 11:55:50, 4 min 10 s ago"
    ]
    assert said(away(contact_lost_time_s=NOW_S + 250)) == [
        "contact with beta was lost at 12:04:10, just now"
    ], "clocks are set back"


def test_what_is_not_known_is_said_to_be_not_known() -> None:
    assert said(away(contact_lost_before_s=NOW_S - 3600)) == [
        "contact with beta was lost before 11:00:00, when this node started; it is not known when"
    ]
    assert said(away()) == []


def test_a_resync_says_how_long_the_peer_was_away() -> None:
    fields = recorded.resyncing()
    fields["peers"][0]["last_away"] = {"from_s": NOW_S - 300, "to_s": NOW_S - 50}
    assert said(fields) == ["beta was away 4 min 10 s (link lost 11:55:00, back 11:59:10)"]
    fields["peers"][0]["last_away"] = {"from_s": NOW_S, "to_s": NOW_S - 50}
    assert said(fields) == []


def test_a_slow_peer_is_said_to_be_slow_before_it_is_dropped() -> None:
    why = "a write waits to be applied there"
    slow = recorded.peer(slow_s=3.1, slow_why=why, dropped_after_s=5.0)
    assert said(recorded.volume(peers=[slow])) == [
        "beta is slow: a write waits to be applied there for 3.1s; it is dropped after 5s"
    ]


def test_a_slow_peer_is_said_once() -> None:
    slow = recorded.peer(slow_s=3.1, slow_why="a write waits", dropped_after_s=5.0)
    why = "beta is slow: a write waits for 3.1 s; it is dropped after 5 s"
    assert said(recorded.volume(peers=[slow], why=why)) == []


def test_a_pause_is_remembered_even_where_nothing_is_copied() -> None:
    order = {"paused": True, "rate_limit_bytes_per_s": 0, "by": "uid 0", "since_s": NOW_S - 60}
    assert said(recorded.volume(resync_order=order)) == [
        "copies of r0 are paused here by uid 0 at 11:59:00, until replctl resync r0 resume"
    ]


def test_a_limit_is_said_while_something_is_copied() -> None:
    order = {"paused": False, "rate_limit_bytes_per_s": 50_000_000, "by": "", "since_s": None}
    assert said(recorded.volume(resync_order=order)) == []
    assert said({**recorded.resyncing(), "resync_order": order}) == [
        "copies are limited here to 50 MB/s"
    ]


def test_a_pair_that_nobody_serves_says_so() -> None:
    idle = recorded.secondary("r0", peers=[recorded.peer(role="secondary")])
    assert said(idle) == ["no node is primary of r0; to serve it here: replctl promote r0"]
    assert said(recorded.secondary("r0", peers=[recorded.peer(role="primary")])) == []
    away = recorded.peer(role="secondary", connection_state="disconnected")
    assert said(recorded.secondary("r0", peers=[away])) == []
    assert said({**idle, "resume_pending": True}) == []


def test_permits_are_said_with_when_what_and_who() -> None:
    given_ones = [
        {"kind": "peer-dead", "at_s": NOW_S - 60, "permit": "an operator (uid 0) vouched"},
        {"kind": "from-the-future", "at_s": 1e300, "permit": ""},
        {},
    ]
    assert list(permits(read_volume(recorded.volume(permits=given_ones)), NOW_S)) == [
        "11:59:00: promotion on an operator's word (an operator (uid 0) vouched)",
        "at an unknown time: from-the-future",
        "at an unknown time: unknown",
    ]


# The whole picture.


def test_picture_of_a_frozen_volume(daemon: FakeDaemon, replctl: Operator) -> None:
    fields = recorded.alone()
    fields |= {
        "frozen": True,
        "alone": {"peer": "beta", "generation": 3, "since_s": 1.0, "for_s": 12.0},
        "why": "beta did not answer, and alpha may not go on without it",
        "next": "bring beta back; or go on without it:  replctl continue r0",
    }
    daemon.serve_status({**recorded.status(fields), "uptime_s": 3 * 86_400.0})
    lines = replctl("status").out.splitlines()
    assert lines[0].startswith(" CRITICAL  r0: frozen for 12 s: beta did not answer, and nobody ")
    assert lines[0].endswith("node alpha, up 3 d")
    assert "  frozen  " in lines[2]
    assert lines[-1] == " Next  bring beta back; or go on without it:  replctl continue r0"
    assert replctl("status", "--check").exit_status == 11


def test_picture_of_a_slow_peer(daemon: FakeDaemon, replctl: Operator) -> None:
    slow = recorded.peer(slow_s=2.0, slow_why="it has said nothing", dropped_after_s=5.0)
    daemon.serve_status(recorded.status(recorded.volume(peers=[slow])))
    lines = replctl("status").out.splitlines()
    assert lines[0].startswith(" DEGRADED  r0: beta is slow: it has said nothing for 2s; it is")
    assert "  slow 2.0 s  " in lines[2] and "2 of 2 copies" in lines[2]
    assert replctl("status", "--check").exit_status == 10


def test_picture_of_a_link_shows_its_round_trip(daemon: FakeDaemon, replctl: Operator) -> None:
    peers = [recorded.peer(round_trip_s=0.00042)]
    daemon.serve_status(recorded.status(recorded.volume(peers=peers)))
    assert "  up 0.4 ms  " in replctl("status").out


def test_picture_of_a_paused_and_limited_copy(daemon: FakeDaemon, replctl: Operator) -> None:
    paused = "paused by an operator (uid 0) on beta"
    fields = recorded.resyncing(stalled=paused)
    fields["peers"][0]["replication_state"] = "paused"
    daemon.serve_status(recorded.status(fields))
    lines = replctl("status").out.splitlines()
    assert lines[3].endswith(f"6.1 GiB left   {paused}")
    fields = recorded.resyncing(rate_limit_bytes_per_s=250_000_000)
    daemon.serve_status(recorded.status(fields))
    lines = replctl("status").out.splitlines()
    assert lines[3].endswith("212 MB/s (limit 250 MB/s)   about 33 s left")


@pytest.mark.parametrize("kind", ["alone", "peer-dead", "data-lost"])
def test_picture_shows_the_permits_that_matter(
    daemon: FakeDaemon, replctl: Operator, kind: str
) -> None:
    fields = recorded.volume(permits=[{"kind": kind, "at_s": 1_790_000_000, "permit": "by uid 0"}])
    daemon.serve_status(recorded.status(fields))
    [shown] = [line for line in replctl("status").out.splitlines() if line.startswith(" Given ")]
    assert shown.endswith("(by uid 0)") and "2026-09-2" in shown

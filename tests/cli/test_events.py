"""`replctl events`: what happened, as lines or JSON, and following through a daemon's restart."""

from __future__ import annotations

import json
from typing import Any

import pytest

from repl.cli.events import line
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import FakeDaemon


def event(number: int, **changed: Any) -> dict[str, Any]:
    return {
        "number": number,
        "time_s": 1_790_000_000.0,
        "volume": "r0",
        "code": "PEER_SLOW",
        "severity": "warning",
        "text": f"beta is slow ({number})",
        "fields": {"peer": "beta"},
        **changed,
    }


def ndjson(*found: dict[str, Any]) -> tuple[int, bytes]:
    return 200, b"".join(json.dumps(one).encode() + b"\n" for one in found) + b"\n"


def test_events_are_lines_with_number_time_severity_volume_code_and_sentence(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    daemon.on("GET", "/v1/events?", ndjson(event(7), event(12, volume="", code="DAEMON_STARTED")))
    result = replctl("events")
    assert (result.exit_status, result.err) == (0, "")
    first, second = result.out.splitlines()
    words = first.split()
    assert words[0] == "7" and words[1].startswith("2026-09-2")
    assert words[3:] == ["warning", "r0", "PEER_SLOW", "beta", "is", "slow", "(7)"]
    assert second.split()[4:6] == ["-", "DAEMON_STARTED"]


def test_json_is_one_object(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.on("GET", "/v1/events?after=3&volume=r0", ndjson(event(7), event(8)))
    result = replctl("--json", "events", "r0", "--after", "3")
    assert json.loads(result.out) == {"events": [event(7), event(8)]}


def test_only_the_newest_are_shown_unless_more_is_asked_for(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    daemon.on("GET", "/v1/events?", ndjson(*(event(n) for n in range(1, 151))))
    daemon.on("GET", "/v1/events?after=0", ndjson(*(event(n) for n in range(1, 151))))
    assert len(replctl("events").out.splitlines()) == 100
    assert len(replctl("events", "--last", "3").out.splitlines()) == 3
    assert len(replctl("events", "--after", "0").out.splitlines()) == 150
    assert replctl("events", "--last", "0").out == ""


def test_unknown_volume_is_the_daemons_refusal(daemon: FakeDaemon, replctl: Operator) -> None:
    refusal = {"code": "NO_SUCH_VOLUME", "exit_status": 4, "what": "No r9.", "why": "", "next": ""}
    daemon.on("GET", "/v1/events?volume=r9", (404, {"error": refusal}))
    assert replctl("events", "r9").exit_status == 4


def test_no_daemon_is_said_at_once(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    result = Operator(str(tmp_path / "nobody.sock"), capsys)("events", "--follow")
    assert result.exit_status == 3


def test_a_follower_asks_again_after_what_it_saw(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream ends, the daemon is away, comes back with a gap, and goes on."""
    daemon.on("GET", "/v1/events?", ndjson(event(1), event(2)))
    daemon.on("GET", "/v1/events?follow=1&after=2", ndjson(event(3)))
    gap = event(40, code="EVENTS_LOST", time_s=None, text="events are gone")
    daemon.on("GET", "/v1/events?follow=1&after=3", b"", ndjson(gap, event(41)))
    daemon.on("GET", "/v1/events?follow=1&after=41", ndjson(event(42)))
    daemon.on("GET", "/v1/events?follow=1&after=42", ndjson())
    pauses: list[float] = []

    def pause(duration_s: float) -> None:
        pauses.append(duration_s)
        if len(pauses) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr("repl.cli.events.time.sleep", pause)
    result = replctl("--json", "events", "--follow")
    assert result.exit_status == 130
    numbers = [json.loads(text)["number"] for text in result.out.splitlines()]
    assert numbers == [1, 2, 3, 40, 41, 42]


def test_a_lost_daemon_is_said_once_while_following(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.on("GET", "/v1/events?", ndjson())
    daemon.on("GET", "/v1/events?follow=1&after=0", b"")
    left = [None] * 4

    def pause(_duration_s: float) -> None:
        left.pop()
        if not left:
            raise KeyboardInterrupt

    monkeypatch.setattr("repl.cli.events.time.sleep", pause)
    result = replctl("events", "--follow")
    assert result.err.count("Waiting for it.") == 1


def test_hostile_fields_are_shown_harmlessly() -> None:
    odd = {"number": "x", "time_s": 1e300, "text": "a\x1b[2Jb\nc", "code": None, "volume": 7}
    shown = line(odd)
    assert shown.isprintable() and "a?[2Jb c" in shown
    assert line({}).split() == ["0", "-"]


def test_colour_only_repeats_the_severity() -> None:
    plain, coloured = line(event(1)), line(event(1), coloured=True)
    assert "\x1b[33mwarning\x1b[0m" in coloured
    assert coloured.replace("\x1b[33m", "").replace("\x1b[0m", "") == plain


def test_suppressed_events_are_counted_in_the_line() -> None:
    assert line(event(1, suppressed=80)).endswith("(and 80 more like it before)")

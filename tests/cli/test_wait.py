"""`replctl wait`: every state, the timeout, a daemon that restarts, and progress on request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from repl.cli import wait as wait_module
from repl.cli.snapshot import read_volume
from repl.errors import NoSuchThing
from tests.cli import recorded
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import Answer, FakeDaemon
from tests.cli.test_role import at_a_terminal

VOLUME = "/v1/volumes/r0"


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait_module, "POLL_INTERVAL_S", 0.001)


def promotable(ok: bool) -> dict[str, Any]:
    return recorded.secondary("r0", promotable={"ok": ok, "reason": "because", "next": "do this"})


@pytest.mark.parametrize(
    ("state", "before", "after"),
    [
        ("connected", recorded.alone(), recorded.resyncing()),
        ("in-sync", recorded.resyncing(), recorded.volume()),
        ("in-sync", recorded.secondary("r0", disk_state="outdated"), recorded.volume()),
        ("promotable", promotable(False), promotable(True)),
        ("primary", recorded.cut_off(), recorded.volume()),
        ("primary", recorded.closed(), recorded.volume()),
    ],
)
def test_wait_ends_when_the_state_is_there(
    daemon: FakeDaemon,
    replctl: Operator,
    state: str,
    before: dict[str, Any],
    after: dict[str, Any],
) -> None:
    daemon.on("GET", VOLUME, (200, before), (200, before), (200, after))
    result = replctl("wait", "r0", "--for", state)
    assert (result.exit_status, result.out, result.err) == (0, "", f"r0 is {state}.\n")
    assert len(daemon.requests) == 3


@pytest.mark.parametrize(
    ("state", "fields", "why", "next_step"),
    [
        ("connected", recorded.alone(), "r0: not connected to beta", "replctl status r0"),
        ("in-sync", recorded.resyncing(), "beta was away", "nothing to do"),
        ("in-sync", recorded.split_brain(), "both nodes were primary", "replctl status r0"),
        ("promotable", recorded.cut_off(), "beta was primary and may", "--peer-dead beta"),
        (
            "promotable",
            recorded.volume(promotable=None),
            "the daemon does not say",
            "replctl status r0",
        ),
        ("primary", recorded.cut_off(), "its role is secondary", "--peer-dead beta"),
        ("primary", recorded.secondary("r0"), "its role is secondary", "replctl promote r0"),
        ("primary", recorded.closed(), "The backing", "mount the filesystem"),
    ],
)
def test_timeout_says_why_and_what_would_help(
    daemon: FakeDaemon,
    replctl: Operator,
    state: str,
    fields: dict[str, Any],
    why: str,
    next_step: str,
) -> None:
    daemon.serve_status(recorded.status(fields))
    result = replctl("--json", "wait", "r0", "--for", state, "--timeout", "0.02")
    assert result.exit_status == 6
    error = result.error()
    assert error["code"] == "TIMED_OUT"
    assert error["what"] == f"r0 is not {state} after 20ms."
    assert error["why"].startswith(why)
    assert next_step in error["next"]


def test_zero_timeout_looks_exactly_once(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.serve_status(recorded.status(recorded.cut_off()))
    assert replctl("wait", "r0", "--for", "primary", "--timeout", "0").exit_status == 6
    assert len(daemon.requests) == 1


def test_json_says_what_was_reached(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.serve_status(recorded.status(recorded.volume()))
    result = replctl("--json", "wait", "r0", "--for", "in-sync", "--timeout", "1m")
    found = json.loads(result.out)
    assert (found["volume"], found["reached"], result.err) == ("r0", "in-sync", "")
    assert found["waited_s"] >= 0


def test_unknown_volume_ends_the_wait_at_once(daemon: FakeDaemon, replctl: Operator) -> None:
    error = NoSuchThing("There is no volume r0.", "it has r1", "replctl status").to_json()
    daemon.on("GET", VOLUME, (404, {"error": error}))
    assert replctl("wait", "r0", "--for", "primary").exit_status == 4


def test_daemon_that_restarts_does_not_end_the_wait(daemon: FakeDaemon, replctl: Operator) -> None:
    answers: list[Answer] = [(200, recorded.cut_off()), b"", b"", (200, recorded.volume())]
    daemon.on("GET", VOLUME, *answers)
    assert replctl("wait", "r0", "--for", "primary").exit_status == 0
    assert len(daemon.requests) == 4


def test_daemon_that_stays_away_ends_the_wait(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_module, "UNREACHABLE_GRACE_S", 0.02)
    daemon.on("GET", VOLUME, (200, recorded.cut_off()), b"")
    assert replctl("wait", "r0", "--for", "primary").exit_status == 3


@pytest.mark.parametrize("state", ["connected", "in-sync"])
def test_volume_without_peers_can_never_be_connected(
    daemon: FakeDaemon, replctl: Operator, state: str
) -> None:
    daemon.serve_status(recorded.status(recorded.volume(peers=[])))
    result = replctl("--json", "wait", "r0", "--for", state)
    assert (result.exit_status, result.error()["code"]) == (4, "NO_SUCH_PEER")


def test_off_a_terminal_progress_is_silent_unless_asked_for(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    for flags, lines in (([], 1), (["--progress"], 2)):
        daemon.on("GET", VOLUME, *[(200, recorded.resyncing())] * 20, (200, recorded.volume()))
        result = replctl("wait", "r0", "--for", "in-sync", *flags)
        assert result.exit_status == 0
        assert len(result.err.splitlines()) == lines
    assert result.err.splitlines()[0] == ("r0  62.1 %   6.1 GiB left   212 MB/s   about 33 s left")


def test_plain_progress_comes_every_few_seconds(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_module, "PROGRESS_INTERVAL_S", 0.0)
    daemon.on("GET", VOLUME, *[(200, recorded.resyncing())] * 3, (200, recorded.volume()))
    assert len(replctl("wait", "r0", "--for", "in-sync", "--progress").err.splitlines()) == 4


def test_terminal_line_is_redrawn_in_place_and_cleared(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    daemon.on("GET", VOLUME, *[(200, recorded.resyncing())] * 3, (200, recorded.volume()))
    screen = at_a_terminal(monkeypatch, "")
    assert replctl("wait", "r0", "--for", "in-sync").exit_status == 0
    drawn, last = screen.getvalue().rsplit("\r", 1)
    assert last == "r0 is in-sync.\n"
    parts = drawn.split("\r")[1:]
    assert len(parts) == 4
    assert all(len(part) <= 39 for part in parts)
    assert parts[0].startswith("r0  ")
    assert parts[-1].strip() == ""


def test_every_state_is_judged_for_hostile_fields() -> None:
    volume = read_volume(recorded.hostile())
    for state in ("connected", "in-sync", "promotable", "primary"):
        assert not wait_module.judge(volume, state).reached

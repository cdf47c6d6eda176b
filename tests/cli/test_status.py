"""`replctl status`: the picture, the single line for monitoring, and the JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from repl.cli.draw import picture
from repl.cli.output import write_data
from repl.cli.snapshot import read_node
from tests.cli import recorded
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import FakeDaemon


def test_picture_of_a_resync(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.serve_status(recorded.status(recorded.resyncing(), recorded.secondary()))
    result = replctl("status")
    assert result.exit_status == 0
    assert result.err == ""
    assert result.out.splitlines() == [
        " DEGRADED  1 of 2 volumes has lost redundancy; service is up.           node alpha",
        " VOLUME  ROLE       SERVICE  REDUNDANCY       SIZE  PEER  LINK  STATE       BEHIND",
        " r0      primary    serving  1 of 2 copies  40 GiB  beta  up    resyncing  6.1 GiB",
        "   ██████████████████▋───────────  62.1 %   6.1 GiB left   212 MB/s   about 33 s left",
        " r1      secondary  standby  2 of 2 copies  40 GiB  beta  up    in sync        0 B",
        " Why   r0: beta was away 4 min 10 s; only changed blocks are copied.",
        " Next  r0: nothing to do. To wait for it:  replctl wait r0 --for in-sync",
    ]


def test_problem_is_shown_with_code_why_and_next(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.serve_status(recorded.status(recorded.closed()))
    lines = replctl("status").out.splitlines()
    assert lines[0].startswith(
        " CRITICAL  r0: not usable: The backing /srv/repl/r0.img is missing."
    )
    assert lines[2].split()[:3] == ["r0", "secondary", "closed"]
    assert lines[3:] == [
        " What  The backing /srv/repl/r0.img is missing.  [BACKING_MISSING]",
        " Why   metadata exists, so nothing is created in its place",
        " Next  mount the filesystem that holds it",
    ]


def test_cut_off_secondary_is_told_what_its_promotion_needs(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    daemon.serve_status(recorded.status(recorded.cut_off()))
    lines = replctl("status").out.splitlines()
    row = " ".join(lines[2].split())
    assert row == "r0 secondary standby unknown 40 GiB beta connecting off unknown"
    assert lines[3].startswith(
        " Why   not connected to beta (connecting); contact with beta was lost at 2026-09-21 "
    )
    assert lines[4] == " Next  if beta is stopped:  replctl promote r0 --peer-dead beta"


@pytest.mark.parametrize("make", [recorded.volume, recorded.secondary])
def test_little_space_is_made_on_the_node_that_lacks_it(
    daemon: FakeDaemon, replctl: Operator, make: Callable[..., dict[str, Any]]
) -> None:
    """Not by a demotion of the primary on the other node, which is well."""
    promotable = {"ok": False, "reason": "beta is primary", "next": "on beta: replctl demote r0"}
    space = {"free_bytes": 1 << 20, "low": True}
    daemon.serve_status(recorded.status(make("r0", promotable=promotable, space=space)))
    out = replctl("status").out
    assert "little space under its backing" in out and "demote" not in out
    assert out.splitlines()[-1] == " Next  make room under the backing of r0 on this node"


@pytest.mark.parametrize(
    ("changed", "service"),
    [
        ({}, "standby"),
        ({"export": {"pending": True}}, "resuming"),
        ({"resume_pending": True}, "resuming"),
        ({"worker_pid": None}, "no answer"),
        ({"role": "primary", "serving": True, "frozen": True}, "frozen"),
        ({"role": "primary"}, "not serving"),
        ({"role": "primary", "serving": True}, "serving"),
    ],
)
def test_service_is_a_word(
    daemon: FakeDaemon, replctl: Operator, changed: dict[str, object], service: str
) -> None:
    daemon.serve_status(recorded.status(recorded.secondary("r0", **changed)))
    row = replctl("status").out.splitlines()[2]
    assert f"  {service}  " in row


def test_silent_worker_is_explained_once(daemon: FakeDaemon, replctl: Operator) -> None:
    fields = recorded.closed(code="WORKER_SILENT")
    fields["why"] = fields["problem"]["what"]
    fields["problem"]["why"] = ""
    daemon.serve_status(recorded.status(fields))
    lines = replctl("status").out.splitlines()
    assert " no answer " in lines[2]
    assert [line.split()[0] for line in lines[3:]] == ["What", "Next"]


def test_volume_with_two_peers_takes_two_lines(daemon: FakeDaemon, replctl: Operator) -> None:
    peers = [recorded.peer(), recorded.peer(name="gamma", connection_state="disconnected")]
    daemon.serve_status(recorded.status(recorded.volume(peers=peers)))
    lines = replctl("status").out.splitlines()
    assert "2 of 3 copies" in lines[2]
    assert lines[3].split()[:2] == ["gamma", "disconnected"]


def test_hostile_fields_are_shown_harmlessly(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.serve_status(recorded.status(recorded.hostile()))
    for arguments in (["status"], ["status", "--check"]):
        result = replctl(*arguments)
        assert result.exit_status == (10 if "--check" in arguments else 0)
        assert all(char.isprintable() or char == "\n" for char in result.out)
    assert "[bold]not markup[/bold] ?[2J :smile:" in replctl("status").out


def test_ascii_terminal_gets_ascii_bars_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr("sys.stdout", stream)
    fields = recorded.resyncing()
    fields["why"] = "größer"
    write_data(picture(read_node(recorded.status(fields)), stream))
    text = stream.buffer.getvalue().decode("ascii")
    assert "[##################------------]  62.1 %" in text
    assert "gr??er" in text


def test_very_long_names_and_reasons_stay_on_their_line(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    daemon.serve_status(recorded.status(recorded.volume("v" * 63, why="because " * 60)))
    lines = replctl("status").out.splitlines()
    assert len(lines) == 4
    assert "v" * 63 in lines[2]


def test_no_volumes_is_said(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.serve_status(recorded.status())
    assert "no volumes are configured" in replctl("status").out


@pytest.mark.parametrize(
    ("fields", "exit_status", "word"),
    [
        (recorded.volume(), 0, "OK"),
        (recorded.resyncing(), 10, "DEGRADED"),
        (recorded.split_brain(), 11, "CRITICAL"),
    ],
)
def test_check_is_one_line_and_its_exit_status(
    daemon: FakeDaemon, replctl: Operator, fields: dict[str, object], exit_status: int, word: str
) -> None:
    daemon.serve_status(recorded.status(fields))
    result = replctl("status", "--check")
    assert result.exit_status == exit_status
    [line] = result.out.splitlines()
    assert line.startswith(f"{word} ")
    as_json = replctl("--json", "status", "--check")
    assert as_json.exit_status == exit_status
    assert json.loads(as_json.out)["level"] == word.lower()


def test_check_of_one_volume_ignores_the_others(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.serve_status(recorded.status(recorded.split_brain(), recorded.volume("r1")))
    assert replctl("status", "r1", "--check").exit_status == 0
    assert replctl("status", "r0", "--check").exit_status == 11


def test_json_is_the_daemons_object(daemon: FakeDaemon, replctl: Operator) -> None:
    status = recorded.status(recorded.volume(), recorded.secondary())
    daemon.serve_status(status)
    assert json.loads(replctl("--json", "status").out) == status
    only = json.loads(replctl("--json", "status", "r1").out)
    assert only == {**status, "volumes": [status["volumes"][1]]}


def test_unknown_volume_names_the_nearest(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.serve_status(recorded.status(recorded.volume("database"), recorded.volume("r1")))
    result = replctl("status", "databse")
    assert result.exit_status == 4
    assert result.err.splitlines() == [
        "There is no volume databse on this node.  [NO_SUCH_VOLUME]",
        "Why   it has database, r1",
        "Next  replctl status database",
    ]

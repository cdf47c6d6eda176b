"""`promote` and `demote`: what is sent, what is vouched for, and what is never done unasked."""

from __future__ import annotations

import io
import json

import pytest

from repl import errors
from repl.attach.attaching import Attachment, Attachments
from repl.attach.machine import Machine
from repl.attach.mounts import Mount
from tests.cli import recorded
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import FakeDaemon

PROMOTE = "/v1/volumes/r0/promote"


class Terminal(io.StringIO):
    """A standard stream that a person sits at."""

    def isatty(self) -> bool:
        return True


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, typed: str) -> Terminal:
    """Let `typed` come from a terminal and return the terminal's stderr."""
    screen = Terminal()
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    monkeypatch.setattr("sys.stderr", screen)
    return screen


def posted(daemon: FakeDaemon) -> list[object]:
    return [body for method, _, body in daemon.requests if method == "POST"]


def test_plain_promote_asks_for_nothing_special(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.on("POST", PROMOTE, (200, {"reason": "beta agreed"}))
    result = replctl("promote", "r0")
    assert (result.exit_status, result.out, result.err) == (
        0,
        "",
        "r0 is primary on this node: beta agreed.\n",
    )
    assert posted(daemon) == [{"peer_dead": None, "lose_data": False, "accept_half_copied": False}]


def test_reply_without_words_still_says_what_happened(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    daemon.on("POST", PROMOTE, (200, {}))
    assert replctl("promote", "r0").err == "r0 is primary on this node.\n"
    result = replctl("--json", "promote", "r0")
    assert (json.loads(result.out), result.err) == ({}, "")


def test_refusal_is_three_lines_or_json(daemon: FakeDaemon, replctl: Operator) -> None:
    refusal = errors.Refused(
        "Cannot promote r0 on alpha: beta may be primary.",
        "beta was primary when contact was lost",
        "replctl promote r0 --peer-dead beta",
    )
    daemon.on("POST", PROMOTE, (409, {"error": refusal.to_json()}))
    result = replctl("promote", "r0")
    assert result.exit_status == 5
    assert result.err.splitlines() == [
        "Cannot promote r0 on alpha: beta may be primary.  [PROMOTE_NO_EVIDENCE]",
        "Why   beta was primary when contact was lost",
        "Next  replctl promote r0 --peer-dead beta",
    ]
    as_json = replctl("--json", "promote", "r0")
    assert (as_json.exit_status, as_json.err) == (5, "")
    assert as_json.error() == refusal.to_json()


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_peer_dead_shows_what_is_vouched_for(
    daemon: FakeDaemon, replctl: Operator, flags: list[str]
) -> None:
    daemon.serve_status(recorded.status(recorded.cut_off()))
    daemon.on("POST", PROMOTE, (200, {}))
    result = replctl(*flags, "promote", "r0", "--peer-dead", "beta")
    assert result.exit_status == 0
    vouched = result.err.splitlines()[0]
    assert vouched.startswith(
        "You vouch: beta is stopped and acknowledged no write after contact was lost at 2026-"
    )
    assert posted(daemon) == [
        {"peer_dead": "beta", "lose_data": False, "accept_half_copied": False}
    ]


@pytest.mark.parametrize("moment", [None, 1e300, -1, "yesterday"])
def test_unknown_time_of_loss_is_admitted(
    daemon: FakeDaemon, replctl: Operator, moment: object
) -> None:
    fields = recorded.cut_off()
    fields["peers"][0]["contact_lost_time_s"] = moment
    daemon.serve_status(recorded.status(fields))
    daemon.on("POST", PROMOTE, (200, {}))
    assert "(this node does not know when)." in replctl("promote", "r0", "--peer-dead", "beta").err


def test_contact_with_a_node_that_is_vouched_for_is_said(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    daemon.serve_status(recorded.status(recorded.volume()))
    refusal = errors.Refused("Cannot promote r0.", "it is not dead", code="PEER_IS_CONNECTED")
    daemon.on("POST", PROMOTE, (409, {"error": refusal.to_json()}))
    result = replctl("promote", "r0", "--peer-dead", "beta")
    assert result.exit_status == 5
    assert "(this node has contact with it now)." in result.err.splitlines()[0]


def test_demotion_that_a_mount_bars_names_it_and_its_umount(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = errors.Refused("1 client holds it.", "unix pid 7", "detach", code="DEMOTE_CLIENTS")
    daemon.on("POST", "/v1/volumes/r0/demote", (409, {"error": refusal.to_json()}))
    assert replctl("demote", "r0").err.splitlines()[2] == "Next  detach"
    device = Attachment("r0", "/dev/loop9", "nbdfuse", "mount")
    monkeypatch.setattr(Attachments, "find", lambda *_: device)
    mounted = [Mount("/srv/my data", "ext4", "/dev/loop9", "7:9")]
    monkeypatch.setattr(Machine, "mounts", lambda _: mounted)
    monkeypatch.setattr("repl.attach.mounts.of_device", lambda table, _: table)
    lines = replctl("demote", "r0").err.splitlines()
    assert lines[1].endswith("its device on this node is /dev/loop9, mounted on /srv/my data")
    assert lines[2].startswith("Next  replctl umount '/srv/my data' --demote   (or ")
    mounted.clear()
    assert "Next  replctl detach r0 && replctl demote r0" in replctl("demote", "r0").err


def test_time_before_which_contact_was_lost_is_said_as_such(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    fields = recorded.cut_off()
    fields["peers"][0] |= {"contact_lost_time_s": None, "contact_lost_before_s": 1_790_000_000}
    daemon.serve_status(recorded.status(fields))
    daemon.on("POST", PROMOTE, (200, {}))
    said = replctl("promote", "r0", "--peer-dead", "beta").err
    assert "(this node does not know when: before 2026-09-2" in said


def test_peer_dead_of_an_unknown_node_sends_nothing(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.serve_status(recorded.status(recorded.cut_off()))
    result = replctl("--json", "promote", "r0", "--peer-dead", "gamma")
    assert result.exit_status == 4
    assert result.error()["code"] == "NO_SUCH_PEER"
    assert "beta" in result.error()["why"]
    assert posted(daemon) == []


@pytest.mark.parametrize("half_copied", [False, True])
def test_lose_data_by_name_needs_no_terminal(
    daemon: FakeDaemon, replctl: Operator, half_copied: bool
) -> None:
    daemon.on("POST", PROMOTE, (200, {}))
    flags = ["--accept-half-copied"] if half_copied else []
    assert replctl("promote", "r0", "--lose-data", "r0", *flags).exit_status == 0
    assert posted(daemon) == [
        {"peer_dead": None, "lose_data": True, "accept_half_copied": half_copied}
    ]


@pytest.mark.parametrize("given", [[], ["r1"], ["R0"], ["r0 "], [""]])
def test_lose_data_without_the_name_is_not_confirmed_off_a_terminal(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch, given: list[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("r0\n"))
    result = replctl("promote", "r0", "--lose-data", *given)
    assert result.exit_status == 7
    assert "[NOT_CONFIRMED]" in result.err
    assert "replctl promote r0 --lose-data r0" in result.err
    assert daemon.requests == []


def test_wrong_name_given_is_not_asked_about_again_on_a_terminal(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = at_a_terminal(monkeypatch, "r0\n")
    assert replctl("promote", "r0", "--lose-data", "r1").exit_status == 7
    assert "Type" not in screen.getvalue()
    assert daemon.requests == []


def test_typed_name_confirms_after_the_stake_was_shown(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.serve_status(recorded.status(recorded.cut_off()))
    daemon.on("POST", PROMOTE, (200, {}))
    screen = at_a_terminal(monkeypatch, "r0\n")
    assert replctl("promote", "r0", "--lose-data", "--accept-half-copied").exit_status == 0
    shown = screen.getvalue()
    assert "the copy is consistent" in shown
    assert "beta was primary and may still acknowledge writes" in shown
    assert shown.index("given up") < shown.index("Type the volume's name")
    assert len(posted(daemon)) == 1


@pytest.mark.parametrize("typed", ["", "\n", "y\n", "yes\n", "R0\n", " r0\n", "r00\n"])
def test_anything_else_typed_changes_nothing(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    daemon.serve_status(recorded.status(recorded.cut_off()))
    screen = at_a_terminal(monkeypatch, typed)
    assert replctl("promote", "r0", "--lose-data").exit_status == 7
    assert "nothing was changed" in screen.getvalue()
    assert posted(daemon) == []


def test_accepting_a_half_copy_needs_lose_data(daemon: FakeDaemon, replctl: Operator) -> None:
    result = replctl("promote", "r0", "--accept-half-copied")
    assert result.exit_status == 2
    assert "--accept-half-copied needs --lose-data." in result.err
    assert daemon.requests == []


@pytest.mark.parametrize("drop", [False, True])
def test_demote_drops_clients_only_when_told(
    daemon: FakeDaemon, replctl: Operator, drop: bool
) -> None:
    daemon.on("POST", "/v1/volumes/r0/demote", (200, {}))
    result = replctl("demote", "r0", *(["--drop-clients"] if drop else []))
    assert (result.exit_status, result.err) == (0, "r0 is secondary on this node.\n")
    assert posted(daemon) == [{"drop_clients": drop}]

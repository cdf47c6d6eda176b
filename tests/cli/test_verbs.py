"""The smaller verbs: connect, disconnect, volume adopt, metadata dump, config check, version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repl import __version__, build
from tests.cli import recorded
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.test_role import at_a_terminal, posted

ADOPT = "/v1/volumes/r0/adopt"
#: What this side says of itself: its version and its build.
HERE = f"replctl {__version__} ({build.kind()})"


@pytest.mark.parametrize("verb", ["connect", "disconnect"])
@pytest.mark.parametrize("peer", [None, "beta"])
def test_link_verbs_name_the_peer(
    daemon: FakeDaemon, replctl: Operator, verb: str, peer: str | None
) -> None:
    daemon.on("POST", f"/v1/volumes/r0/{verb}", (200, {}))
    result = replctl(verb, "r0", *([peer] if peer else []))
    assert (result.exit_status, result.out) == (0, "")
    assert (peer or "its peers") in result.err
    assert posted(daemon) == [{"peer": peer}]


def test_adopting_a_copy_as_it_is_asks_nothing(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.on("POST", ADOPT, (200, {}))
    assert replctl("volume", "adopt", "r0").exit_status == 0
    assert posted(daemon) == [{"discard": False}]


def test_discarding_by_name_needs_no_terminal(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.on("POST", ADOPT, (200, {}))
    result = replctl("volume", "adopt", "r0", "--discard", "--confirm", "r0")
    assert result.exit_status == 0
    assert "will be overwritten" in result.err
    assert posted(daemon) == [{"discard": True}]


@pytest.mark.parametrize("flags", [[], ["--confirm", "r1"], ["--confirm", ""]])
def test_discarding_without_the_name_is_not_confirmed(
    daemon: FakeDaemon, replctl: Operator, flags: list[str]
) -> None:
    result = replctl("volume", "adopt", "r0", "--discard", *flags)
    assert result.exit_status == 7
    assert "replctl volume adopt r0 --discard --confirm r0" in result.err
    assert daemon.requests == []


def test_discarding_on_a_terminal_asks_for_the_name(
    daemon: FakeDaemon, replctl: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.serve_status(recorded.status(recorded.closed(code="BACKING_UNKNOWN")))
    daemon.on("POST", ADOPT, (200, {}))
    for typed, exit_status in (("no\n", 7), ("r0\n", 0)):
        screen = at_a_terminal(monkeypatch, typed)
        assert replctl("volume", "adopt", "r0", "--discard").exit_status == exit_status
        assert "Everything in the backing of r0 on this node will be overwritten." in (
            screen.getvalue()
        )
        assert "It is filled from: beta (disconnected, consistent)." in screen.getvalue()
    assert posted(daemon) == [{"discard": True}]


def test_confirm_without_discard_is_a_usage_error(daemon: FakeDaemon, replctl: Operator) -> None:
    assert replctl("volume", "adopt", "r0", "--confirm", "r0").exit_status == 2
    assert daemon.requests == []


def test_metadata_dump_prints_the_daemons_text(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.on("GET", "/v1/volumes/r0/metadata", (200, {"text": "generation 3\n  set a\x1b b\n"}))
    result = replctl("metadata", "dump", "r0")
    assert (result.exit_status, result.out) == (0, "generation 3\n  set a? b\n")
    assert json.loads(replctl("--json", "metadata", "dump", "r0").out)["text"].endswith("b\n")


def test_metadata_dump_without_text_prints_the_object(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    daemon.on("GET", "/v1/volumes/r0/metadata", (200, {"generation": {"counter": 3}}))
    assert json.loads(replctl("metadata", "dump", "r0").out) == {"generation": {"counter": 3}}


def test_config_check_needs_no_daemon(replctl: Operator, tmp_path: Path) -> None:
    replctl.socket_path = "/nonexistent/repld.sock"
    file = tmp_path / "repld.toml"
    file.write_text(
        '[node]\nname = "alpha"\n[nbd]\nsocket = "/run/repl/nbd.sock"\n'
        '[volumes.r0]\nsize = "1GiB"\nbacking = "r0.img"\npeers = []\n'
    )
    result = replctl("config", "check", str(file))
    assert result.exit_status == 0
    assert result.out == f"{file} is valid: node alpha; volumes r0; peers none.\n"
    found = json.loads(replctl("--json", "config", "check", str(file)).out)
    assert (found["valid"], found["volumes"][0]["size_bytes"]) == (True, 1 << 30)


def test_config_check_shows_every_mistake(replctl: Operator, tmp_path: Path) -> None:
    file = tmp_path / "repld.toml"
    file.write_text('[node]\nnam = "alpha"\n')
    result = replctl("config", "check", str(file))
    assert result.exit_status == 8
    assert result.out == ""
    assert result.err.splitlines() == [
        f"Cannot use the configuration {file}: 3 problems.  [CONFIG_INVALID]",
        f'Why   {file}: node.name: required; add  name = "alpha"',
        f"      {file}: node.nam: unknown key; did you mean 'name'?",
        f"      {file}: nbd: required; add  a [nbd] table with socket or listen",
        f"Next  correct it, then:  replctl config check {file}",
    ]
    as_json = replctl("--json", "config", "check", str(tmp_path / "absent.toml"))
    assert (as_json.exit_status, as_json.error()["code"]) == (8, "CONFIG_UNREADABLE")


def test_version_shows_both_sides(daemon: FakeDaemon, replctl: Operator) -> None:
    daemon.on("GET", "/v1/version", (200, {"version": "9.9.9"}))
    assert replctl("version").out == f"{HERE}\nrepld 9.9.9\n"
    daemon.on("GET", "/v1/version", (200, {"version": "9.9.9", "build": "compiled"}))
    assert replctl("version").out == f"{HERE}\nrepld 9.9.9 (compiled)\n"
    assert json.loads(replctl("--json", "version").out) == {
        "replctl": __version__,
        "replctl_build": build.kind(),
        "repld": "9.9.9",
        "build": "compiled",
    }


def test_version_without_a_daemon_is_no_failure(replctl: Operator, tmp_path: Path) -> None:
    replctl.socket_path = str(tmp_path / "absent.sock")
    result = replctl("version")
    assert (result.exit_status, result.out) == (0, f"{HERE}\n")
    assert "No repld answers" in result.err

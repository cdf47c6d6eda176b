"""`attach`, `detach`, `mount` and `umount`: what the command line makes of words and answers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from repl import errors
from repl.attach.history import Generation
from repl.cli.client import Client
from repl.cli.daemon_volumes import DATA_LOST, DaemonVolumes
from repl.core.lineage import Origin
from tests.cli import recorded
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import FakeDaemon

METADATA = "/v1/volumes/r0/metadata"
DEMOTE = "/v1/volumes/r0/demote"


@pytest.fixture
def volumes(daemon: FakeDaemon) -> DaemonVolumes:
    return DaemonVolumes(Client(daemon.socket_path))


def serve(daemon: FakeDaemon, **fields: Any) -> None:
    daemon.serve_status({**recorded.status({**recorded.cut_off(), **fields}), "nbd": None})


# Refused before anything is asked.


@pytest.mark.parametrize("verb", [["attach"], ["detach"], ["mount"]])
@pytest.mark.parametrize("name", ["a/b", "../r0", "a b", "r0\n", ""])
def test_bad_names_are_refused_before_the_daemon_is_asked(
    daemon: FakeDaemon, replctl: Operator, verb: list[str], name: str
) -> None:
    result = replctl(*verb, name, *(["/mnt"] if verb == ["mount"] else []))
    assert result.exit_status == 2 and "[USAGE]" in result.err
    assert daemon.requests == []


@pytest.mark.parametrize("directory", ["", "/mnt/a\nb", "/mnt/\x1b[2J", "/mnt/\udcff"])
@pytest.mark.parametrize("verb", [["mount", "r0"], ["umount"]])
def test_directories_that_would_harm_a_terminal_are_refused(
    daemon: FakeDaemon, replctl: Operator, verb: list[str], directory: str
) -> None:
    result = replctl("--json", *verb, directory)
    assert result.exit_status == 2 and result.error()["code"] == "USAGE"
    assert daemon.requests == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["mount", "r0", "/mnt", "--peer-dead", "alpha"],
        ["mount", "r0", "/mnt", "--promote", "--peer-dead", "a/b"],
        ["mount", "r0", "/mnt", "--mkfs", "ntfs"],
        ["mount", "r0", "/mnt", "--dead-after", "soon"],
        ["mount", "r0", "/mnt", "--options", "bind"],
        ["mount", "r0"],
        ["umount"],
        ["attach"],
        ["attach", "r0", "--dead-after", "-1"],
        ["attach", "r0", "--way", "nbd-client"],
    ],
)
def test_unusable_options_are_usage_errors(replctl: Operator, arguments: list[str]) -> None:
    result = replctl(*arguments)
    assert result.exit_status == 2, result.err
    assert len(result.err.splitlines()) == 3


def test_only_root_may_attach(
    monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon, replctl: Operator
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for arguments in (["attach", "r0"], ["detach", "r0"], ["mount", "r0", "/"], ["umount", "/"]):
        assert replctl(*arguments).exit_status == 9
    assert daemon.requests == []


# What the daemon's answers mean.


def test_volume_that_does_not_exist_is_named(daemon: FakeDaemon, replctl: Operator) -> None:
    missing = errors.NoSuchThing("there is no volume r9 on alpha", "it has r0", "replctl status")
    daemon.on("GET", "/v1/volumes/r9", (404, {"error": missing.to_json()}))
    assert replctl("attach", "r9").exit_status == 4


def test_secondary_is_not_attached(daemon: FakeDaemon, replctl: Operator) -> None:
    serve(daemon, role="secondary")
    result = replctl("--json", "attach", "r0")
    assert (result.exit_status, result.error()["code"]) == (5, "NOT_PRIMARY")


def test_broken_volume_says_what_is_wrong_with_it(
    daemon: FakeDaemon, replctl: Operator, tmp_path: Path
) -> None:
    problem = errors.Refused("The backing is missing.", "why", "next", code="BACKING_MISSING")
    serve(daemon, problem=problem.to_json())
    (tmp_path / "mnt").mkdir()
    for arguments in (["attach", "r0"], ["mount", "r0", str(tmp_path / "mnt"), "--promote"]):
        result = replctl("--json", *arguments)
        assert (result.exit_status, result.error()["code"]) == (5, "BACKING_MISSING")


def test_absent_daemon_has_its_own_status(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    nobody = Operator(str(tmp_path / "nobody.sock"), capsys)
    assert nobody("attach", "r0").exit_status == 3
    assert nobody("detach", "r0").exit_status == 5
    assert nobody("umount", str(tmp_path)).exit_status == 5


def test_vouching_is_shown_before_anything_is_done(
    daemon: FakeDaemon, replctl: Operator, tmp_path: Path
) -> None:
    serve(daemon, role="secondary")
    (tmp_path / "mnt").mkdir()
    refusal = errors.Refused("No.", "why", "next", code="PEER_IS_CONNECTED")
    daemon.on("POST", "/v1/volumes/r0/promote", (409, {"error": refusal.to_json()}))
    result = replctl("mount", "r0", str(tmp_path / "mnt"), "--promote", "--peer-dead", "beta")
    assert result.exit_status == 5
    assert result.err.startswith("You vouch: beta is stopped")
    body = {"peer_dead": "beta", "lose_data": False, "accept_half_copied": False}
    assert ("POST", "/v1/volumes/r0/promote", body) in daemon.requests
    assert replctl(
        "mount", "r0", str(tmp_path / "mnt"), "--promote", "--peer-dead", "gamma"
    ).exit_status == 4  # fmt: skip


def test_relative_directory_is_taken_from_where_one_stands(
    daemon: FakeDaemon, replctl: Operator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(daemon)
    monkeypatch.chdir(tmp_path)
    result = replctl("--json", "mount", "r0", "not there")
    assert result.error()["code"] == "MOUNT_DIRECTORY"
    assert str(tmp_path / "not there") in result.error()["what"]


def test_folder_that_is_gone_leads_nowhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    replctl = Operator("repld.sock", capsys)
    for arguments in (["mount", "r0", "mnt"], ["umount", "mnt"], ["attach", "r0"]):
        result = replctl(*arguments)
        assert result.exit_status == 2, result.err
        assert "the folder that this command runs in is gone.  [USAGE]" in result.err
        assert "cd /" in result.err


def test_detaching_what_is_not_attached_is_refused(replctl: Operator) -> None:
    assert replctl("--json", "detach", "r0").error()["code"] == "NOT_ATTACHED"
    assert replctl("--json", "detach", "r0", "--force").error()["code"] == "NOT_ATTACHED"


def test_detaching_a_volume_that_does_not_exist_says_that(
    daemon: FakeDaemon, replctl: Operator
) -> None:
    missing = errors.NoSuchThing("there is no volume r9 on alpha", "it has r0", "replctl status")
    daemon.on("GET", "/v1/volumes/r9", (404, {"error": missing.to_json()}))
    refused = replctl("--json", "detach", "r9")
    assert (refused.exit_status, refused.error()["code"]) == (4, "NO_SUCH_VOLUME")


# The daemon's volumes, as repl/attach sees them.


@pytest.mark.parametrize(
    ("nbd", "address"),
    [
        ({"socket": "/run/nbd.sock", "listen": "0.0.0.0:1"}, "/run/nbd.sock"),
        ({"socket": None, "listen": "0.0.0.0:10809"}, "127.0.0.1:10809"),
        ({"socket": None, "listen": "[::]:10809"}, "[::1]:10809"),
        ({"socket": None, "listen": "10.0.0.1:10809"}, "10.0.0.1:10809"),
        ({"socket": None, "listen": "localhost:10809"}, "localhost:10809"),
    ],
)
def test_export_is_reached_by_the_nearest_address(
    daemon: FakeDaemon, volumes: DaemonVolumes, nbd: object, address: object
) -> None:
    daemon.on("GET", "/v1/status", (200, {"node": "alpha", "volumes": [], "nbd": nbd}))
    assert volumes.address("r0") == address


@pytest.mark.parametrize("nbd", [None, {}, {"socket": None, "listen": None}, "socket"])
def test_daemon_without_an_address_is_refused(
    daemon: FakeDaemon, volumes: DaemonVolumes, nbd: object
) -> None:
    daemon.on("GET", "/v1/status", (200, {"node": "alpha", "volumes": [], "nbd": nbd}))
    with pytest.raises(errors.Refused) as refused:
        volumes.address("r0")
    assert refused.value.code == "ATTACH_IMPOSSIBLE"


def test_lineage_is_read_from_the_metadata(daemon: FakeDaemon, volumes: DaemonVolumes) -> None:
    lineage = [
        {"id": 9, "primary": 5, "origin": "data-lost"},
        {"id": 8, "primary": 6, "origin": "promoted"},
    ]
    facts = {"node_id": 5, "lineage": lineage}
    daemon.on("GET", METADATA, (200, {"text": "", "metadata": {"facts": facts}}))
    found = volumes.lineage("r0")
    assert (found.node_id, list(found.entries)) == (
        5,
        [Generation(9, 5, data_lost=True), Generation(8, 6)],
    )


def test_spelling_of_lost_data_is_the_cores() -> None:
    assert Origin.DATA_LOST.value == DATA_LOST


@pytest.mark.parametrize(
    "answer",
    [{}, {"metadata": {}}, {"metadata": {"facts": {"node_id": 1, "lineage": [{"id": "x"}]}}}],
)
def test_metadata_of_another_form_is_not_guessed_at(
    daemon: FakeDaemon, volumes: DaemonVolumes, answer: object
) -> None:
    daemon.on("GET", METADATA, (200, answer))
    with pytest.raises(errors.ReplError, match="cannot be understood"):
        volumes.lineage("r0")


@pytest.mark.parametrize(
    ("role", "generation", "expected"),
    [
        ("primary", {"counter": 3, "id": "00000000000000ff"}, 255),
        ("secondary", {"counter": 3, "id": "00000000000000ff"}, 0),
        ("primary", {"counter": 0, "id": ""}, 0),
        ("primary", None, 0),
    ],
)
def test_generation_counts_only_while_this_node_is_primary(
    daemon: FakeDaemon, volumes: DaemonVolumes, role: str, generation: object, expected: int
) -> None:
    serve(daemon, role=role, generation=generation)
    assert volumes.generation("r0") == expected


def test_demotion_waits_for_the_client_that_just_left(
    daemon: FakeDaemon, volumes: DaemonVolumes
) -> None:
    held = errors.Refused("1 client holds it.", "why", "next", code="DEMOTE_CLIENTS")
    daemon.on("POST", DEMOTE, (409, {"error": held.to_json()}), (200, {}))
    volumes.demote("r0")
    assert len(daemon.requests) == 2
    busy = errors.Refused("Busy.", "why", "next", code="VOLUME_BUSY")
    daemon.on("POST", DEMOTE, (409, {"error": busy.to_json()}))
    with pytest.raises(errors.Refused, match="Busy"):
        volumes.demote("r0")


def test_json_names_the_error_like_every_verb(replctl: Operator, tmp_path: Path) -> None:
    result = replctl("--json", "umount", str(tmp_path))
    assert (result.exit_status, result.err) == (5, "")
    assert json.loads(result.out)["error"]["code"] == "NOT_MOUNTED"


@pytest.mark.parametrize(
    ("role", "names", "others"),
    [
        ("primary", [], []),
        ("primary", ["unix pid 71"], []),
        ("primary", ["unix pid 71", "unix pid 712"], ["unix pid 712"]),
        ("primary", ["unix pid 71 (cn=a)", "unix pid 71"], ["unix pid 71"]),
        # Its own name is unknown where it came by TCP: one client is taken for it.
        ("primary", ["127.0.0.1:4711"], []),
        ("primary", ["10.0.0.1:1", "10.0.0.1:2"], ["10.0.0.1:1", "10.0.0.1:2"]),
        ("secondary", ["unix pid 9", "unix pid 8"], []),
    ],
)
def test_other_clients_are_told_from_the_device(
    daemon: FakeDaemon,
    volumes: DaemonVolumes,
    monkeypatch: pytest.MonkeyPatch,
    role: str,
    names: list[str],
    others: list[str],
) -> None:
    monkeypatch.setattr("repl.cli.daemon_volumes.CLIENT_LEAVES_S", 0.0)
    serve(daemon, role=role, clients=len(names), client_names=names)
    assert volumes.other_clients("r0", 71) == others
    assert volumes.primaries() == (["r0"] if role == "primary" else [])

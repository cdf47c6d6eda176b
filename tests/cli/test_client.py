"""Everything that can go wrong between `replctl` and the daemon has its words and its status."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from repl import errors
from repl.cli import client as client_module
from repl.cli.client import Client
from tests.cli import recorded
from tests.cli.conftest import Operator
from tests.cli.fake_daemon import FakeDaemon


def failure_of(call: Callable[[], object]) -> errors.ReplError:
    with pytest.raises(errors.ReplError) as raised:
        call()
    assert raised.value.what and raised.value.why and raised.value.next_step
    return raised.value


def test_missing_socket_says_which_and_how_to_start(tmp_path: Path) -> None:
    path = str(tmp_path / "absent.sock")
    failure = failure_of(Client(path).status)
    assert (failure.exit_status, failure.code) == (3, "DAEMON_UNREACHABLE")
    assert path in failure.what
    assert "there is no such socket" in failure.why
    assert "systemctl start repld" in failure.next_step


def test_stale_socket_and_plain_file_are_unreachable(tmp_path: Path) -> None:
    stale = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(stale)
    plain = tmp_path / "plain"
    plain.touch()
    for path in (stale, str(plain)):
        failure = failure_of(Client(path).status)
        assert failure.exit_status == 3
        assert "nothing listens on it" in failure.why


def test_refused_permission_is_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    failure = failure_of(Client("/run/repl/repld.sock").status)
    assert (failure.exit_status, failure.code) == (9, "PERMISSION")
    assert "/run/repl/repld.sock" in failure.what


def test_real_permission_of_a_socket_is_recognised(daemon: FakeDaemon) -> None:
    os.chmod(daemon.socket_path, 0)
    own_user = os.geteuid()
    if own_user == 0:
        # root may use any socket, so for a moment this process is nobody.
        os.seteuid(65534)
    try:
        failure = failure_of(Client(daemon.socket_path).status)
    finally:
        os.seteuid(own_user)
    assert failure.exit_status == 9


def test_error_of_the_daemon_is_raised_as_itself(daemon: FakeDaemon) -> None:
    refusal = errors.Refused(
        "Cannot promote r0.", "it is outdated", "wait", code="PROMOTE_OUTDATED"
    )
    daemon.on("POST", "/v1/volumes/r0/promote", (409, {"error": refusal.to_json()}))
    failure = failure_of(lambda: Client(daemon.socket_path).act("r0", "promote", {}))
    assert isinstance(failure, errors.Refused)
    assert failure.to_json() == refusal.to_json()


@pytest.mark.parametrize(
    "answer",
    [
        (200, b"not json"),
        (200, [1, 2]),
        (200, b"\xff"),
        (200, b"[" * 100_000),
        (404, {"message": "no route"}),
        (500, {"error": "text"}),
        (500, {"error": {"exit_status": "many"}}),
        (500, {"error": {"exit_status": None}}),
        (204, {}),
    ],
)
def test_answer_that_is_not_understood_is_unexpected(
    daemon: FakeDaemon, answer: tuple[int, object]
) -> None:
    daemon.on("GET", "/v1/status", answer)
    failure = failure_of(Client(daemon.socket_path).status)
    assert (failure.exit_status, failure.code) == (1, "UNEXPECTED")
    assert f"HTTP status {answer[0]}" in failure.why


def test_endless_answer_is_cut_off(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RESPONSE_BYTES_MAX", 100)
    daemon.on("GET", "/v1/status", (200, {"node": "x" * 200}))
    assert "longer than 100 bytes" in failure_of(Client(daemon.socket_path).status).why


@pytest.mark.parametrize(
    "raw", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"]
)
def test_connection_broken_off_leaves_the_outcome_open(daemon: FakeDaemon, raw: bytes) -> None:
    daemon.on("GET", "/v1/status", raw)
    daemon.on("POST", "/v1/volumes/r0/demote", raw)
    reading = failure_of(Client(daemon.socket_path).status)
    assert reading.exit_status == 3
    assert "not known" not in reading.why
    acting = failure_of(lambda: Client(daemon.socket_path).act("r0", "demote", {}))
    assert acting.exit_status == 3
    assert "whether it was carried out is not known" in acting.why


def test_silent_daemon_is_unreachable_for_reading_and_timed_out_for_acting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "silent.sock")
    monkeypatch.setattr(client_module, "ACTION_TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(8)
        assert failure_of(lambda: Client(path).volume("r0", 0.05)).exit_status == 3
        failure = failure_of(lambda: Client(path).act("r0", "promote", {}))
    assert (failure.exit_status, failure.code) == (6, "TIMED_OUT")
    assert "may still be carried out" in failure.why


def test_no_request_is_ever_repeated(daemon: FakeDaemon) -> None:
    daemon.on("POST", "/v1/volumes/r0/promote", b"")
    failure_of(lambda: Client(daemon.socket_path).act("r0", "promote", {"lose_data": False}))
    assert daemon.requests == [("POST", "/v1/volumes/r0/promote", {"lose_data": False})]


def test_socket_comes_from_the_environment(
    daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from repl.cli.main import main

    daemon.serve_status(recorded.status(recorded.volume()))
    monkeypatch.setenv("REPL_SOCKET", daemon.socket_path)
    assert main(["status", "--check"]) == 0
    assert capsys.readouterr().out == "OK 1 volume is well.\n"


def test_a_daemon_whose_queue_is_full_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, waits = str(tmp_path / "repld.sock"), threading.Event()
    monkeypatch.setattr("repl.cli.client.time.sleep", lambda _: waits.set())
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        asking = threading.Thread(target=lambda: failure_of(Client(path).status))
        asking.start()
        assert waits.wait(10)
        listener.accept()[0].close()
        listener.settimeout(10)
        listener.accept()[0].close()
        asking.join()


def test_concurrent_questions_do_not_mix(daemon: FakeDaemon) -> None:
    for name in ("a", "b"):
        daemon.on("GET", f"/v1/volumes/{name}", (200, recorded.volume(name)))
    found: list[tuple[str, object]] = []

    def ask(name: str) -> None:
        found.append((name, Client(daemon.socket_path).volume(name)["name"]))

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abababab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(name == answered for name, answered in found) and len(found) == 8


def test_permission_and_unreachable_reach_the_exit_status(
    replctl: Operator, tmp_path: Path
) -> None:
    replctl.socket_path = str(tmp_path / "absent.sock")
    for verb in (
        ["status"],
        ["status", "--check"],
        ["promote", "r0"],
        ["promote", "r0", "--peer-dead", "beta"],
        ["metadata", "dump", "r0"],
        ["wait", "r0", "--for", "primary"],
    ):
        result = replctl(*verb)
        assert result.exit_status == 3
        assert result.out == ""
        assert "[DAEMON_UNREACHABLE]" in result.err
        as_json = replctl("--json", *verb)
        assert as_json.err == ""
        assert as_json.error()["code"] == "DAEMON_UNREACHABLE"

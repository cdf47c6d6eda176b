"""The command: what it says, how it ends, and that it keeps its word when told to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nbdserver.__main__ import parse_address
from tests.nbdserver.serving import ROOT, ServerProcess, wait_for
from tests.nbdserver.wire import RawClient, request, write


def ended(*arguments: str) -> tuple[int, str]:
    """Exit status and words of a command that is expected to end by itself."""
    done = subprocess.run(
        [sys.executable, "-m", "nbdserver", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_ready_line_names_both_addresses_and_the_size(server: ServerProcess) -> None:
    assert server.uri == f"nbd+unix:///?socket={server.socket}"
    assert server.tcp_uri == f"nbd://127.0.0.1:{server.port}/"
    assert server.size_bytes == server.file.stat().st_size


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("{disk}",), 2, "say where to listen"),
        (("{disk}", "--listen", "host:http"), 2, "--listen"),
        (("{disk}", "--listen", "host:70000"), 2, "--listen"),
        (("{folder}/missing", "--socket", "{folder}/s"), 8, "does not exist"),
        (("{folder}", "--socket", "{folder}/s"), 8, "directory"),
        (("{disk}", "--socket", "{disk}"), 8, "not a socket"),
        (("{disk}", "--socket", "{folder}/none/s"), 8, "No such file"),
        (("{disk}", "--socket", "{folder}/s", "--name", "x" * 5000), 2, "--name"),
    ],
)
def test_mistakes_are_explained_with_the_right_status(
    disk: Path, tmp_path: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    filled = [each.format(disk=disk, folder=tmp_path) for each in arguments]
    found_status, said = ended(*filled)
    assert found_status == status, said
    assert words in said
    if status == 8:
        what, why, next_step = said.splitlines()
        assert what.startswith("nbdserver: cannot ")
        assert why.startswith("Why ")
        assert next_step.startswith("Next ")


def test_second_server_on_the_same_socket_is_refused_and_the_first_lives(
    server: ServerProcess, disk: Path
) -> None:
    status, said = ended(str(disk), "--socket", str(server.socket))
    assert (status, "another program listens there" in said) == (8, True)
    with RawClient.to_unix(server.socket) as client:
        assert client.go() == server.size_bytes


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly_and_removes_the_socket(
    server: ServerProcess, number: signal.Signals
) -> None:
    with RawClient.to_unix(server.socket) as client:
        client.go()
        assert client.ask(write(0, b"kept")) == 0
        assert server.stop(number) == 0
        assert client.is_closed_by_server()
    assert not server.socket.exists()
    assert server.file.read_bytes()[:4] == b"kept"
    assert server.log == []


def test_crashed_server_leaves_a_socket_that_the_next_one_replaces(
    disk: Path, tmp_path: Path
) -> None:
    with ServerProcess(disk, tmp_path) as first:
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
        assert first.socket.exists()
    with ServerProcess(disk, tmp_path) as second, RawClient.to_unix(second.socket) as client:
        assert client.go() == second.size_bytes


def test_read_only_server_opens_a_file_it_may_not_write(disk: Path, tmp_path: Path) -> None:
    os.chmod(disk, 0o400)
    with (
        ServerProcess(disk, tmp_path, "--read-only", "--name", "a vol/é") as server,
        RawClient.to_unix(server.socket) as client,
    ):
        assert "/a%20vol%2F%C3%A9?" in server.uri
        client.go("a vol/é".encode())
        assert client.ask(write(0, b"x")) == 1
        assert client.ask_read(0, 4096) == bytes(4096)


def test_violation_is_one_line_in_the_log(server: ServerProcess) -> None:
    with RawClient.to_tcp(server.port) as client:
        client.go()
        client.send(request(0, magic=1))
        assert client.is_closed_by_server()
    wait_for(lambda: bool(server.log), "the line appears")
    server.stop()
    (line,) = server.log
    assert line.startswith("nbdserver: 127.0.0.1:")
    assert line.endswith(": dropped: request magic 0x00000001 is wrong")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:1", ("host", 1)),
        ("host", ("host", 10809)),
        (":1234", ("", 1234)),
        ("[::1]:5", ("::1", 5)),
        ("[::1]", ("::1", 10809)),
    ],
)
def test_address_forms_are_all_understood(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address

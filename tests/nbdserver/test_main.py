"""The command: what it says, how it ends, and that it keeps its word when told to stop."""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from pathlib import Path

import nbd
import pytest

from nbdserver.protocol import Option, Reply
from tests.nbdserver.serving import ROOT, ServerProcess, wait_for
from tests.nbdserver.wire import RawClient, go, option, request, write


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
        (("{folder}/missing", "--socket", "{folder}/s"), 8, "does not exist"),
        (("{folder}", "--socket", "{folder}/s"), 8, "directory"),
        (("{disk}", "--socket", "{disk}"), 8, "not a socket"),
        (("{disk}", "--socket", "{disk}"), 8, "remove that file, or choose another"),
        (("{disk}", "--socket", "{folder}/" + "s" * 108), 8, "choose a shorter path"),
        (("{disk}", "--socket", "{folder}/s", "--name", "a\udcff"), 2, "UTF-8"),
        (("{disk}", "--socket", "{folder}/s", "--description", "\udcff"), 2, "UTF-8"),
        (("{disk}", "--socket", "{folder}/none/s"), 8, "create the folder of the socket"),
        (("{disk}", "--socket", "{folder}/" + "s" * 108), 8, "over 107 bytes"),
        (("{disk}", "--listen", "192.0.2.1:0"), 8, "name an address of this machine"),
        (("{disk}", "--listen", "nowhere.invalid"), 8, "name an address of this machine"),
        (("/dev/null", "--socket", "{folder}/s"), 8, "neither"),
        (("{disk}", "--socket", "{folder}/s", "--block-size=3"), 8, "power of two"),
        (
            ("{disk}", "--socket", "{folder}/s", "--tls=required", "--tls-certificates={folder}"),
            8,
            "server-cert.pem: No such file",
        ),
        (
            (
                "{disk}",
                "--socket={folder}/s",
                "--tls=required",
                "--tls-cert={disk}",
                "--tls-key={disk}",
            ),
            8,
            "cannot be used",
        ),
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


@pytest.mark.parametrize(
    ("size", "options", "words"),
    [
        (0, (), "is empty: nothing can be stored there"),
        (1000, ("--block-size=512",), "the last 488 bytes of"),
        (1000, (), ""),
    ],
)
def test_surprising_size_is_served_with_a_word_about_it(
    disk: Path, tmp_path: Path, size: int, options: tuple[str, ...], words: str
) -> None:
    os.truncate(disk, size)
    with ServerProcess(disk, tmp_path, *options) as server:
        assert server.size_bytes == (512 if options else size)
        server.stop()
    assert len(server.log) == bool(words)
    assert words in "".join(server.log)


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


def test_several_exports_are_announced_listed_and_kept_apart(disk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.img"
    other.write_bytes(b"never written" + bytes(4083))
    with ServerProcess(disk, tmp_path, "--ro", f"iso={other}", "--description=two disks") as server:
        wait_for(lambda: len(server.lines) == 2, "both are announced")
        assert f"/disk.img?socket={server.socket} " in server.lines[0]
        assert f"/iso?socket={server.socket} " in server.lines[1]
        assert server.lines[1].endswith("(4096 bytes)")
        with RawClient.to_unix(server.socket) as client:
            client.greet().send(option(Option.LIST))
            listed = [client.option_reply().data for _ in range(3)]
            assert listed == [b"\0\0\0\x08disk.imgtwo disks", b"\0\0\0\3isotwo disks", b""]
        with RawClient.to_unix(server.socket) as client:
            assert client.go(b"iso") == 4096
            assert client.ask(write(0, b"x")) == 1
            assert client.ask_read(0, 13) == b"never written"
        with RawClient.to_unix(server.socket) as client:
            client.go(b"disk.img")
            assert client.ask(write(0, b"x")) == 0


def test_counters_are_printed_on_request(server: ServerProcess) -> None:
    with RawClient.to_unix(server.socket) as client:
        client.go()
        assert client.ask(write(0, b"12345")) == 0
        server.process.send_signal(signal.SIGUSR1)
        wait_for(lambda: bool(server.log), "they are printed")
    counted = json.loads(server.log[0].removeprefix("nbdserver: "))
    assert counted["transmission"]["bytes_written"] == 5
    assert counted["handshakes"]["agreed"] == 1
    assert counted["now"]["clients"] == 1


def test_limits_of_the_command_line_are_kept(disk: Path, tmp_path: Path) -> None:
    limits = ("--limit=clients=1", "--limit=handshake_deadline_s=0.2", "--limit=idle_s=0.5")
    with ServerProcess(disk, tmp_path, *limits) as server:
        with RawClient.to_unix(server.socket) as silent:
            assert silent.is_closed_by_server()
        with RawClient.to_unix(server.socket) as client, RawClient.to_unix(server.socket) as more:
            client.go()
            more.greet().send(go())
            assert more.option_reply().data == b"1 clients are connected, which is the limit"
            assert client.is_closed_by_server()


def test_block_sizes_of_the_command_line_are_told_and_kept(disk: Path, tmp_path: Path) -> None:
    with (
        ServerProcess(disk, tmp_path, "--block-size=4096,65536,1048576") as server,
        RawClient.to_unix(server.socket) as client,
    ):
        client.greet().send(go())
        assert client.option_reply().type == Reply.INFO
        assert client.option_reply().data == struct.pack(">HIII", 3, 4096, 65536, 1 << 20)
        assert client.option_reply().type == Reply.ACK
        assert client.ask(write(512, bytes(4096))) == 22
        assert client.ask(write(0, bytes((1 << 20) + 4096))) == 22
        assert client.ask(write(4096, bytes(1 << 20))) == 0


def test_sockets_of_whoever_started_it_are_served(disk: Path) -> None:
    handle = nbd.NBD()
    command = [sys.executable, "-m", "nbdserver", str(disk)]
    old = os.getcwd()
    os.chdir(ROOT)
    try:
        handle.connect_systemd_socket_activation(command)
    finally:
        os.chdir(old)
    handle.pwrite(b"activated", 100)
    assert handle.pread(9, 100) == b"activated"
    handle.shutdown()
    del handle
    assert disk.read_bytes()[100:109] == b"activated"


def test_inherited_descriptor_that_is_no_socket_is_refused_with_what_to_pass(disk: Path) -> None:
    become = (
        "import os, sys; os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid())); "
        "os.dup2(os.open('/dev/null', os.O_RDONLY), 3); "
        f"os.execv(sys.executable, [sys.executable, '-m', 'nbdserver', {str(disk)!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", become],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 8
    assert "descriptor 3 is no socket" in done.stderr
    assert "ListenStream=" in done.stderr


def test_sockets_meant_for_another_process_are_not_served(disk: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nbdserver", str(disk)],
        cwd=ROOT,
        env=os.environ | {"LISTEN_FDS": "1", "LISTEN_PID": "1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 8
    assert "for another process" in done.stderr


def test_descriptors_are_no_tighter_limit_than_those_with_names(server: ServerProcess) -> None:
    soft, hard = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    assert soft == hard

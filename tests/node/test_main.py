"""`repld` as a process: exit statuses, signals, readiness, and workers that end with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import repl
from tests.daemon import ROOT, wait_for
from tests.node.daemon_parts import alive

PROGRAM = (sys.executable, "-m", "tests.node.fake_repld")
CONFIG = """
[node]
name = "alpha"
state_dir = "state"
control = "repld.sock"

[nbd]
socket = "nbd.sock"

[volumes.r0]
size = "1MiB"
backing = "r0.img"
peers = []

[volumes.r1]
size = "1MiB"
backing = "r1.img"
peers = []
"""


def finished(*arguments: str, python: tuple[str, ...] = (), **env: str) -> Any:
    return subprocess.run(
        [PROGRAM[0], *python, *PROGRAM[1:], *arguments],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextlib.contextmanager
def daemon(folder: Path, *arguments: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
    """A running daemon that has said READY; killed with its workers at the end."""
    (folder / "repld.toml").write_text(CONFIG)
    notify_path = str(folder / "notify.sock")
    Path(notify_path).unlink(missing_ok=True)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify,
        open(folder / "log", "wb") as log,
    ):
        notify.bind(notify_path)
        notify.settimeout(60)
        process = subprocess.Popen(
            [*PROGRAM, "--config", str(folder / "repld.toml"), *arguments],
            cwd=ROOT,
            env=os.environ | {"NOTIFY_SOCKET": notify_path} | env,
            stderr=log,
            start_new_session=True,
        )
        try:
            assert b"READY=1" in notify.recv(4096)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Wait until both workers have been started; return their process ids."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def both() -> list[int] | None:
        found = [int(child) for child in path.read_text().split()]
        return found if len(found) == 2 else None

    return wait_for(both, what="two workers")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_stop_signal_ends_the_daemon_cleanly_with_status_zero(
    tmp_path: Path, number: int, loop: str
) -> None:
    with daemon(tmp_path, REPL_EVENT_LOOP=loop) as process:
        workers = workers_of(process)
        process.send_signal(number)
        assert process.wait(timeout=60) == 0
        assert not any(map(alive, workers))
        assert not (tmp_path / "repld.sock").exists()
    assert {path.name for path in (tmp_path / "state").glob("*.stopped")} == {
        "r0.stopped",
        "r1.stopped",
    }


def wait_until_up(folder: Path) -> None:
    """Wait until both workers have spoken."""
    said = b"The worker is up."
    wait_for(lambda: (folder / "log").read_bytes().count(said) == 2, what="both are up")


def test_signal_to_all_processes_at_once_still_stops_cleanly(tmp_path: Path) -> None:
    with daemon(tmp_path) as process:
        wait_until_up(tmp_path)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert len(list((tmp_path / "state").glob("*.stopped"))) == 2


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with daemon(tmp_path) as process:
        workers = workers_of(process)
        wait_until_up(tmp_path)
        os.kill(workers[0], signal.SIGSTOP)
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(alive, workers)), what="no worker is left")
        assert (tmp_path / "repld.sock").exists(), "it had no time to remove it"
    with daemon(tmp_path) as again:
        assert workers_of(again), "nothing stale is in the way of the next one"


def test_log_of_format_json_is_one_object_a_line(tmp_path: Path) -> None:
    with daemon(tmp_path, "--log-format", "json") as process:
        process.terminate()
        process.wait(timeout=60)
        lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {"The node is up.", "The node has stopped."} <= {line["event"] for line in lines}
    assert all({"level", "timestamp"} <= line.keys() for line in lines)


def test_descriptor_limit_is_raised_to_the_hard_one(tmp_path: Path) -> None:
    with daemon(tmp_path) as process:
        for pid in (process.pid, *workers_of(process)):
            text = Path(f"/proc/{pid}/limits").read_text()
            soft, hard = next(
                line.split()[3:5] for line in text.splitlines() if line.startswith("Max open files")
            )
            assert soft == hard


def test_version_is_printed_and_done(tmp_path: Path) -> None:
    done = finished("--version")
    assert (done.returncode, done.stdout) == (0, f"repld {repl.__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("--config",), ("--config", "x", "--bogus"), ("x",)])
def test_bad_arguments_end_with_status_two_and_three_lines(arguments: tuple[str, ...]) -> None:
    done = finished(*arguments)
    assert done.returncode == 2
    what, why, step = done.stderr.splitlines()
    assert what.endswith("[USAGE]")
    assert why.startswith("Why ")
    assert step.startswith("Next ")


def test_python_without_assertions_is_refused() -> None:
    done = finished("--version", python=("-O",))
    assert done.returncode == 2
    assert "PYTHONOPTIMIZE" in done.stderr


def test_unknown_event_loop_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "repld.toml").write_text(CONFIG)
    done = finished("--config", str(tmp_path / "repld.toml"), REPL_EVENT_LOOP="trio")
    assert done.returncode == 2
    assert "trio" in done.stderr


def test_bad_configuration_ends_with_status_eight_and_touches_nothing(tmp_path: Path) -> None:
    done = finished("--config", str(tmp_path / "absent.toml"))
    assert done.returncode == 8
    assert "[CONFIG_UNREADABLE]" in done.stderr
    (tmp_path / "repld.toml").write_text(CONFIG.replace("size =", "siez ="))
    done = finished("--config", str(tmp_path / "repld.toml"))
    assert done.returncode == 8
    assert "siez" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["repld.toml"]


def test_second_daemon_ends_with_status_five_and_the_first_goes_on(tmp_path: Path) -> None:
    with daemon(tmp_path) as first:
        done = finished("--config", str(tmp_path / "repld.toml"))
        assert done.returncode == 5
        assert "[STATE_DIR_IN_USE]" in done.stderr
        assert str(first.pid) in done.stderr
        assert first.poll() is None
        assert (tmp_path / "repld.sock").exists()

"""Server processes of a contender: started in a session of their own, watched, and surely ended.

Owns the life of a process and of everything it forks. A contender that does not come up, or dies
while it is measured, is `ContenderBroke` with the end of its log: never a figure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.daemon import DeadlineMissed, process_group_members, wait_for

START_DEADLINE_S = 30.0
STOP_DEADLINE_S = 10.0
LOG_TAIL_LINES = 15


class ContenderBroke(Exception):
    """A contender did not do what it is there for; the text says what was seen."""


def missing_command(*names: str) -> str:
    """Return which of these commands is not installed, as a reason; empty if all are there."""
    absent = [name for name in names if shutil.which(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""


def accepts(path: Path) -> bool:
    """Whether somebody listens on this Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def accepts_tcp(port: int) -> bool:
    """Whether somebody listens on this port of loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def log_tail(log: Path) -> str:
    """Return the end of a log for an error message."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


@contextlib.contextmanager
def running(
    command: Sequence[str], log: Path, ready: Callable[[], bool], cwd: Path | None = None
) -> Iterator[int]:
    """Run a server until the end of the block; yield its process group once `ready` says so.

    Its output goes to `log`. Raises ContenderBroke if it ends early or never becomes ready.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            start_new_session=True,
        )

    def up() -> bool:
        if process.poll() is not None:
            raise ContenderBroke(f"{command[0]} ended with {process.returncode}:\n{log_tail(log)}")
        return ready()

    try:
        try:
            wait_for(up, START_DEADLINE_S)
        except DeadlineMissed:
            raise ContenderBroke(f"{command[0]} is not ready:\n{log_tail(log)}") from None
        yield process.pid
    finally:
        end_group(process)


@contextlib.contextmanager
def running_daemon(
    command: Sequence[str], pid_file: Path, log: Path, ready: Callable[[], bool]
) -> Iterator[int]:
    """As `running`, for a server that puts itself into the background and writes a pid file."""
    with log.open("ab") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=START_DEADLINE_S,
            check=False,
        )
    if done.returncode != 0:
        raise ContenderBroke(f"{command[0]} ended with {done.returncode}:\n{log_tail(log)}")
    group = 0
    try:
        group = wait_for(lambda: int(pid_file.read_text() or 0), START_DEADLINE_S, "its pid file")
        wait_for(ready, START_DEADLINE_S)
        yield group
    except DeadlineMissed as missed:
        raise ContenderBroke(f"{command[0]} is not ready: {missed}\n{log_tail(log)}") from None
    finally:
        if group:
            kill_group(group)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was started here and everything it forked; wait until all is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(STOP_DEADLINE_S)
    kill_group(process.pid)


def kill_group(group: int) -> None:
    """Kill a process group and wait until nothing of it is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    wait_for(lambda: not process_group_members(group), STOP_DEADLINE_S, "it is gone")

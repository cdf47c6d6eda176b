"""Attach through the kernel's nbd driver: a block device with nothing of ours between it and repld.

`attach` starts a keeper process (`keeper.py`), which negotiates, hands the connections to the
kernel by generic netlink and replaces them when they die; `detach` ends both. `KERNEL_NBD.md` says
what a restart and a failover look like from above the device. Needs root and the module `nbd`.

The other ways to attach have the same three functions.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from repl import errors
from repl.attach.keeper import (
    CONNECTIONS,
    DEAD_CONN_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    RUNTIME_DIR,
    Record,
    device_index,
    open_control,
)
from repl.attach.nbd_control import NbdControl, module_is_installed
from repl.errors import NoSuchThing, Refused, ReplError
from repl.own_program import own_environment, own_program

#: For a keeper to try every address once and make the device.
ATTACH_DEADLINE_S: Final = 60.0
KEEPER_EXIT_S: Final = 10.0
DETACH_DEADLINE_S: Final = 30.0
POLL_S: Final = 0.02
CAP_SYS_ADMIN: Final = 21


def available() -> tuple[bool, str]:
    """Return whether this way can be taken here, and if not, why."""
    if not _may_administrate():
        return False, "only root may make block devices"
    if not module_is_installed():
        return False, f"the kernel {os.uname().release} has no module nbd"
    return True, ""


def attach(
    address: str | Sequence[str],
    export: str,
    connections: int = CONNECTIONS,
    dead_conn_timeout_s: int = DEAD_CONN_TIMEOUT_S,
    request_timeout_s: int = REQUEST_TIMEOUT_S,
) -> Path:
    """Make a block device of `export` and return its path.

    address: `HOST:PORT`, `[IPV6]:PORT` or a Unix socket's path; of several, one for each node, the
    one that serves the export is used, and another takes over when that one does not any more.
    connections: KERNEL_NBD.md says why one is best; more need a server that allows them.
    dead_conn_timeout_s: how long requests wait while no server is to be had, before they fail.
    request_timeout_s: how long a request waits for its reply before its connection is given up.

    Raises ReplError.
    """
    possible, why = available()
    if not possible:
        raise Refused(
            f"{export} cannot be attached through the kernel's nbd driver.",
            why,
            "load the module as root (modprobe nbd), or take another way to attach",
            code="ATTACH_IMPOSSIBLE",
        )
    addresses = [address] if isinstance(address, str) else list(address)
    command = [*own_program("repl.attach.keeper"), "--export", export]
    command += [part for each in addresses for part in ("--address", each)]
    command += ["--connections", str(connections)]
    command += ["--request-timeout-s", str(request_timeout_s)]
    command += ["--dead-conn-timeout-s", str(dead_conn_timeout_s)]
    return _start_keeper(command)


def resume(device: Path) -> None:
    """Give a device whose keeper is gone a new one. Raises ReplError."""
    _start_keeper([*own_program("repl.attach.keeper"), "--resume", str(device)])


def detach(device: Path, *, force: bool = False) -> None:
    """Take the device down and end its keeper. Raises ReplError.

    A device that is mounted or open is left alone, unless forced: then its requests fail, also
    those that wait for a server.
    """
    index = device_index(device)
    with open_control() as kernel:
        if not kernel.is_connected(index):
            raise NoSuchThing(
                f"{device} is not attached.", "it may have been taken down", code="NOT_ATTACHED"
            )
        if not force:
            _refuse_if_used(device)
        record = Record(index)
        # First the keeper: it would take the end of the connections for a failure.
        _end_keeper(record)
        kernel.disconnect(index)
        if not force:
            # By force it may stay until whoever holds it lets go; nothing works on it any more.
            _await_gone(kernel, device, index)
        record.remove()


def _may_administrate() -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) & 1 << CAP_SYS_ADMIN)
    return False


def _start_keeper(command: Sequence[str]) -> Path:
    """Start it and return the device that it reports; its log goes to a file of its own."""
    RUNTIME_DIR.mkdir(parents=True, exist_ok=True)
    log_path = RUNTIME_DIR / "keepers.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [*command, "--background"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=own_environment(),
        )
    assert process.stdout is not None
    with process.stdout as report:
        ready, _, _ = select.select([report], [], [], ATTACH_DEADLINE_S)
        # A keeper that finds nobody to report to takes its device down again.
        line = report.readline() if ready else b""
    process.wait()
    if not line:
        raise ReplError(
            "The process that attaches ended, or hangs, before it made a device.",
            f"the last line in its log: {_last_line(log_path)}",
            f"less {log_path}",
            code="ATTACH_FAILED",
        )
    answer = json.loads(line)
    if "error" in answer:
        raise errors.from_json(answer["error"])
    return Path(answer["device"])


def _last_line(log_path: Path) -> str:
    lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "nothing"


def _refuse_if_used(device: Path) -> None:
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        raise Refused(
            f"{device} is in use: {error.strerror}.",
            "it is mounted, or a program holds it",
            f"unmount it; findmnt {device} and fuser -v {device} show who has it",
            code="DEVICE_IN_USE",
        ) from error


def _end_keeper(record: Record) -> None:
    number = signal.SIGTERM
    ends = time.monotonic() + KEEPER_EXIT_S
    while (pid := record.keeper_pid()) is not None:
        os.kill(pid, number)
        if time.monotonic() >= ends:
            number = signal.SIGKILL
        time.sleep(POLL_S)


def _await_gone(kernel: NbdControl, device: Path, index: int) -> None:
    ends = time.monotonic() + DETACH_DEADLINE_S
    while kernel.is_connected(index):
        if time.monotonic() >= ends:
            raise ReplError(
                f"{device} is disconnected, but something still holds it.",
                f"the kernel keeps it until it is closed; {DETACH_DEADLINE_S:g} s were not enough",
                f"fuser -v {device} shows who has it",
                code="DEVICE_IN_USE",
            )
        time.sleep(POLL_S)

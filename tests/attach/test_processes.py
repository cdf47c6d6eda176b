"""A process is recognised by more than its number."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace

import pytest

from repl.attach.processes import ProcessId


def test_living_process_is_known_again() -> None:
    me = ProcessId.of(os.getpid())
    assert me.alive
    assert ProcessId.from_json(me.to_json()) == me


def test_process_of_the_same_number_is_another() -> None:
    me = ProcessId.of(os.getpid())
    assert not replace(me, started_ticks=me.started_ticks + 1).alive
    assert not replace(me, boot_id="another boot").alive
    # Must not reach this process.
    replace(me, boot_id="another boot").signal(signal.SIGKILL)


def test_ended_process_is_dead_before_it_is_waited_for() -> None:
    with subprocess.Popen(["sleep", "60"]) as sleeping:
        process = ProcessId.of(sleeping.pid)
        assert process.alive
        process.signal(signal.SIGKILL)
        os.waitid(os.P_PID, sleeping.pid, os.WEXITED | os.WNOWAIT)
        assert not process.alive
    process.signal(signal.SIGKILL)
    assert not ProcessId.of(sleeping.pid).alive


@pytest.mark.parametrize("fields", [{}, {"pid": "x", "started_ticks": 1, "boot_id": ""}])
def test_record_of_another_form_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises((KeyError, ValueError)):
        ProcessId.from_json(fields)

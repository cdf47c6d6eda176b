"""What /proc says of server processes."""

from __future__ import annotations

import os
import signal
import subprocess

from bench import accounting
from bench.accounting import Times, parse_kib, parse_stat

STAT = "77 (a (strange) name) S 1 42 42 0 -1 4194560 10 20 0 0 {times} 20 0 1 0 100 0 0"


def test_processor_time_includes_children_waited_for() -> None:
    assert parse_stat(STAT.format(times="5 7 11 13")) == Times(group=42, cpu_ticks=36)


def test_sizes_are_bytes_and_absent_ones_nothing() -> None:
    text = "Name:\tx\nVmHWM:\t    2048 kB\nPss:      12 kB\n"
    assert parse_kib(text, "VmHWM") == 2 << 20
    assert parse_kib(text, "Pss") == 12 << 10
    assert parse_kib(text, "VmSwap") == 0


def test_own_memory_is_seen() -> None:
    assert accounting.pss_bytes(os.getpid()) > 1 << 20


def test_every_process_of_a_group_is_pinned_and_let_go() -> None:
    # The child prints when both processes exist; it ends with its input.
    child = subprocess.Popen(
        ["sh", "-c", "sleep 300 & echo there; read line; kill $!"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert child.stdout is not None
        child.stdout.readline()
        pids = accounting.members([child.pid])
        assert len(pids) == 2
        before = [os.sched_getaffinity(pid) for pid in pids]
        cpu = min(before[0])
        with accounting.pinned([child.pid], cpu):
            assert [os.sched_getaffinity(pid) for pid in pids] == [{cpu}, {cpu}]
        assert [os.sched_getaffinity(pid) for pid in pids] == before
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()

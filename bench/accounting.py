"""What server processes cost: processor time and memory, from /proc.

Processor time is counted in the kernel's ticks (10 ms). Children that ended are in the times of the
parent that waited for them, so a server that forks for each client is counted in full.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.daemon import process_group_members

#: Written to /proc/PID/clear_refs: forget the highest resident size seen so far.
RESET_PEAK = "5"
KIB = 1024


@dataclass(frozen=True)
class Times:
    """One process's group and its processor time with that of children it has waited for."""

    group: int
    cpu_ticks: int


def parse_stat(text: str) -> Times:
    """Read /proc/PID/stat (proc(5))."""
    # The command's name may hold spaces and brackets; what follows its last one is regular.
    fields = text.rpartition(")")[2].split()
    user, system, child_user, child_system = (int(value) for value in fields[11:15])
    return Times(int(fields[2]), user + system + child_user + child_system)


def parse_kib(text: str, name: str) -> int:
    """Return the bytes behind `name:` in a file like /proc/PID/status; 0 if it is not there."""
    for line in text.splitlines():
        label, _, value = line.partition(":")
        if label == name:
            return int(value.split()[0]) * KIB
    return 0


def members(groups: Iterable[int]) -> list[int]:
    """Return all living processes of some process groups."""
    return [pid for group in groups for pid in process_group_members(group)]


def cpu_s(groups: Iterable[int]) -> float:
    """Return the processor seconds that these process groups have used so far."""
    ticks = 0
    for pid in members(groups):
        with contextlib.suppress(OSError):
            ticks += parse_stat(Path(f"/proc/{pid}/stat").read_text()).cpu_ticks
    return ticks / os.sysconf("SC_CLK_TCK")


def reset_peaks(groups: Iterable[int]) -> None:
    """Let `peak_bytes` start from what is resident now."""
    for pid in members(groups):
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text(RESET_PEAK)


def peak_bytes(groups: Iterable[int]) -> int:
    """Return the sum over processes of the highest resident size; shared pages count in each."""
    total = 0
    for pid in members(groups):
        with contextlib.suppress(OSError):
            total += parse_kib(Path(f"/proc/{pid}/status").read_text(), "VmHWM")
    return total


def pss_bytes(pid: int) -> int:
    """Return a process's proportional set size: shared pages divided among those who map them."""
    return parse_kib(Path(f"/proc/{pid}/smaps_rollup").read_text(), "Pss")


@contextlib.contextmanager
def pinned(groups: Iterable[int], cpu: int) -> Iterator[None]:
    """Keep every thread of these groups on one processor inside the block."""
    before = {}
    for pid in members(groups):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                thread = int(task.name)
                before[thread] = os.sched_getaffinity(thread)
                os.sched_setaffinity(thread, {cpu})
    try:
        yield
    finally:
        for thread, cpus in before.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(thread, cpus)

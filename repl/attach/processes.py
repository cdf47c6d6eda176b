"""Processes that outlive a command, named so that a later command cannot mistake them."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process: its number, the tick of its start, and the boot in which that was counted."""

    pid: int
    started_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Name a process that lives; for one that does not, a name that nobody has."""
        return cls(pid, _start_of(pid) or -1, boot_id())

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> ProcessId:
        """Return what `to_json` described; raises KeyError, TypeError or ValueError."""
        return cls(int(fields["pid"]), int(fields["started_ticks"]), str(fields["boot_id"]))

    def to_json(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "started_ticks": self.started_ticks,
            "boot_id": self.boot_id,
        }

    @property
    def alive(self) -> bool:
        """Whether it lives; a zombie does not."""
        return self.boot_id == boot_id() and _start_of(self.pid) == self.started_ticks

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if it lives."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def _start_of(pid: int) -> int | None:
    """Return the tick in which a living process was started."""
    try:
        # The name in brackets may hold anything; what follows the last bracket is regular.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


@cache
def boot_id() -> str:
    """Return the kernel's id of this boot; "" when it cannot be told."""
    try:
        return Path(BOOT_ID).read_text(encoding="ascii").strip()
    except OSError:
        return ""

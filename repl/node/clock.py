"""The clock that a volume goes by, and the boot that its machine is in.

The clock also runs while the machine is suspended: one that was asleep, or a virtual one that was
paused, has been absent, and its peers have not waited. `time.monotonic` would hide that on Linux.
"""

from __future__ import annotations

import time
from pathlib import Path

BOOT_ID_PATH = "/proc/sys/kernel/random/boot_id"


def volume_now_s() -> float:
    """Return seconds since the boot; never goes back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the kernel's id of this boot; empty when it cannot be told."""
    try:
        return Path(BOOT_ID_PATH).read_text(encoding="ascii").strip()
    except OSError:
        return ""

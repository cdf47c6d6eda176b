"""How much room a sparse backing has left to grow into. Asks the filesystem, changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from repl.store.backing import Backing
from repl.store.stamp import BackingKind

#: Less free space than this part of the volume is low, if the backing may still need more.
LOW_PART = 0.1


@dataclass(frozen=True, slots=True)
class Space:
    """All in bytes. `needed_bytes` is what the backing does not occupy yet."""

    free_bytes: int
    needed_bytes: int
    size_bytes: int

    @property
    def low(self) -> bool:
        """Whether the backing may soon find no room."""
        return self.free_bytes < min(self.needed_bytes, int(self.size_bytes * LOW_PART))

    def to_json(self) -> dict[str, Any]:
        """Return what status shows."""
        return {
            "free_bytes": self.free_bytes,
            "needed_bytes": self.needed_bytes,
            "low": self.low,
        }


def space_of(backing: Backing) -> Space | None:
    """Return the room under a backing file; None for a device, which has all it will ever need.

    Where the system does not say, None too.
    """
    if backing.kind is not BackingKind.FILE:
        return None
    try:
        filesystem = os.fstatvfs(backing.fileno())
        occupied = os.fstat(backing.fileno()).st_blocks * 512
    except OSError:
        return None
    free = filesystem.f_bavail * filesystem.f_frsize
    return Space(free, max(0, backing.size_bytes - occupied), backing.size_bytes)

"""Small disks that can be filled up: a tmpfs for a backing file, and a file that takes its room.

Needs root, for mount(2).
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.daemon import MIB, Node

#: Two copies of a volume of 16 MiB fit when nothing else is there.
DISK_BYTES = 32 * MIB
#: What the filler leaves free.
FREE_BYTES = 2 * MIB
#: A tmpfs counts its room in these.
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A tmpfs of `DISK_BYTES` on `folder`, unmounted at the end."""
    folder.mkdir(parents=True)
    size = f"size={DISK_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def filler(node: Node) -> Path:
    assert node.disk_folder is not None
    return node.disk_folder / "filler"


def fill(node: Node, taken_bytes: int = DISK_BYTES - FREE_BYTES) -> None:
    """Leave so little room on the node's disk that the volume does not fit any more."""
    used = node.backing().stat().st_blocks * 512
    filler(node).write_bytes(b"f" * (taken_bytes - used))


def fill_up(node: Node, room_bytes: int) -> None:
    """Take all room on the node's disk but `room_bytes`, whatever is being written meanwhile."""
    assert node.disk_folder is not None
    with contextlib.suppress(OSError), filler(node).open("ab", buffering=0) as file:
        while (free := os.statvfs(node.disk_folder).f_bavail * PAGE_BYTES) > room_bytes:
            file.write(bytes(min(MIB, free - room_bytes)))


def make_room(node: Node) -> None:
    filler(node).unlink(missing_ok=True)

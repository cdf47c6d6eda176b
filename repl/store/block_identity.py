"""A block device's own identity, as the kernel shows it in sysfs.

A device number names a place in this boot's list, not a disk; what survives a reboot and a change
of order is the disk's serial or world-wide number, with the partition's number behind it.
"""

from __future__ import annotations

import os

#: Files below a disk's sysfs folder that hold its identity, the best first.
_IDENTITY_FILES = ("dm/uuid", "wwid", "device/wwid", "serial", "device/serial", "md/uuid")


def block_identity(device: int, sysfs: str = "/sys/dev/block") -> str:
    """Return the identity of the block device with this st_rdev; empty if it shows none."""
    folder = os.path.realpath(f"{sysfs}/{os.major(device)}:{os.minor(device)}")
    partition = _read(f"{folder}/partition")
    disk = os.path.dirname(folder) if partition else folder
    for file in _IDENTITY_FILES:
        text = _read(f"{disk}/{file}")
        if text:
            kind = file.rpartition("/")[2]
            return f"{kind}:{text}" + (f":partition-{partition}" if partition else "")
    return ""


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return " ".join(file.read().split())
    except OSError:
        return ""

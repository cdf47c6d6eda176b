"""How a backing is recognised again: what is remembered of it, and when two sightings are one.

Owns the record and the comparison, both pure. Reading a stamp off a real backing is `backing.py`.
The comparison has to survive a reboot, which may renumber devices, and has to notice a file that
was deleted and made anew, which may get the same inode number.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class BackingKind(enum.Enum):
    """What a backing is."""

    FILE = "file"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Stamp:
    """What is remembered of a backing. An unknown field is 0 or empty."""

    kind: BackingKind
    size_bytes: int
    #: st_dev of a file, st_rdev of a block device; for people only, since a reboot changes it.
    device: int = 0
    inode: int = 0
    #: Whether the backing could carry an extended attribute when the stamp was taken.
    taggable: bool = False
    #: Random id in an extended attribute of the file, hexadecimal.
    tag: str = ""
    #: A block device's own identity (a serial or world-wide number with the partition).
    serial: str = ""
    #: The file is being created under this tag and holds no data yet; see `open.py`.
    creating: bool = False


def difference(recorded: Stamp, found: Stamp) -> str:
    """Say in one clause why `found` is not the backing that was recorded; empty if it is.

    Sizes are the caller's to compare, because another size is another error.
    """
    if recorded.kind is not found.kind:
        return f"the metadata was made for a {_noun(recorded)}, this is a {_noun(found)}"
    if recorded.kind is BackingKind.BLOCK:
        if recorded.serial != found.serial:
            shown = found.serial or "nothing"
            return f"the device identifies itself as {shown}, not as {recorded.serial or 'nothing'}"
        return ""
    if recorded.tag and found.tag:
        if recorded.tag != found.tag:
            return f"the file carries the id {found.tag}, not {recorded.tag}"
        return ""
    if recorded.tag and found.taggable:
        return f"the file carries no id, and the one that was recorded has {recorded.tag}"
    if recorded.inode != found.inode:
        return f"the file has inode number {found.inode}, not {recorded.inode}"
    return ""


def _noun(stamp: Stamp) -> str:
    return "regular file" if stamp.kind is BackingKind.FILE else "block device"

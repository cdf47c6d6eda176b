"""The kernel's table of mounts, parsed. Pure. See proc(5), /proc/pid/mountinfo."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line: `device` is "major:minor" of the filesystem, `source` what it was mounted from."""

    point: str
    kind: str
    source: str
    device: str


def parse_mounts(table: bytes) -> list[Mount]:
    """Return the mounts of a mountinfo table; a line that is none is passed over."""
    mounts = []
    for line in table.splitlines():
        left, separator, right = line.partition(b" - ")
        fields, more = left.split(b" "), right.split(b" ")
        if separator and len(fields) >= 6 and len(more) >= 2:
            mounts.append(
                Mount(_text(fields[4]), _text(more[0]), _text(more[1]), fields[2].decode())
            )
    return mounts


def at(mounts: Iterable[Mount], point: str) -> Mount | None:
    """Return what is mounted on exactly this directory: the last one, which covers the others."""
    found = [mount for mount in mounts if mount.point == point]
    return found[-1] if found else None


def of_device(mounts: Iterable[Mount], path: str) -> list[Mount]:
    """Return the mounts of a block device."""
    number = device_number(path)
    return [mount for mount in mounts if mount.source == path or mount.device == number]


def device_number(path: str) -> str:
    """Return "major:minor" of a block device; "" if it is not there."""
    try:
        number = os.stat(path).st_rdev
    except OSError:
        return ""
    return f"{os.major(number)}:{os.minor(number)}"


def _text(field: bytes) -> str:
    """Undo the table's escapes: a space, tab, newline or backslash is a backslash and its octal."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))

"""Which backing is recognised as the recorded one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl.store.stamp import BackingKind, Stamp, difference

FILE = Stamp(BackingKind.FILE, 4096, device=1, inode=5, taggable=True, tag="aa")
PLAIN = Stamp(BackingKind.FILE, 4096, device=1, inode=5)
BLOCK = Stamp(BackingKind.BLOCK, 4096, device=9, serial="wwid:1")


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        (FILE, replace(FILE, device=2)),  # a reboot renumbered the filesystem
        (FILE, replace(FILE, inode=6)),  # moved with its attributes
        (FILE, replace(FILE, taggable=False, tag="")),  # mounted without attributes
        (PLAIN, PLAIN),
        (PLAIN, replace(PLAIN, device=2)),
        (BLOCK, replace(BLOCK, device=10)),
        (replace(BLOCK, serial=""), replace(BLOCK, serial="", device=10)),
    ],
)
def test_the_same_backing_is_recognised(recorded: Stamp, found: Stamp) -> None:
    assert difference(recorded, found) == ""


@pytest.mark.parametrize(
    ("recorded", "found", "reason"),
    [
        (FILE, replace(FILE, tag="bb"), "carries the id bb, not aa"),
        (FILE, replace(FILE, tag=""), "carries no id"),  # made anew, the inode number used again
        (FILE, replace(FILE, taggable=False, tag="", inode=6), "inode number 6, not 5"),
        (PLAIN, replace(PLAIN, inode=6), "inode number 6, not 5"),
        (BLOCK, replace(BLOCK, serial="wwid:2"), "identifies itself as wwid:2"),
        (BLOCK, replace(BLOCK, serial=""), "identifies itself as nothing"),
        (BLOCK, FILE, "made for a block device, this is a regular file"),
    ],
)
def test_another_backing_is_noticed(recorded: Stamp, found: Stamp, reason: str) -> None:
    assert reason in difference(recorded, found)

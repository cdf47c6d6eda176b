"""What a device holds, making a filesystem on it, and what must happen before one is mounted.

It is looked at on the device itself, past every cache of an earlier look (`blkid -p`). Nothing is
ever made over data: a device counts as blank only if no signature is on it and all of it reads as
zeroes. Every filesystem is made so that it can be mounted on the other node too, however that one
attaches the volume: with blocks no smaller than any device's sectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from repl.attach.blankness import Extents, Progress
from repl.attach.machine import Machine, tool_missing
from repl.errors import Refused, ReplError

#: mkfs programs with their options. The volume is zeroes already where it matters, and discarding
#: all of it first would mark every extent of it as written to.
MAKERS: Final[dict[str, tuple[str, ...]]] = {
    "ext4": ("mkfs.ext4", "-q", "-b", "4096", "-E", "nodiscard"),
    "xfs": ("mkfs.xfs", "-q", "-K", "-s", "size=4096"),
}
_EXT: Final = ("ext2", "ext3", "ext4")
_BLKID_NOTHING: Final = 2
#: e2fsck(8): 0 no errors, 1 errors corrected.
_E2FSCK_GOOD: Final = (0, 1)
_USAGE_FILESYSTEM: Final = "filesystem"


@dataclass(frozen=True, slots=True)
class Content:
    """What is on a device: a filesystem's type, or something else in words, or nothing."""

    filesystem: str = ""
    other: str = ""

    @property
    def blank(self) -> bool:
        return not self.filesystem and not self.other


def look_at(machine: Machine, device: str, extents: Extents, progress: Progress) -> Content:
    """Return what a device holds. Raises ReplError if it cannot be looked at.

    extents: which parts of it may hold data at all; nothing else of it is read.
    """
    ran = machine.run("blkid", "--probe", "--output", "export", device)
    if ran.status == 0:
        fields = dict(line.split("=", 1) for line in ran.said.splitlines() if "=" in line)
        kind, table = fields.get("TYPE", ""), fields.get("PTTYPE", "")
        if kind and fields.get("USAGE") == _USAGE_FILESYSTEM:
            return Content(filesystem=kind)
        return Content(other=kind or (f"a {table} partition table" if table else "a signature"))
    if ran.status != _BLKID_NOTHING:
        # 8 of blkid(8): several signatures at once, which is more than nothing in any case.
        return Content(other=f"signatures that contradict each other ({ran.last_line})")
    try:
        first = machine.first_data(device, extents, progress)
    except OSError as error:
        raise ReplError(
            f"{device} cannot be read.",
            error.strerror or str(error),
            "see what the daemon says:  replctl status",
            code="MOUNT_FAILED",
        ) from error
    if first is None:
        return Content()
    return Content(other=f"data of no known kind, the first of it at byte {first}")


def check_maker(machine: Machine, kind: str) -> None:
    """Raise Refused (TOOL_MISSING) if filesystems of that kind cannot be made here."""
    program = MAKERS[kind][0]
    if not machine.has(program):
        raise tool_missing(program)


def make(machine: Machine, volume: str, device: str, kind: str) -> None:
    """Make a filesystem on a device that was seen to be blank. Raises ReplError."""
    ran = machine.run_writing(*MAKERS[kind], device)
    if ran.status:
        others = [f"--mkfs {name}" for name in MAKERS if name != kind]
        raise ReplError(
            f"No {kind} could be made on {volume}.",
            f"{MAKERS[kind][0]}: {ran.refusal}",
            f"choose another kind:  {' or '.join(others)}",
            code="MKFS_FAILED",
        )


def unmake(machine: Machine, volume: str, device: str, extents: Extents) -> None:
    """Make a device blank again on which a filesystem was being made, by nobody any more.

    Raises ReplError.
    """
    try:
        machine.zero_out(device, extents)
    except OSError as error:
        raise ReplError(
            f"{volume} holds a part of a filesystem.",
            f"{device} could not be filled with zeroes again: {error.strerror or error}",
            f"clear it:  {clearing(volume)}",
            code="MKFS_FAILED",
        ) from error


def clearing(volume: str, *, promote: bool = False, detach: bool = True) -> str:
    """Return the command that fills all of a volume with zeroes, whatever is on it.

    Signatures are cleared first, since blkdiscard asks about them; it refuses what is in use.
    """
    steps = [f"replctl promote {volume}"] if promote else []
    steps += [f"D=$(replctl attach {volume})", "wipefs -a $D", "blkdiscard -z $D"]
    steps += [f"replctl detach {volume}"] if detach else []
    return " && ".join(steps)


def prepare(machine: Machine, volume: str, device: str, kind: str) -> None:
    """Do before mounting what the kind of filesystem needs after a crash. Raises Refused.

    The ext family: the journal is replayed, and a filesystem that is marked as damaged is checked,
    by `e2fsck -p`, which mends only what is safe. Others replay their log when they are mounted.
    """
    if kind not in _EXT or not machine.has("e2fsck"):
        return
    ran = machine.run("e2fsck", "-p", device)
    if ran.status not in _E2FSCK_GOOD:
        raise Refused(
            f"The {kind} on {volume} is damaged; it was not mounted.",
            f"e2fsck: {ran.last_line}",
            f"replctl attach {volume}, then check it yourself:  e2fsck -f DEVICE",
            code="FSCK_FAILED",
        )

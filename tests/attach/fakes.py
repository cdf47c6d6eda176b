"""A machine, a daemon and attachments that only remember what was done to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from repl.attach.attaching import Attachment, Attachments, Leftover, Started
from repl.attach.blankness import Extents, Progress
from repl.attach.machine import Machine, Ran, tool_missing
from repl.attach.mounts import Mount
from repl.attach.processes import ProcessId
from repl.attach.ways import Availability, permitted
from repl.errors import Refused, ReplError

DEVICE = "/dev/fake0"
NOTHING_FOUND = Ran(2, "")
EXT4 = Ran(0, "DEVNAME=/dev/fake0\nUUID=1\nTYPE=ext4\nUSAGE=filesystem\n")


class Diary(list[str]):
    """What was done, in order; and what is to go wrong when it comes to a given entry."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: dict[str, BaseException] = {}

    def note(self, entry: str) -> None:
        self.append(entry)
        if entry in self.trouble:
            raise self.trouble[entry]


class FakeMachine(Machine):
    """Programs succeed unless told otherwise; mount and umount change the table of mounts."""

    def __init__(self, diary: Diary | None = None) -> None:
        self.diary = diary if diary is not None else Diary()
        self.root = True
        self.lacks: set[str] = set()
        #: What a program says, by its name.
        self.says: dict[str, Ran] = {"blkid": EXT4}
        self.table: list[Mount] = []
        self.writing = False
        #: Where the first byte is that is not zero.
        self.first: int | None = None
        self.claimed: set[str] = set()
        self.held_by: list[str] = []
        self.held_elsewhere_by: list[str] = []
        self.commands: list[tuple[str, ...]] = []
        self.after: Callable[[str], None] = lambda program: None

    def is_root(self) -> bool:
        return self.root

    def has(self, program: str) -> bool:
        return program not in self.lacks

    def run(
        self,
        *command: str,
        timeout_s: float | None = None,
        started: Callable[[int], None] | None = None,
    ) -> Ran:
        program = command[0]
        if program in self.lacks:
            raise tool_missing(program)
        self.commands.append(command)
        if program == "blkid":
            return self.says[program]
        if started is not None:
            started(os.getpid())
        self.diary.note(program)
        ran = self.says.get(program, Ran(0, ""))
        if ran.status == 0 and program == "mount":
            kind, device, point = command[2], command[-2], command[-1]
            self.table.append(Mount(point, kind, device, "7:99"))
        if ran.status == 0 and program == "umount":
            self.table = [mount for mount in self.table if mount.point != command[-1]]
        self.after(program)
        return ran

    def run_writing(self, *command: str) -> Ran:
        self.writing = True
        ran = self.run(*command)
        self.writing = False
        return ran

    def end_writing(self) -> None:
        if self.writing:
            self.diary.note("end writing")

    def zero_out(self, device: str, extents: Extents) -> None:
        self.diary.note("zero out")

    def mounts(self) -> list[Mount]:
        return list(self.table)

    def holders(self, paths: Sequence[str]) -> list[str]:
        return list(self.held_by)

    def holders_elsewhere(self, device: str) -> list[str]:
        return list(self.held_elsewhere_by)

    def is_claimed(self, device: str) -> bool:
        return device in self.claimed

    def first_data(self, device: str, extents: Extents, progress: Progress) -> int | None:
        return self.first


class FakeVolumes:
    """A daemon with one volume."""

    def __init__(self, diary: Diary, role: str = "secondary") -> None:
        self.diary = diary
        self.current = role
        self.others: list[str] = []
        self.vouched: list[str | None] = []

    def role(self, volume: str) -> str:
        if "role" in self.diary.trouble:
            raise self.diary.trouble["role"]
        return self.current

    def primaries(self) -> list[str]:
        return ["r0"] if self.current == "primary" else []

    def other_clients(self, volume: str, own_pid: int) -> list[str]:
        return self.others

    def promote(self, volume: str, peer_dead: str | None) -> None:
        self.vouched.append(peer_dead)
        self.diary.note("promote")
        self.current = "primary"

    def demote(self, volume: str, timeout_s: float = 120.0) -> None:
        self.diary.note("demote")
        self.current = "secondary"

    def address(self, volume: str) -> str:
        if "address" in self.diary.trouble:
            raise self.diary.trouble["address"]
        return "/run/repl/nbd.sock"


class FakeAttachments(Attachments):
    """At most one attachment, of any volume."""

    def __init__(self, diary: Diary, machine: FakeMachine, run: Path) -> None:
        super().__init__(run, machine, _never_start)
        self.diary = diary
        self.current: Attachment | None = None
        self.left: Leftover | None = None

    def find(self, volume: str) -> Attachment | None:
        return self.current if self.current is not None and self.current.volume == volume else None

    def all(self) -> Iterator[Attachment]:
        return iter([self.current] if self.current is not None else [])

    def left_with(self, mount: Mount) -> Leftover | None:
        return self.left

    def clear_leftovers(self, volume: str, *, force: bool = False) -> None:
        if self.left is not None:
            self.diary.note("clear by force" if force else "clear")
            self.left = None

    def attach(
        self, volume: str, address: str, made_by: str, dead_after_s: float = 5.0, way: str = ""
    ) -> Attachment:
        found = self.find(volume)
        if found is not None:
            return found
        self.diary.note("attach")
        self.current = Attachment(volume, DEVICE, "fake", made_by)
        return Attachment(volume, DEVICE, "fake", made_by, new=True)

    def detach(self, volume: str, *, force: bool = False) -> None:
        self.diary.note("cut off" if force else "detach")
        self.current = None


def _never_start(order: dict[str, Any]) -> Started:
    raise AssertionError("no guardian is started here")


class FakeWay:
    """A way that makes no device."""

    name = "fake"
    relayed = False
    outlives_guardian = False
    program: ProcessId | None = None

    def __init__(self, diary: Diary) -> None:
        self.diary = diary
        self.mark = "fake mark"
        self.permit = permitted

    def available(self) -> Availability:
        return Availability(True)

    def attach(self, address: str, export: str) -> Path:
        self.diary.note("attach")
        return Path(DEVICE)

    def detach(self, device: Path) -> None:
        self.diary.note("detach")

    def cut_off(self, device: Path | None) -> None:
        self.diary.note("cut off")

    def owns(self, device: Path) -> bool:
        return True


def refusal(what: str = "It is refused.", code: str = "VOLUME_BUSY") -> Refused:
    return Refused(what, "a test says so", "nothing", code=code)


def failure(what: str = "It failed.") -> ReplError:
    return ReplError(what, "a test says so", "nothing")

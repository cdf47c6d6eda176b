"""`attach` and `detach`, from the side of the command: start a guardian, find it again, end it.

What is attached is known from the records beside the daemon's control socket, and each is checked
against what is really there. A record whose guardian is dead is what a crash has left: it is
cleared before anything else happens, whichever command comes first.
"""

from __future__ import annotations

import contextlib
import json
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from repl.attach import mounts
from repl.attach.cutting import cut_off
from repl.attach.lifeline import DEAD_AFTER_S
from repl.attach.machine import Machine
from repl.attach.mounts import Mount
from repl.attach.record import (
    Folder,
    Phase,
    Record,
    Unmount,
    folders,
    locked_directory,
    still_unmounting,
)
from repl.attach.ways import Way
from repl.errors import PermissionRefused, Refused, ReplError, TimedOut, from_json

#: For a guardian to say that the device is there: the daemon may hold a client that long.
ATTACH_TIMEOUT_S: Final = 60.0
#: For a guardian to end: it flushes the device first.
END_TIMEOUT_S: Final = 40.0
CUT_TIMEOUT_S: Final = 20.0
#: For a device that is being given back to be gone, before a command that wants it says so.
GIVEN_BACK_TIMEOUT_S: Final = 5.0
#: The same while others have it open: udev does, but only for a moment.
HELD_TIMEOUT_S: Final = 0.5
POLL_PAUSE_S: Final = 0.05
ANSWER_BYTES_MAX: Final = 64 << 10


class Started(Protocol):
    """A guardian that was started: its process, and the pipe on which it answers with one line."""

    stdout: Any

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int) -> None: ...


#: Starts a guardian with its order; the command line knows which program that is.
Start = Callable[[dict[str, Any]], Started]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A volume's device; `new` if this command attached it."""

    volume: str
    device: str
    way: str
    made_by: str
    frozen: str = ""
    new: bool = False
    #: The process that holds the volume as a client of the daemon.
    guardian_pid: int = 0


@dataclass(frozen=True, slots=True)
class Leftover:
    """An attachment whose guardian is dead; `works` if its device may not be."""

    volume: str
    works: bool


def ways_for(machine: Machine, folder: Folder, record: Record | None = None) -> list[Way]:
    """Return every way there is, best first; with a record, so that they know its device again."""
    # Loaded only where a device is made or taken away: the command line starts with this module.
    from repl.attach.kernel_way import KernelWay
    from repl.attach.nbdfuse import NbdfuseWay

    mark, program = (record.mark, record.program) if record is not None else ("", None)
    return [KernelWay(mark), NbdfuseWay(machine, folder.path, mark, program)]


class Attachments:
    """The attachments of one node; `run` is the folder of the daemon's control socket."""

    def __init__(self, run: Path, machine: Machine, start: Start) -> None:
        self._run = run
        self._machine = machine
        self._start = start

    def check_allowed(self) -> None:
        """Raise PermissionRefused unless this user may make devices and mounts."""
        if not self._machine.is_root():
            raise PermissionRefused(
                "Only root may attach and mount volumes.",
                "the kernel lets nobody else make a block device or a mount",
                "run the command as root",
            )

    def locked(
        self, volume: str, *, force: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the volume's lock; every method below that changes something needs it.

        force: for a `detach` by force. A guardian that lives is cut off by a signal to it, which
        needs no lock: the command that has it may wait for the very device that is to be cut off.
        """
        folder = Folder(self._run, volume)
        record = folder.load() if force else None
        if record is not None and record.guardian.alive:
            return contextlib.nullcontext()
        return folder.locked()

    def note_unmount(self, volume: str, directory: str, pid: int) -> None:
        """Keep which process unmounts a volume from where."""
        Folder(self._run, volume).note_unmount(directory, pid)

    def unmount_of(self, volume: str) -> Unmount | None:
        """Return the unmounting of a volume that is under way."""
        return Folder(self._run, volume).unmount()

    def locked_directory(self, directory: str) -> contextlib.AbstractContextManager[None]:
        """Hold the lock of a directory to mount on. Raises Refused (ATTACH_BUSY), OSError."""
        return locked_directory(self._run, directory)

    def all(self) -> Iterator[Attachment]:
        """Yield what is attached and guarded."""
        for folder in folders(self._run):
            found = self.find(folder.volume)
            if found is not None:
                yield found

    def find(self, volume: str) -> Attachment | None:
        """Return the volume's attachment if it is guarded."""
        record = Folder(self._run, volume).load()
        if record is None or record.phase is not Phase.ATTACHED or not record.guardian.alive:
            return None
        return Attachment(
            volume,
            record.device,
            record.way,
            record.made_by,
            record.frozen,
            guardian_pid=record.guardian.pid,
        )

    def left_with(self, mount: Mount) -> Leftover | None:
        """Return what a crash has left under this mount; None if that is guarded or not ours."""
        for folder in folders(self._run):
            record = folder.load()
            if record is None or record.guardian.alive or not record.device:
                continue
            way = self._way_of(folder, record)
            if mounts.of_device([mount], record.device) and way.owns(Path(record.device)):
                return Leftover(folder.volume, way.outlives_guardian)
        return None

    def _way_of(self, folder: Folder, record: Record) -> Way:
        ways = ways_for(self._machine, folder, record)
        return next(way for way in ways if way.name == record.way)

    def clear_leftovers(self, volume: str, *, force: bool = False) -> None:
        """Take away what a crash has left of the volume's attachment.

        Raises Refused (DEVICE_IN_USE) for a device that still works and is used, unless forced.
        """
        folder = Folder(self._run, volume)
        record = folder.load()
        if (record is not None and record.guardian.alive) or not folder.path.exists():
            return
        if record is None:
            for way in ways_for(self._machine, folder):
                way.cut_off(None)
        else:
            way = self._way_of(folder, record)
            device = Path(record.device) if record.device else None
            if device is not None and way.owns(device):
                if way.outlives_guardian and not force:
                    self.check_unused(record.device, volume)
                cut_off(way, self._machine, device)
            else:
                way.cut_off(None)
        folder.remove()

    def attach(
        self,
        volume: str,
        address: str,
        made_by: str,
        dead_after_s: float = DEAD_AFTER_S,
        way: str = "",
    ) -> Attachment:
        """Return the volume's device, attaching it if it is not. Raises ReplError.

        address: where its export is, the path of a Unix socket or `HOST:PORT`.
        way: the name of the way to take; the best there is if none is named.
        """
        self.await_settled(volume)
        self.clear_leftovers(volume)
        found = self.find(volume)
        if found is not None:
            return found
        Folder(self._run, volume).make()
        started = self._start(
            {
                "run": str(self._run),
                "volume": volume,
                "address": address,
                "made_by": made_by,
                "dead_after_s": dead_after_s,
                "way": way,
            }
        )
        try:
            device = self._answer_of(started, volume)
        except BaseException:
            started.send_signal(signal.SIGUSR1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(CUT_TIMEOUT_S)
            raise
        record = Folder(self._run, volume).load()
        taken = record.way if record is not None else ""
        return Attachment(volume, device, taken, made_by, new=True)

    def detach(self, volume: str, *, force: bool = False) -> None:
        """End the volume's attachment. Raises ReplError, and then it is as it was.

        Unless it raises TimedOut: then the device is given back as soon as nothing holds it, and
        `await_settled` refuses what would use it until then.

        force: cut it off, whoever uses it and whether or not its requests are answered.
        """
        record = Folder(self._run, volume).load()
        if record is None or not record.guardian.alive:
            if self._was_left(volume, force):
                return
            raise Refused(
                f"{volume} is not attached on this node.",
                "it was not attached, or it was cut off: because the daemon was gone, or another "
                "node became primary",
                f"nothing is left to do; its state:  replctl status {volume}",
                code="NOT_ATTACHED",
            )
        if force:
            record.guardian.signal(signal.SIGUSR1)
            self._wait_for_end(record, CUT_TIMEOUT_S)
            return
        self.check_unused(record.device, volume)
        if record.frozen:
            raise frozen_refusal(volume, record.frozen, f"replctl detach {volume} --force")
        record.guardian.signal(signal.SIGTERM)
        self._wait_for_end(record, END_TIMEOUT_S)

    def check_unused(self, device: str, volume: str) -> None:
        """Raise Refused (DEVICE_IN_USE) if a device is mounted or claimed."""
        mounted = mounts.of_device(self._machine.mounts(), device) if device else []
        if mounted:
            point = mounted[-1].point
            raise Refused(
                f"{volume} is mounted on {point}.",
                f"its device {device} cannot be taken away under a filesystem",
                f"replctl umount {shlex.quote(point)}",
                code="DEVICE_IN_USE",
            )
        if device and self._machine.is_claimed(device):
            unmount = self.unmount_of(volume)
            if unmount is not None:
                raise still_unmounting(volume, unmount)
            elsewhere = self._machine.holders_elsewhere(device)
            raise Refused(
                f"{device}, the device of {volume}, is in use.",
                "it is still mounted in containers or services with a file tree of their own: "
                + ", ".join(elsewhere[:8])
                if elsewhere
                else "something has it for itself: swap, a volume group, a RAID, fsck or mkfs",
                f"end these, then:  replctl detach {volume}"
                if elsewhere
                else f"see what:  lsblk {device}",
                code="DEVICE_IN_USE",
            )

    def _was_left(self, volume: str, force: bool) -> bool:
        folder = Folder(self._run, volume)
        if not folder.path.exists():
            return False
        self.clear_leftovers(volume, force=force)
        return True

    def await_settled(self, volume: str) -> None:
        """Wait while a guardian is between two states: its command has been killed, or timed out.

        Raises Refused (ATTACH_BUSY) for a device that is being given back and is not gone soon.
        """
        began_s = time.monotonic()
        while True:
            record = Folder(self._run, volume).load()
            if record is None or record.phase is Phase.ATTACHED or not record.guardian.alive:
                return
            waited_s = time.monotonic() - began_s
            if record.phase is Phase.ENDING:
                holders = self._holders(record)
                if waited_s > (HELD_TIMEOUT_S if holders else GIVEN_BACK_TIMEOUT_S):
                    raise still_detaching(record, holders)
            elif waited_s > END_TIMEOUT_S:
                raise self._too_late(record)
            time.sleep(POLL_PAUSE_S)

    def _wait_for_end(self, record: Record, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        while record.guardian.alive:
            if time.monotonic() > deadline_s:
                raise self._too_late(record)
            time.sleep(POLL_PAUSE_S)

    def _too_late(self, record: Record) -> TimedOut:
        holders = self._holders(record)
        return TimedOut(
            f"{record.volume} is still attached.",
            f"these processes use {record.device}: {', '.join(holders)}"
            if holders
            else "its guardian did not end; it may wait for the daemon",
            f"it ends by itself, or:  replctl detach {record.volume} --force",
        )

    def _holders(self, record: Record) -> list[str]:
        """Return who uses the device besides its guardian, as `Machine.holders` does."""
        if not record.device:
            return []
        own = f"{record.guardian.pid} ("
        found = self._machine.holders([record.device])
        return [holder for holder in found if not holder.startswith(own)]

    def _answer_of(self, started: Started, volume: str) -> str:
        """Return the device that a guardian announces. Raises its error, or TimedOut."""
        deadline_s = time.monotonic() + ATTACH_TIMEOUT_S
        line = b""
        while not line.endswith(b"\n") and len(line) < ANSWER_BYTES_MAX:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([started.stdout], [], [], left_s)[0]:
                raise TimedOut(
                    f"{volume} could not be attached within {ATTACH_TIMEOUT_S:g} s.",
                    "the daemon holds the connection, since it does not serve the volume yet",
                    f"replctl status {volume}",
                )
            more = started.stdout.read1(ANSWER_BYTES_MAX)
            if not more:
                break
            line += more
        try:
            answer = json.loads(line)
            if "error" in answer:
                raise from_json(answer["error"])
            return str(answer["device"])
        except (ValueError, KeyError, TypeError):
            folder = Folder(self._run, volume)
            raise ReplError(
                f"{volume} could not be attached.",
                f"its guardian ended without a word: {folder.last_words() or 'no log'}",
                f"see {folder.log_path}",
                code="ATTACH_FAILED",
            ) from None


def not_primary(volume: str, role: str, command: str) -> Refused:
    """Return the refusal to attach a volume in this role; `command` makes it primary first."""
    return Refused(
        f"{volume} is {role} on this node; only a primary has a device.",
        "another node may be using it, and this copy may be older",
        f"make this node the primary:  {command}",
        code="NOT_PRIMARY",
    )


def still_detaching(record: Record, holders: list[str]) -> Refused:
    """Return the refusal of what would use a device that is being given back."""
    why = "its guardian writes out what is not written yet"
    if holders:
        why = f"these processes use {record.device}: {', '.join(holders[:8])}"
    elif record.frozen:
        why = f"its requests wait: {record.frozen}"
    volume = record.volume
    return Refused(
        f"{volume} is still being detached.",
        why,
        f"{'end them' if holders else 'wait'}, then run the command again   "
        f"(or give up what is not written yet:  replctl detach {volume} --force)",
        code="ATTACH_BUSY",
    )


def frozen_refusal(volume: str, reason: str, force: str) -> Refused:
    """Return the refusal of what would wait for a device whose requests wait."""
    return Refused(
        f"{volume} is frozen: its requests wait.",
        reason,
        f"see what would bring it back:  replctl status {volume}   "
        f"(or give up what is not written yet:  {force})",
        code="ATTACH_FROZEN",
    )

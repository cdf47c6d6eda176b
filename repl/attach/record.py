"""What is attached on this node, as files beside the daemon's control socket.

    RUN/attached/VOL/record.json    what a later command must know (`Record`)
    RUN/attached/VOL/guardian.pid   for a service manager
    RUN/attached/VOL/umount.json    who unmounts it, and from where (`Unmount`)
    RUN/attached/VOL/...            what the way to attach needs: sockets, mount points
    RUN/attached/.locks/VOL         held by the command that changes something
    RUN/attached/.locks/.directory-DEV-INODE
                                    held by the command that mounts there
    RUN/attached/.logs/VOL          what the guardian has said, kept after its end

A record is written before what it describes is made and removed after that is gone, so that a crash
at any point leaves a record of at least what there is. A volume's name cannot begin with a dot.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repl.attach.processes import ProcessId
from repl.config import UNIX_PATH_BYTES_MAX
from repl.errors import DaemonUnreachable, Refused, ReplError

FOLDER_NAME = "attached"
FOLDER_MODE = 0o700
UNMOUNT_NAME = "umount.json"


class Phase(enum.Enum):
    """Where an attachment is in its life."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class Record:
    """One attachment, from before anything of it exists until nothing of it does."""

    volume: str
    way: str
    guardian: ProcessId
    #: The command that attached it, "attach" or "mount": who made it undoes it.
    made_by: str
    phase: Phase
    #: The block device; empty while attaching.
    device: str = ""
    #: By which the way knows its device again.
    mark: str = ""
    #: The program that serves the device from user space, if the way has one.
    program: ProcessId | None = None
    #: Why requests wait; empty while they flow.
    frozen: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "volume": self.volume,
            "way": self.way,
            "guardian": self.guardian.to_json(),
            "made_by": self.made_by,
            "phase": self.phase.value,
            "device": self.device,
            "mark": self.mark,
            "program": None if self.program is None else self.program.to_json(),
            "frozen": self.frozen,
        }

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Record:
        """Return what `to_json` described; raises KeyError, TypeError or ValueError."""
        program = fields["program"]
        return cls(
            volume=str(fields["volume"]),
            way=str(fields["way"]),
            guardian=ProcessId.from_json(fields["guardian"]),
            made_by=str(fields["made_by"]),
            phase=Phase(fields["phase"]),
            device=str(fields["device"]),
            mark=str(fields["mark"]),
            program=None if program is None else ProcessId.from_json(program),
            frozen=str(fields["frozen"]),
        )


@dataclass(frozen=True, slots=True)
class Unmount:
    """An unmounting that is under way: it may wait for the volume, also after its command."""

    directory: str
    process: ProcessId


class Folder:
    """The files of one volume's attachment."""

    def __init__(self, run: Path, volume: str) -> None:
        self.volume = volume
        self._attached = run / FOLDER_NAME
        self.path = self._attached / volume
        self.log_path = self._attached / ".logs" / volume
        self.relay_socket = self.path / "relay.sock"

    def make(self) -> None:
        """Make the folders. Raises Refused if a socket in them would have too long a path."""
        if len(os.fsencode(self.relay_socket)) > UNIX_PATH_BYTES_MAX:
            raise Refused(
                f"{self.volume} cannot be attached: the path of its socket would be too long.",
                f"{self.relay_socket} has over {UNIX_PATH_BYTES_MAX} bytes",
                "use a control socket in a folder with a shorter path ([node] control)",
                code="ATTACH_IMPOSSIBLE",
            )
        for folder in (self.path, self.log_path.parent):
            folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Hold the volume's lock; raises Refused (ATTACH_BUSY) if another command has it."""
        return _locked(self._attached, self.volume, self.volume, self._busy)

    def _busy(self) -> Refused:
        unmount = self.unmount()
        if unmount is not None:
            return still_unmounting(self.volume, unmount)
        return Refused(
            f"{self.volume} is being attached, detached, mounted or unmounted.",
            "another command does that at this moment; two would be in each other's way",
            "wait until it has ended, then run the command again   "
            f"(if it never ends:  replctl detach {self.volume} --force)",
            code="ATTACH_BUSY",
        )

    def note_unmount(self, directory: str, pid: int) -> None:
        """Keep which process unmounts the volume from where, for as long as it lives."""
        fields = {"directory": directory, "process": ProcessId.of(pid).to_json()}
        # The guardian may end at any moment, and take the folder with it.
        with contextlib.suppress(OSError):
            (self.path / UNMOUNT_NAME).write_text(json.dumps(fields))

    def unmount(self) -> Unmount | None:
        """Return the unmounting that is under way."""
        try:
            fields = json.loads((self.path / UNMOUNT_NAME).read_bytes())
            found = Unmount(str(fields["directory"]), ProcessId.from_json(fields["process"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.process.alive else None

    def load(self) -> Record | None:
        """Return the record; None if there is none, or none that can be understood."""
        try:
            return Record.from_json(json.loads((self.path / "record.json").read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, record: Record) -> None:
        """Replace the record in one step."""
        new = self.path / "record.new"
        new.write_text(json.dumps(record.to_json(), indent=1) + "\n")
        new.rename(self.path / "record.json")
        if not (self.path / "guardian.pid").exists():
            (self.path / "guardian.pid").write_text(f"{record.guardian.pid}\n")

    def remove(self) -> None:
        """Remove the volume's files, the record last. Nothing may be mounted in here."""
        assert not os.path.ismount(self.path / "fuse"), self.path
        for entry in self.path.iterdir() if self.path.exists() else ():
            if entry.name == "record.json":
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        (self.path / "record.json").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def last_words(self) -> str:
        """Return the last line that the guardian logged."""
        try:
            lines = self.log_path.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


def locked_directory(run: Path, directory: str) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of a directory on which something is to be mounted.

    It goes by the directory itself, which may have several paths. Raises Refused (ATTACH_BUSY) if
    another command has it, and OSError if there is no such directory.
    """
    found = os.stat(directory)
    name = f".directory-{found.st_dev}-{found.st_ino}"
    busy = Refused(
        f"Another volume is being mounted on {directory}.",
        "another command does that at this moment; one would hide the other",
        "choose another directory, or wait until it has ended and run the command again",
        code="ATTACH_BUSY",
    )
    return _locked(run / FOLDER_NAME, name, directory, lambda: busy)


@contextlib.contextmanager
def _locked(attached: Path, name: str, what: str, busy: Callable[[], Refused]) -> Iterator[None]:
    descriptor = _open_lock(attached, name, what)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy() from None
        yield
    finally:
        os.close(descriptor)


def _open_lock(attached: Path, name: str, what: str) -> int:
    path = attached / ".locks" / name
    try:
        # The folder of the control socket is the daemon's to make.
        for folder in (attached, path.parent):
            folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise DaemonUnreachable(
            f"There is no folder {attached.parent}.",
            "the daemon keeps its control socket in it; it has not run, or it uses another one",
            "start it:  systemctl start repld   (or name its socket:  replctl --socket PATH)",
        ) from error
    except OSError as error:
        raise ReplError(
            f"{what} cannot be locked.",
            f"{path}: {error.strerror}",
            f"see who may write there:  ls -ld {attached.parent}",
            code="ATTACH_FAILED",
        ) from error


def still_unmounting(volume: str, unmount: Unmount) -> Refused:
    """Return the refusal of what cannot be done before an unmounting has ended."""
    return Refused(
        f"{volume} is still being unmounted from {unmount.directory}.",
        f"umount (pid {unmount.process.pid}) writes what is not written yet, and the volume may "
        "not answer",
        f"wait, or see why:  replctl status {volume}   (or give up what is not written yet:  "
        f"replctl umount {shlex.quote(unmount.directory)} --force)",
        code="ATTACH_BUSY",
    )


def folders(run: Path) -> list[Folder]:
    """Return the folder of each volume of which something may be attached."""
    try:
        names = sorted(entry.name for entry in (run / FOLDER_NAME).iterdir())
    except OSError:
        return []
    return [Folder(run, name) for name in names if not name.startswith(".")]

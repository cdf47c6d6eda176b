"""This node's tools and tables, at one thin edge: programs, mounts, processes, a device's content.

Everything else in the package goes through a `Machine`, so that tests can stand in for it. It
decides nothing; a tool that is missing or fails is a `ReplError` with the tool's own words.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from repl.attach import blankness
from repl.attach.blankness import Extents, Progress
from repl.attach.mounts import Mount, of_device, parse_mounts
from repl.errors import Refused, ReplError

SEARCH_PATH = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/local/sbin:/usr/sbin:/sbin"
#: What a program may say before the rest is cut off.
SAID_CHARACTERS_MAX = 2000
#: What ends a command, and what it was doing with it.
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: For a killed program to be gone: it cannot while a request of its own is under way.
KILLED_TIMEOUT_S = 30.0
#: The same where nothing depends on it.
KILL_WAIT_S = 1.0
MOUNT_TABLE = "/proc/self/mountinfo"

#: Which Debian package brings a program.
PACKAGES = {
    "nbdfuse": "libnbd-bin",
    "nbd-client": "nbd-client",
    "fusermount3": "fuse3",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "blkid": "util-linux",
    "mount": "mount",
    "umount": "mount",
}


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended, and what it said on both streams. A status below 0 is a signal."""

    status: int
    said: str

    @property
    def last_line(self) -> str:
        """What a failed program said last, on one line."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        return lines[-1] if lines else f"it ended with status {self.status}"

    @property
    def refusal(self) -> str:
        """What a failed program said, without the usage that it explained below that."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        usage = next((at for at, line in enumerate(lines) if line.startswith("Usage:")), 0)
        return lines[0] if usage else self.last_line

    @property
    def complaint(self) -> str:
        """All that a failed mount(8) said, on one line, without its pointer to the kernel's log."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        told = [line for line in lines if not line.startswith("dmesg(1)")]
        return " ".join(told) or self.last_line


class Machine:
    """The node that this process runs on."""

    _writer: subprocess.Popen[str] | None = None

    def is_root(self) -> bool:
        return os.geteuid() == 0

    def has(self, program: str) -> bool:
        return shutil.which(program, path=SEARCH_PATH) is not None

    def run(
        self,
        *command: str,
        timeout_s: float | None = None,
        started: Callable[[int], None] | None = None,
    ) -> Ran:
        """Run a program without a terminal; return how it ended. Raises Refused (TOOL_MISSING).

        One that takes longer than `timeout_s` is killed, and its status is that of SIGKILL.
        started: called with the program's pid as soon as there is one.
        """
        if started is None:
            process = _start(command)
        else:
            process = _start_undisturbed(command, lambda process: started(process.pid))
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as late:
            _kill(process)
            words = late.output.decode(errors="replace") if late.output else ""
            return Ran(-9, f"{words}\n{command[0]} did not end within {timeout_s:g} s")
        except BaseException:
            _kill(process)
            raise
        return Ran(process.returncode, said[-SAID_CHARACTERS_MAX:])

    def run_writing(self, *command: str) -> Ran:
        """Run a program that writes to a device, so that `end_writing` can end it."""

        def keep(process: subprocess.Popen[str]) -> None:
            self._writer = process

        process = _start_undisturbed(command, keep)
        said, _ = process.communicate()
        return Ran(process.returncode, said[-SAID_CHARACTERS_MAX:])

    def end_writing(self) -> None:
        """End what `run_writing` has begun and wait for it. Raises ReplError if it does not end."""
        if self._writer is None:
            return
        self._writer.kill()
        try:
            self._writer.wait(KILLED_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ReplError(
                "The program that makes the filesystem still writes to the device.",
                "its requests are not answered, so that it cannot even be killed",
                f"it ends when they are:  ps {self._writer.pid}",
                code="MKFS_FAILED",
            ) from None
        if self._writer.stdout is not None:
            self._writer.stdout.close()
        self._writer = None

    def zero_out(self, device: str, extents: Extents) -> None:
        """Make a device read as zeroes where it may hold data. Raises OSError."""
        blankness.zero_out(device, extents)

    def mounts(self) -> list[Mount]:
        """Return this process's mounts, in the order in which they were made."""
        return parse_mounts(Path(MOUNT_TABLE).read_bytes())

    def holders(self, paths: Sequence[str]) -> list[str]:
        """Return "pid (name)" of each other process that uses a path or anything below it."""
        held, me = [], str(os.getpid())
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != me and _uses(entry, paths):
                held.append(f"{entry.name} ({_name_of(entry)})")
        return held

    def holders_elsewhere(self, device: str) -> list[str]:
        """Return "pid (name)" of one process of each other mount namespace that has the device.

        A container, or a service with a file tree of its own, has copies of the mounts that were
        there when it began. What is unmounted here stays in use until it ends.
        """
        seen, held = {_namespace_of(Path("/proc/self"))}, []
        for entry in Path("/proc").iterdir():
            namespace = _namespace_of(entry) if entry.name.isdigit() else ""
            if not namespace or namespace in seen:
                continue
            seen.add(namespace)
            with contextlib.suppress(OSError):
                table = parse_mounts((entry / "mountinfo").read_bytes())
                if of_device(table, device):
                    held.append(f"{entry.name} ({_name_of(entry)})")
        return held

    def is_claimed(self, device: str) -> bool:
        """Whether something has a block device for itself: a mount, swap, RAID, the mapper."""
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False

    def first_data(self, device: str, extents: Extents, progress: Progress) -> int | None:
        """Return where a device's first byte is that is not zero, or None. Raises OSError."""
        return blankness.first_data(device, extents, progress)


def _start(
    command: Sequence[str], first: Callable[[], object] | None = None
) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C"},
            preexec_fn=first,
        )
    except FileNotFoundError:
        raise tool_missing(command[0]) from None


def _start_undisturbed(
    command: Sequence[str], started: Callable[[subprocess.Popen[str]], None]
) -> subprocess.Popen[str]:
    """Start a program; no signal falls between its start and `started`. For one thread only."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
    try:
        process = _start(command, lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before))
        started(process)
        return process
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a program; it may live on, since one that waits for a device cannot be killed."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_WAIT_S)
    if process.stdout is not None:
        process.stdout.close()


def tool_missing(program: str) -> Refused:
    """Return the error for a program that is not installed."""
    package = PACKAGES.get(program)
    return Refused(
        f"The program {program} is not installed.",
        "this command needs it",
        f"apt-get install {package}" if package else f"install {program}",
        code="TOOL_MISSING",
    )


def _name_of(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def _namespace_of(process: Path) -> str:
    """Return the name of a process's mount namespace; "" if it has ended."""
    try:
        return os.readlink(process / "ns/mnt")
    except OSError:
        return ""


def _uses(process: Path, paths: Sequence[str]) -> bool:
    links = [process / "cwd", process / "root", process / "exe"]
    with contextlib.suppress(OSError):
        links += list((process / "fd").iterdir())
    for link in links:
        # Only the link is read: following it could wait for a filesystem that hangs.
        with contextlib.suppress(OSError):
            target = os.readlink(link)
            if any(target == path or target.startswith(path + "/") for path in paths):
                return True
    return False

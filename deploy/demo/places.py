"""Where the demonstration keeps its files: an ext4 on the volume, or records where that cannot be.

`Filesystem` attaches the export as a file (nbdfuse), that file as a block device (losetup), and
mounts it. Nothing of it needs a kernel module for NBD. `Records` stands in where FUSE or loop
devices are not allowed: the same promises, without a filesystem.

Whatever happens, `detach` must leave no mount, loop device or process behind, also when the server
under it is dead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Protocol, Self

import writer
from nodes import DemoFailed, wait_until

TOOL_DEADLINE_S = 40.0
ATTACH_DEADLINE_S = 15.0


def tool(*command: str, allowed: tuple[int, ...] = (0,)) -> str:
    """Run a system tool; return what it said. Raises DemoFailed with its words."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TOOL_DEADLINE_S,
            env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DemoFailed(f"{' '.join(command)}: {error}") from None
    if done.returncode not in allowed:
        raise DemoFailed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


class Place(Protocol):
    """Something attached to one node's export that can be written to and checked."""

    def writer_arguments(self) -> list[str]: ...

    def digest(self, name: str) -> str:
        """Return the SHA-256 of what is stored under the name, as hexadecimal text."""
        ...

    def detach(self) -> None:
        """Take everything down; idempotent."""
        ...


class Filesystem:
    """An ext4 on one node's export, mounted through FUSE and a loop device."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._fuse_folder = folder / "fuse"
        self.mount_point = folder / "mnt"
        self._uri = uri
        self._nbdfuse: subprocess.Popen[bytes] | None = None
        self._mounted = False
        self.device = ""
        for path in (folder, self._fuse_folder, self.mount_point):
            path.mkdir(exist_ok=True)

    def attach(self) -> None:
        """Make the export a block device of this machine. Raises DemoFailed."""
        image = self._fuse_folder / "volume"
        self._nbdfuse = subprocess.Popen(
            ["nbdfuse", str(image), self._uri],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        nbdfuse = self._nbdfuse

        def appeared() -> bool:
            if nbdfuse.poll() is not None:
                raise DemoFailed(f"nbdfuse ended with status {nbdfuse.returncode}")
            return image.exists()

        wait_until(appeared, "nbdfuse shows the export as a file", ATTACH_DEADLINE_S)
        self.device = tool("losetup", "--find", "--show", str(image)).strip()

    def format(self) -> None:
        # Without a discard of the whole device first: untouched blocks stay untouched.
        tool("mkfs.ext4", "-q", "-E", "nodiscard", "-L", "repl-demo", self.device)

    def mount(self) -> None:
        tool("mount", "-o", "errors=remount-ro", self.device, str(self.mount_point))
        self._mounted = True

    def unmount(self) -> None:
        """Unmount a filesystem whose device works."""
        tool("umount", str(self.mount_point))
        self._mounted = False

    def replay_journal(self) -> str:
        """Let e2fsck repair what a crash may leave (the journal); return its words."""
        return tool("e2fsck", "-p", self.device, allowed=(0, 1))

    def check(self) -> str:
        """Let e2fsck look at everything and change nothing; it must find nothing."""
        return tool("e2fsck", "-f", "-n", self.device)

    def writer_arguments(self) -> list[str]:
        return ["files", str(self.mount_point)]

    def digest(self, name: str) -> str:
        path = self.mount_point / name
        if not path.exists():
            return "absent"
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def detach(self) -> None:
        if self._mounted:
            with contextlib.suppress(DemoFailed):
                # Lazy: the device may be dead, and then an orderly unmount could not be written.
                tool("umount", "--lazy", str(self.mount_point))
            self._mounted = False
        if self.device:
            with contextlib.suppress(DemoFailed):
                tool("losetup", "--detach", self.device)
            self.device = ""
        if self._nbdfuse is not None:
            self._end_nbdfuse(self._nbdfuse)
            self._nbdfuse = None

    def _end_nbdfuse(self, nbdfuse: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(DemoFailed):
            wait_until(self._unmount_fuse, "nbdfuse is unmounted", ATTACH_DEADLINE_S)
        with contextlib.suppress(DemoFailed):
            wait_until(lambda: nbdfuse.poll() is not None, "nbdfuse ends", ATTACH_DEADLINE_S)
        if nbdfuse.poll() is None:
            nbdfuse.kill()
            nbdfuse.wait()
            with contextlib.suppress(DemoFailed):
                tool("fusermount3", "-u", "-z", str(self._fuse_folder))

    def _unmount_fuse(self) -> bool:
        """Try to unmount; the loop device may let go of the file a moment later."""
        if str(self._fuse_folder) not in Path("/proc/self/mounts").read_text():
            return True
        with contextlib.suppress(DemoFailed):
            tool("fusermount3", "-u", str(self._fuse_folder))
            return True
        return False


class Records:
    """Records on the bare volume, over NBD."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def writer_arguments(self) -> list[str]:
        return ["records", self._uri]

    def digest(self, name: str) -> str:
        handle = writer.connect(self._uri)
        data = handle.pread(writer.RECORD_BYTES, writer.record_offset(name))
        handle.shutdown()
        return hashlib.sha256(data).hexdigest()

    def detach(self) -> None:
        """Nothing stays attached between two calls."""


class Writing:
    """A writer process and the promises that it has printed so far: name → SHA-256."""

    def __init__(self, place: Place, seed: int, count: int) -> None:
        self.promises: dict[str, str] = {}
        self._process = subprocess.Popen(
            [sys.executable, writer.__file__, *place.writer_arguments(), str(seed), str(count)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def read_promises(self, at_least: int) -> None:
        """Read lines until so many promises were made. Raises DemoFailed if the writer ends."""
        while len(self.promises) < at_least:
            if not self._read_one():
                raise DemoFailed(f"the writer ended after {len(self.promises)} writes")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the writer if it still runs; what it has promised by then stays promised."""
        self._process.kill()
        while self._read_one():
            pass
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process.wait()

    def _read_one(self) -> bool:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        # A line cut off by a kill promises nothing: its last character is missing.
        if not line.endswith("\n"):
            return False
        name, digest = line.split()
        self.promises[name] = digest
        return True

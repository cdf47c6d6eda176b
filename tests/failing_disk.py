"""A disk that fails when it is told to: one folder shown through FUSE, with errors put in between.

    with FailingDisk.make(folder) as disk:
        ... use files below disk.mount ...
        disk.fail("write")          # from now on EIO for each write
        disk.fail("read", range(0, 1 << 20))
        disk.heal()

The filesystem is a process of its own (`python -m tests.failing_disk SHOWN MOUNT FAULTS`). It keeps
nothing back: what was written is in the shown folder, and in the page cache there. Which calls fail
is told by files in a third folder, so that a test needs no channel to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tests.daemon import ROOT, wait_for

KINDS = ("read", "write", "sync")
UNMOUNT_DEADLINE_S = 30.0


class FailingDisk:
    """A mounted folder and the ways in which it fails. Made by `make`."""

    def __init__(self, folder: Path) -> None:
        self.shown, self.mount, self._faults = (
            folder / name for name in ("shown", "mount", "faults")
        )
        for path in (self.shown, self.mount, self._faults):
            path.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, *map(str, (self.shown, self.mount, self._faults))],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
        )

    @classmethod
    @contextlib.contextmanager
    def make(cls, folder: Path) -> Iterator[Self]:
        """Mount an empty disk below `folder`; take it down at the end, whoever still uses it."""
        folder.mkdir(exist_ok=True)
        disk = cls(folder)
        try:
            wait_for(lambda: os.path.ismount(disk.mount), what="the failing disk is mounted")
            yield disk
        finally:
            disk._take_down()

    def fail(self, kind: str, where: range | None = None) -> None:
        """Let calls of this kind fail with EIO: all, or those that touch these bytes of a file."""
        assert kind in KINDS, kind
        text = "" if where is None else f"{where.start} {where.stop}"
        # Renamed into place, so that the filesystem never reads half of it.
        (self._faults / ".new").write_text(text)
        (self._faults / ".new").rename(self._faults / kind)

    def heal(self) -> None:
        """Let all calls succeed again."""
        for kind in KINDS:
            (self._faults / kind).unlink(missing_ok=True)

    def hang(self) -> None:
        """Answer nothing until `resume`."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def _take_down(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        # Lazily: a process that died a moment ago may still hold a file.
        subprocess.run(["fusermount3", "-u", "-z", str(self.mount)], check=False)
        try:
            self._process.wait(UNMOUNT_DEADLINE_S)
        finally:
            self._process.kill()
            self._process.wait()


# -- the filesystem's process --------------------------------------------------------------------


def serve(shown: str, mount: str, faults: str) -> None:
    """Serve `shown` at `mount` until it is unmounted."""
    # Needs libfuse 3, which the tests of everything else do not.
    from mfusepy import FUSE, FuseOSError, Operations

    class Passthrough(Operations):  # type: ignore[misc]
        """Every call goes to the file of the same name below `shown`, unless it is to fail."""

        use_ns = True

        def _path(self, path: str) -> str:
            return shown + path

        def _check(self, kind: str, start: int = 0, stop: int = 1 << 62) -> None:
            try:
                with open(f"{faults}/{kind}") as fault:
                    text = fault.read()
            except FileNotFoundError:
                return
            first, last = map(int, text.split()) if text else (0, 1 << 62)
            if start < last and first < stop:
                raise FuseOSError(errno.EIO)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            return _attributes(os.lstat(self._path(path)))

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(self._path(path))]

        def mkdir(self, path: str, mode: int) -> int:
            os.mkdir(self._path(path), mode)
            return 0

        def unlink(self, path: str) -> int:
            os.unlink(self._path(path))
            return 0

        def rename(self, old: str, new: str) -> int:
            os.rename(self._path(old), self._path(new))
            return 0

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return os.open(self._path(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

        def open(self, path: str, flags: int) -> int:
            return os.open(self._path(path), os.O_RDWR)

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            self._check("read", offset, offset + size)
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            self._check("write", offset, offset + len(data))
            return os.pwrite(fh, data, offset)

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(self._path(path), length)
            return 0

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            self._check("sync")
            os.fdatasync(fh)
            return 0

        def getxattr(self, path: str, name: str, position: int = 0) -> bytes:
            return os.getxattr(self._path(path), name)

        def setxattr(
            self, path: str, name: str, value: bytes, options: int, position: int = 0
        ) -> int:
            os.setxattr(self._path(path), name, value)
            return 0

    # direct_io: no read is answered from a cache in front of this filesystem.
    FUSE(Passthrough(), mount, foreground=True, nothreads=True, direct_io=True, use_ino=True)


_TIMES = ("atime", "mtime", "ctime")


def _attributes(status: os.stat_result) -> dict[str, Any]:
    names = ("mode", "nlink", "uid", "gid", "size", "ino", "blocks")
    times = {f"st_{name}": getattr(status, f"st_{name}_ns") for name in _TIMES}
    return {f"st_{name}": getattr(status, f"st_{name}") for name in names} | times


if __name__ == "__main__":
    serve(*sys.argv[1:])

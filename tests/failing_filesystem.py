"""The process behind `failing_disk.py`: `python -m tests.failing_filesystem SHOWN MOUNT FAULTS`.

Shows one folder at another place through FUSE. A call fails with EIO while FAULTS has a file named
for its kind (`read`, `write`, `sync`); the file may hold the first byte and the one behind the last
of the range for which that is so. Read anew at each call, so that a test needs no channel to it.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any

from mfusepy import FUSE, FuseOSError, Operations

_TIMES = ("atime", "mtime", "ctime")
_NUMBERS = ("mode", "nlink", "uid", "gid", "size", "ino", "blocks")
_END = 1 << 62


class Passthrough(Operations):  # type: ignore[misc]
    """Every call goes to the file of the same name below `shown`, unless it is to fail."""

    use_ns = True

    def __init__(self, shown: str, faults: str) -> None:
        self._shown = shown
        self._faults = faults

    def _path(self, path: str) -> str:
        return self._shown + path

    def _check(self, kind: str, start: int = 0, stop: int = _END) -> None:
        try:
            with open(f"{self._faults}/{kind}") as fault:
                text = fault.read()
        except FileNotFoundError:
            return
        first, last = map(int, text.split()) if text else (0, _END)
        if start < last and first < stop:
            raise FuseOSError(errno.EIO)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self._path(path))
        times = {f"st_{name}": getattr(status, f"st_{name}_ns") for name in _TIMES}
        return {f"st_{name}": getattr(status, f"st_{name}") for name in _NUMBERS} | times

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

    def setxattr(self, path: str, name: str, value: bytes, options: int, position: int = 0) -> int:
        os.setxattr(self._path(path), name, value)
        return 0


if __name__ == "__main__":
    folder, mount, faults = sys.argv[1:]
    # direct_io: no read is answered from a cache in front of this filesystem.
    FUSE(
        Passthrough(folder, faults),
        mount,
        foreground=True,
        nothreads=True,
        direct_io=True,
        use_ino=True,
    )

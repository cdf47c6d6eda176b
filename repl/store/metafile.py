"""The file STATE_DIR/volumes/NAME.meta on a real filesystem: locked, made atomically, retired.

Owns the file's descriptor, its name and the exclusive lock on it; what stands in the file is
`metadata.py`. A file gets its name only when it is complete and durable, and no file is ever
deleted or overwritten by another: a discarded one is renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable

from repl.store import fallocate
from repl.store.refusals import in_use, open_failure

#: Space is reserved ahead for a metadata file's used part up to this size, so that a full
#: filesystem is noticed when the volume is made and not when a peer is lost.
RESERVE_BYTES_MAX = 256 << 20


def volumes_dir(state_dir: str) -> str:
    """Return the folder of all metadata files."""
    return os.path.join(state_dir, "volumes")


def metadata_path(state_dir: str, name: str) -> str:
    """Return where the metadata of a volume is kept."""
    assert name and os.sep not in name and not name.startswith("."), name
    return os.path.join(volumes_dir(state_dir), f"{name}.meta")


class DiskMetadataFile:
    """A `metadata.MetadataFile` over a descriptor."""

    def __init__(self, path: str, fd: int, *, read_only: bool = False) -> None:
        self.path = path
        self._fd = fd
        self._read_only = read_only
        self._sync_failed = False

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes; a file that ends before is an OSError."""
        parts = []
        while length:
            part = os.pread(self._fd, length, offset)
            if not part:
                raise OSError(errno.EIO, f"{self.path} ends at {offset}: it was cut short")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pwrite(self, offset: int, data: bytes) -> None:
        """Write all of `data`."""
        assert not self._read_only
        done = os.pwrite(self._fd, data, offset)
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)

    def sync(self) -> None:
        """Make everything written durable; after one failure it always fails."""
        if self._read_only:
            return
        if self._sync_failed:
            raise OSError(errno.EIO, f"an earlier sync of {self.path} failed")
        try:
            os.fdatasync(self._fd)
        except OSError:
            self._sync_failed = True
            raise

    def close(self) -> None:
        """Close the descriptor, and with it the lock."""
        os.close(self._fd)

    def retire(self) -> str:
        """Rename the file to NAME.meta.retired-<n>, durably, and return the new path."""
        number = 1
        while os.path.lexists(f"{self.path}.retired-{number}"):
            number += 1
        retired = f"{self.path}.retired-{number}"
        os.rename(self.path, retired)
        sync_dir(os.path.dirname(self.path))
        return retired


def open_locked(path: str, name: str) -> DiskMetadataFile | None:
    """Open and lock the metadata file of a volume; None if there is none.

    What a failed write of an earlier process may have left in the cache, unlike on the disk, is
    dropped, so that what is read is what a power cut would leave. Raises Refused (BACKING_IN_USE)
    and what `open_failure` makes of an OSError.
    """
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise open_failure(path, name, error) from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            _lock(fd, path, name)
            if not _is_named(fd, path):
                continue  # It was renamed between the opening and the locking.
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            undo.pop_all()
        return DiskMetadataFile(path, fd)


def open_for_reading(path: str) -> DiskMetadataFile:
    """Open without a lock, to look only; raises OSError."""
    return DiskMetadataFile(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC), read_only=True)


def create_locked(
    path: str,
    name: str,
    file_bytes: int,
    reserved_bytes: int,
    fill: Callable[[DiskMetadataFile], None],
) -> DiskMetadataFile:
    """Make the metadata file, filled and durable before it gets its name, and keep it locked.

    The temporary file is locked before it is touched, and the lock goes along with the rename, so
    of two processes that start at once one is refused. Raises Refused (BACKING_IN_USE), OSError.
    """
    temporary = f"{path}.new"
    while True:
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise open_failure(temporary, name, error) from error
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            _lock(fd, temporary, name)
            if not _is_named(fd, temporary):
                continue  # Another process has just renamed it.
            undo.callback(os.unlink, temporary)
            if os.path.lexists(path):
                raise in_use(path, name)
            os.ftruncate(fd, 0)
            os.ftruncate(fd, file_bytes)
            if reserved_bytes <= RESERVE_BYTES_MAX:
                fallocate.reserve(fd, 0, reserved_bytes)
            file = DiskMetadataFile(path, fd)
            fill(file)
            os.fsync(fd)
            os.rename(temporary, path)
            undo.pop_all()
            undo.callback(os.close, fd)
            sync_dir(os.path.dirname(path))
            undo.pop_all()
        return file


def make_volumes_dir(state_dir: str) -> None:
    """Make the folder of all metadata files, durably, if it is not there; raises OSError."""
    folder = volumes_dir(state_dir)
    if not os.path.isdir(folder):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        sync_dir(state_dir)


def sync_dir(folder: str) -> None:
    """Make the names in a folder durable; raises OSError."""
    fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _lock(fd: int, path: str, name: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise in_use(path, name) from error


def _is_named(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False

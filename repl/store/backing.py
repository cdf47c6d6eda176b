"""The backing of one volume: a regular file or a block device, byte for byte what clients see.

Owns the one descriptor through which the volume's data is read and written, and the lock on it. It
never retries a failed sync, because the kernel may have dropped the pages that the first one could
not write, and a second success would mean nothing. All calls block and may run in any thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence

from repl.store import fallocate
from repl.store.block_identity import block_identity
from repl.store.refusals import in_use, not_a_backing, open_failure
from repl.store.stamp import BackingKind, Stamp

#: The extended attribute with the random id by which a backing file is recognised.
TAG_ATTRIBUTE = "user.repl.id"
#: What the system says when there is no room (or no quota) for new blocks. Nothing is lost by it.
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
#: Zeroes are written in pieces of this size where the system cannot make them.
ZERO_BYTES = 1 << 20
#: Buffers that one system call takes (IOV_MAX of Linux).
BUFFERS_MAX = 1024

_BLKSSZGET = 0x1268
_ZEROES = bytes(ZERO_BYTES)

Buffer = bytes | bytearray | memoryview


class Backing:
    """An open and locked backing. Made by `open` or `create`."""

    def __init__(self, path: str, fd: int) -> None:
        status = os.fstat(fd)
        self.path = path
        self.kind = BackingKind.BLOCK if stat.S_ISBLK(status.st_mode) else BackingKind.FILE
        self.size_bytes = (
            os.lseek(fd, 0, os.SEEK_END) if self.kind is BackingKind.BLOCK else status.st_size
        )
        #: Ranges given to the device must be multiples of this; a file takes any.
        self.alignment_bytes = _sector_bytes(fd) if self.kind is BackingKind.BLOCK else 1
        self._fd = fd
        #: Trimmed ranges keep their space (a backing whose space was reserved).
        self.keeps_space = False
        self._can_punch = True
        self._has_punched = False
        self._can_zero = True
        self._sync_failed = False

    @classmethod
    def open(cls, path: str, name: str) -> Backing:
        """Open and lock an existing backing for the volume `name`.

        A device that is mounted or otherwise held is refused (O_EXCL). Raises FileNotFoundError,
        Refused (BACKING_IN_USE), PermissionRefused, ReplError (BACKING_UNREADABLE).
        """
        try:
            is_block = stat.S_ISBLK(os.stat(path).st_mode)
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_EXCL if is_block else 0))
        except FileNotFoundError:
            raise
        except OSError as error:
            raise open_failure(path, name, error) from error
        return cls._locked(path, name, fd)

    @classmethod
    def create(cls, path: str, name: str) -> Backing:
        """Create an empty, locked file; raises FileExistsError, else as `open`."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise
        except OSError as error:
            raise open_failure(path, name, error) from error
        return cls._locked(path, name, fd)

    @classmethod
    def _locked(cls, path: str, name: str, fd: int) -> Backing:
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, fd)
            mode = os.fstat(fd).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise not_a_backing(path, name)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise in_use(path, name) from error
            backing = cls(path, fd)
            undo.pop_all()
            return backing

    def fileno(self) -> int:
        """The descriptor, for asking the system about the file."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor, and with it the lock. No thread may be inside another method."""
        os.close(self._fd)

    def preadv(self, buffers: Sequence[bytearray | memoryview], offset: int) -> None:
        """Fill all buffers from `offset` on; raise OSError, also for a backing cut short."""
        length = sum(map(len, buffers))
        assert offset >= 0 and offset + length <= self.size_bytes, (offset, length)
        if len(buffers) <= BUFFERS_MAX and os.preadv(self._fd, buffers, offset) == length:
            return
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                got = os.preadv(self._fd, [rest], offset)
                if got == 0:
                    raise OSError(errno.EIO, f"{self.path} ends at {offset}: it was cut short")
                rest = rest[got:]
                offset += got

    def preadv_cached(self, buffer: bytearray | memoryview, offset: int) -> bool:
        """Fill the buffer if the page cache holds all of it; False, at once, if it does not.

        Where the system cannot tell (no RWF_NOWAIT for this file), the answer is False.
        """
        length = len(buffer)
        assert offset >= 0 and offset + length <= self.size_bytes, (offset, length)
        try:
            return os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT) == length
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EOPNOTSUPP, errno.EINVAL):
                return False
            raise

    def pwrite(self, buffer: Buffer, offset: int) -> None:
        """Write one buffer at `offset`; raise OSError."""
        length = len(buffer)
        assert offset >= 0 and offset + length <= self.size_bytes, (offset, length)
        if os.pwrite(self._fd, buffer, offset) != length:
            self.pwritev([buffer], offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> None:
        """Write all buffers one after the other from `offset` on; raise OSError."""
        length = sum(map(len, buffers))
        assert offset >= 0 and offset + length <= self.size_bytes, (offset, length)
        if len(buffers) <= BUFFERS_MAX and os.pwritev(self._fd, buffers, offset) == length:
            return
        # A short write: all of it again, piece by piece. The same bytes at the same place do no
        # harm, and the pieces' own return values say how far each one came.
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                done = os.pwritev(self._fd, [rest], offset)
                if done == 0:
                    raise OSError(errno.EIO, f"{self.path} takes no byte at {offset}")
                rest = rest[done:]
                offset += done

    def sync(self) -> None:
        """Return when every completed write is durable; after one failure it always fails."""
        if self._sync_failed:
            raise OSError(errno.EIO, f"an earlier sync of {self.path} failed")
        try:
            os.fdatasync(self._fd)
        except OSError:
            self._sync_failed = True
            raise

    def punch(self, offset: int, length: int) -> None:
        """Make exactly this range read as zeroes and give back what space it can.

        A backing that keeps its space gives nothing back: the next write there needs none.
        """
        if self.keeps_space:
            self.zero(offset, length)
            return
        assert offset >= 0 and length >= 0 and offset + length <= self.size_bytes
        start, end = self._aligned(offset, length)
        if start < end and self._can_punch:
            self._can_punch = fallocate.punch_hole(self._fd, start, end - start)
            if self._can_punch:
                self._write_zeroes(offset, start)
                self._write_zeroes(end, offset + length)
                return
        self._write_zeroes(offset, offset + length)

    def zero(self, offset: int, length: int) -> None:
        """Make exactly this range read as zeroes and keep its space reserved."""
        assert offset >= 0 and length >= 0 and offset + length <= self.size_bytes
        start, end = self._aligned(offset, length)
        if start < end and self._can_zero:
            self._can_zero = fallocate.zero_range(self._fd, start, end - start)
            if self._can_zero:
                self._write_zeroes(offset, start)
                self._write_zeroes(end, offset + length)
                return
        self._write_zeroes(offset, offset + length)

    def zeroes_fast(self) -> bool:
        """Whether `punch` is known to be quicker than writing zeroes, without trying it on data."""
        if self.kind is BackingKind.BLOCK or self.keeps_space or not self._can_punch:
            return False
        if not self._has_punched:
            # Beyond the end there is nothing to lose; where holes cannot be made it says so.
            self._can_punch = fallocate.punch_hole(self._fd, self.size_bytes, ZERO_BYTES)
            self._has_punched = True
        return self._can_punch

    def prefetch(self, offset: int, length: int) -> None:
        """Ask the system to read ahead; no failure of that matters."""
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_WILLNEED)

    def _aligned(self, offset: int, length: int) -> tuple[int, int]:
        """Return the part of the range, possibly empty, that the device can be asked to zero."""
        unit = self.alignment_bytes
        return -(-offset // unit) * unit, (offset + length) // unit * unit

    def _write_zeroes(self, start: int, end: int) -> None:
        while start < end:
            count = min(ZERO_BYTES, end - start)
            self.pwritev([_ZEROES if count == ZERO_BYTES else bytes(count)], start)
            start += count

    def reserve(self, offset: int, length: int) -> bool:
        """Make sure that the range can be written without new blocks; what it reads stays.

        False where the system cannot do that; raises OSError (`NO_ROOM`).
        """
        assert offset >= 0 and length > 0 and offset + length <= self.size_bytes
        return self.kind is BackingKind.FILE and fallocate.reserve(self._fd, offset, length)

    def next_data(self, offset: int) -> tuple[int, int] | None:
        """Return the first range (start, end) at or after `offset` that may hold data, or None.

        Everything between `offset` and `start` is a hole and reads as zeroes. Where holes cannot
        be told, all is data.
        """
        if offset >= self.size_bytes:
            return None
        try:
            start = os.lseek(self._fd, offset, os.SEEK_DATA)
            end = os.lseek(self._fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                if os.lseek(self._fd, 0, os.SEEK_END) >= self.size_bytes:
                    return None
                # Cut short: what is gone is an error to read, and must not pass for zeroes.
                return offset, self.size_bytes
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return offset, self.size_bytes
            raise
        return start, end

    def set_size(self, size_bytes: int) -> None:
        """Give a file that is being created its size, all of it a hole, durably."""
        os.ftruncate(self._fd, size_bytes)
        os.fsync(self._fd)
        self.size_bytes = size_bytes

    def write_tag(self, tag: str) -> None:
        """Put the id into the file's extended attribute, durably, where there is such a thing."""
        if self.kind is BackingKind.BLOCK:
            return
        try:
            os.setxattr(self._fd, TAG_ATTRIBUTE, tag.encode("ascii"))
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.ENOSPC):
                raise
            return
        os.fsync(self._fd)

    def stamp(self) -> Stamp:
        """Return what this backing is recognised by."""
        status = os.fstat(self._fd)
        if self.kind is BackingKind.BLOCK:
            serial = block_identity(status.st_rdev)
            return Stamp(self.kind, self.size_bytes, device=status.st_rdev, serial=serial)
        tag, taggable = "", True
        try:
            tag = os.getxattr(self._fd, TAG_ATTRIBUTE).decode("ascii", "replace")
        except OSError as error:
            if error.errno != errno.ENODATA:
                taggable = False
        return Stamp(
            self.kind,
            self.size_bytes,
            device=status.st_dev,
            inode=status.st_ino,
            taggable=taggable,
            tag=tag,
        )


def _sector_bytes(fd: int) -> int:
    (sector,) = struct.unpack("i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))
    assert isinstance(sector, int) and sector > 0
    return sector

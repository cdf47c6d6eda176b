"""Make a range of a file read as zeroes, by the cheapest way the file system offers, in steps.

Owns the calls of fallocate(2), which Python does not wrap, and the fallback that writes. A step
blocks for as long as the disk takes, so it belongs into a thread; between two steps others get
their turn. Never touches a byte outside the range.
"""

from __future__ import annotations

import ctypes
import errno
import os
from enum import Enum, auto
from typing import Final

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

# The unit in which a block device can be zeroed without writing; every sector size divides it.
DEVICE_GRANULARITY_BYTES: Final = 4096
#: One step: an operation on the file system's records, or so many bytes written.
FALLOCATE_STEP_BYTES: Final = 1 << 30
WRITE_STEP_BYTES: Final = 16 << 20

_ZEROES: Final = bytes(1 << 20)
_NOT_POSSIBLE_HERE: Final = frozenset(
    (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EPERM)
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


class Aim(Enum):
    """What has to be reached."""

    ZEROES = auto()  # zeroes, whatever it costs
    FAST_ZEROES = auto()  # zeroes, or nothing at all if that would cost as much as writing them
    TRIM = auto()  # space given back as far as possible, which is a hint and no duty


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    while _libc.fallocate(descriptor, mode, offset, length):
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))


class Zeroing:
    """`length` bytes from `offset` on their way to zero; without `may_punch` they stay allocated.

    A device can be asked only for whole multiples of `DEVICE_GRANULARITY_BYTES`; the edges are
    written (or, for a trim, left).
    """

    def __init__(
        self, descriptor: int, offset: int, length: int, aim: Aim, *, may_punch: bool, device: bool
    ) -> None:
        unit = DEVICE_GRANULARITY_BYTES if device else 1
        end = offset + length
        self._descriptor = descriptor
        self._aim = aim
        #: After a step, everything before it is done.
        self.position = -(-offset // unit) * unit
        self._end = end // unit * unit
        self._edges = [(offset, self.position), (self._end, end)]
        if self.position >= self._end:
            self.position = self._end = offset
            self._edges = [(offset, end)]
        self._changed = False
        self._modes = [FALLOC_FL_PUNCH_HOLE] if may_punch else []
        # A device's "zero range" may write, so it is no fast way; a trim gains nothing by it.
        if aim is Aim.ZEROES or (aim is Aim.FAST_ZEROES and not device):
            self._modes.append(FALLOC_FL_ZERO_RANGE)

    def step(self) -> bool:
        """Do the next part; True once nothing is left to do.

        Raises OSError; then any part of the range may be zero, but for ENOTSUP of FAST_ZEROES,
        which has changed nothing.
        """
        if self._aim is Aim.ZEROES:
            self._write_edges()
        if self.position < self._end:
            self._next_part()
        elif self._aim is Aim.FAST_ZEROES:
            raise OSError(errno.ENOTSUP, "nothing of it can be zeroed faster than by writing")
        if self._aim is Aim.FAST_ZEROES:
            # Not before it is known that the way is fast.
            self._write_edges()
        return self.position >= self._end

    def _write_edges(self) -> None:
        edges, self._edges = self._edges, []
        for start, end in edges:
            write_zeroes(self._descriptor, start, end - start)

    def _next_part(self) -> None:
        while self._modes:
            length = min(self._end - self.position, FALLOCATE_STEP_BYTES)
            mode = self._modes[0] | FALLOC_FL_KEEP_SIZE
            try:
                fallocate(self._descriptor, mode, self.position, length)
            except OSError as error:
                if error.errno not in _NOT_POSSIBLE_HERE:
                    raise
                del self._modes[0]
            else:
                self.position += length
                self._changed = True
                return
        if self._aim is Aim.FAST_ZEROES and not self._changed:
            raise OSError(errno.ENOTSUP, "this file system has no fast way to zero")
        if self._aim is Aim.TRIM:
            self.position = self._end
            return
        length = min(self._end - self.position, WRITE_STEP_BYTES)
        write_zeroes(self._descriptor, self.position, length)
        self.position += length


def write_zeroes(descriptor: int, offset: int, length: int) -> None:
    """Write `length` zeroes at `offset`, a mebibyte at a time. Raises OSError."""
    while length > 0:
        piece = _ZEROES if length >= len(_ZEROES) else memoryview(_ZEROES)[:length]
        written = os.pwrite(descriptor, piece, offset)
        offset += written
        length -= written

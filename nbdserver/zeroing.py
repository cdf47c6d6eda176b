"""Make a range of a file read as zeroes, by the cheapest way the file system offers.

Owns the calls of fallocate(2), which Python does not wrap, and the fallback that writes. Blocks for
as long as the disk takes, so it belongs into a thread. Never touches a byte outside the range.
"""

from __future__ import annotations

import ctypes
import errno
import os

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

# The unit in which a block device can be zeroed without writing; every sector size divides it.
DEVICE_GRANULARITY_BYTES = 4096

_ZEROES = bytes(1 << 20)
_NOT_POSSIBLE_HERE = frozenset(
    (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.EPERM)
)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_libc.fallocate.restype = ctypes.c_int


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2). Raises OSError."""
    while _libc.fallocate(descriptor, mode, offset, length):
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise OSError(error, os.strerror(error))


def zero_range(
    descriptor: int, offset: int, length: int, *, may_punch: bool, granularity_bytes: int = 1
) -> None:
    """Zero `length` bytes from `offset`; without `may_punch` their space stays allocated.

    Only multiples of `granularity_bytes` go through fallocate, the edges are written. Raises
    OSError; then any part of the range may be zero.
    """
    end = offset + length
    middle = -(-offset // granularity_bytes) * granularity_bytes
    middle_end = end // granularity_bytes * granularity_bytes
    if middle >= middle_end:
        write_zeroes(descriptor, offset, length)
        return
    write_zeroes(descriptor, offset, middle - offset)
    write_zeroes(descriptor, middle_end, end - middle_end)
    modes = [FALLOC_FL_ZERO_RANGE]
    if may_punch:
        modes.insert(0, FALLOC_FL_PUNCH_HOLE)
    for mode in modes:
        try:
            fallocate(descriptor, mode | FALLOC_FL_KEEP_SIZE, middle, middle_end - middle)
        except OSError as error:
            if error.errno not in _NOT_POSSIBLE_HERE:
                raise
        else:
            return
    write_zeroes(descriptor, middle, middle_end - middle)


def write_zeroes(descriptor: int, offset: int, length: int) -> None:
    """Write `length` zeroes at `offset`, a mebibyte at a time. Raises OSError."""
    while length > 0:
        piece = _ZEROES if length >= len(_ZEROES) else memoryview(_ZEROES)[:length]
        written = os.pwrite(descriptor, piece, offset)
        offset += written
        length -= written

"""The system call fallocate(2), which Python's os module reaches only in part.

Each function returns whether the filesystem or device could do it; False changed nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10
#: Errors that say "not here", as opposed to "it failed".
_NOT_HERE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV})

_libc = ctypes.CDLL(None, use_errno=True)
#: Glibc on 32-bit machines has a 64-bit twin; elsewhere the plain name takes 64-bit offsets.
_fallocate = _libc.fallocate64 if hasattr(_libc, "fallocate64") else _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


def punch_hole(fd: int, offset: int, length: int) -> bool:
    """Give the range's space back; it reads as zeroes. Raises OSError."""
    return _call(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)


def zero_range(fd: int, offset: int, length: int) -> bool:
    """Make the range read as zeroes and keep space reserved for it. Raises OSError."""
    return _call(fd, _ZERO_RANGE | _KEEP_SIZE, offset, length)


def reserve(fd: int, offset: int, length: int) -> bool:
    """Reserve space for the range without changing what it reads as. Raises OSError (ENOSPC)."""
    return _call(fd, _KEEP_SIZE, offset, length)


def _call(fd: int, mode: int, offset: int, length: int) -> bool:
    while _fallocate(fd, mode, offset, length) != 0:
        error = ctypes.get_errno()
        if error == errno.EINTR:
            continue
        if error in _NOT_HERE:
            return False
        raise OSError(error, os.strerror(error))
    return True

"""Whether a device reads as zeroes everywhere, and making it so again.

Only the parts that may hold data are touched (`hole_map.py`), since a volume may be of terabytes of
which nothing was ever written. What the device itself has not passed on yet is written out first,
so that the server knows of it when it is asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
from collections.abc import Callable, Generator, Iterator
from typing import Final

#: (start, length) of parts of a device, in order.
Pieces = Iterator[tuple[int, int]]
#: Given a device's size: each part of it that may hold data.
Extents = Callable[[int], Generator[tuple[int, int], None, None]]
#: Told now and then how far the looking has come: bytes of the device.
Progress = Callable[[int, int], None]

PIECE_BYTES: Final = 4 << 20
FIRST_WORD_S: Final = 3.0
WORD_EVERY_S: Final = 10.0
SECTOR_BYTES: Final = 512
#: linux/fs.h; takes the start and the length of a range of whole sectors.
_BLKZEROOUT: Final = 0x127F
_RANGE = struct.Struct("=QQ")
_ZEROES: Final = bytes(PIECE_BYTES)


def first_data(device: str, extents: Extents, progress: Progress) -> int | None:
    """Return where the first byte is that is not zero; None if there is none. Raises OSError."""
    word_due_s = time.monotonic() + FIRST_WORD_S
    with _pieces_of(device, os.O_RDONLY, extents) as (descriptor, size_bytes, pieces):
        for offset, length in pieces:
            if time.monotonic() > word_due_s:
                word_due_s = time.monotonic() + WORD_EVERY_S
                progress(offset, size_bytes)
            read = os.pread(descriptor, length, offset)
            # None of it is needed again, and it must not push out what others need.
            os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
            if len(read) < length:
                raise OSError(f"it ends at byte {offset + len(read)}")
            if read != (_ZEROES if length == PIECE_BYTES else bytes(length)):
                return offset + length - len(read.lstrip(b"\0"))
    return None


def zero_out(device: str, extents: Extents) -> None:
    """Make a device read as zeroes again. Raises OSError."""
    with _pieces_of(device, os.O_RDWR, extents) as (descriptor, _, pieces):
        for offset, length in pieces:
            start = offset // SECTOR_BYTES * SECTOR_BYTES
            end = -(-(offset + length) // SECTOR_BYTES) * SECTOR_BYTES
            fcntl.ioctl(descriptor, _BLKZEROOUT, _RANGE.pack(start, end - start))
        os.fsync(descriptor)


@contextlib.contextmanager
def _pieces_of(device: str, flags: int, extents: Extents) -> Iterator[tuple[int, int, Pieces]]:
    """Open a device; give its descriptor, its size, and the pieces of it that may hold data."""
    descriptor = os.open(device, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        size_bytes = os.lseek(descriptor, 0, os.SEEK_END)
        # Closed at once, also by an error: what tells the extents may hold a connection, and a
        # client that holds the volume keeps it from being demoted.
        with contextlib.closing(extents(size_bytes)) as found:
            yield descriptor, size_bytes, _pieces(found)
    finally:
        os.close(descriptor)


def _pieces(extents: Pieces) -> Pieces:
    for start, length in extents:
        for offset in range(start, start + length, PIECE_BYTES):
            yield offset, min(PIECE_BYTES, start + length - offset)

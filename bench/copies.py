"""Whether two copies of a volume are the same, byte for byte; holes count as zeroes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

CHUNK_BYTES = 1 << 20


def data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of everything in the file that is not a hole."""
    offset, size = 0, os.fstat(fd).st_size
    while offset < size:
        try:
            start = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        offset = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, offset


def first_difference(one: Path, other: Path) -> int | None:
    """Return an offset at which two files differ (of a block of 1 MiB), None if nowhere.

    Files of different size differ at the end of the shorter one.
    """
    with one.open("rb") as first, other.open("rb") as second:
        sizes = [os.fstat(file.fileno()).st_size for file in (first, second)]
        if sizes[0] != sizes[1]:
            return min(sizes)
        for fd in (first.fileno(), second.fileno()):
            for start, end in data_ranges(fd):
                for offset in range(start, end, CHUNK_BYTES):
                    count = min(CHUNK_BYTES, end - offset)
                    ours = os.pread(first.fileno(), count, offset)
                    if ours != os.pread(second.fileno(), count, offset):
                        return offset
    return None

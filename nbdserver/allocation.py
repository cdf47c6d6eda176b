"""Where a file has data and where it has holes, as the file system tells.

A hole reads as zeroes; data may. Where the system cannot tell, all is data: that answer is always
safe. Looking is a pair of system calls that some file systems answer at once and others by a walk
over the pages of the file, so that on the loop's thread it is done only while it has cost a small
share of the time. What was found to be data is remembered: no request of ours can turn the memory
wrong, because reading data where a hole appeared gives the right bytes too.

Spec: lseek(2), SEEK_DATA; proto.md, "base:allocation metadata context".
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from typing import Final

from nbdserver.protocol import NBD_STATE_HOLE, NBD_STATE_ZERO
from nbdserver.replies import Part

HOLE: Final = NBD_STATE_HOLE | NBD_STATE_ZERO
#: The share of the time that looking may take on the loop's thread, and how much may be saved up.
LOOK_SHARE: Final = 0.25
LOOK_SAVED_S_MAX: Final = 0.25
#: Parts that the answer to one READ is split into; what follows the last hole counts as data.
PARTS_MAX: Final = 64
#: Extents that one BLOCK_STATUS is answered with at most; the client asks again for the rest.
EXTENTS_MAX: Final = 4096


#: The first range (start, end) at or after an offset that may hold data, None if only holes follow.
NextData = Callable[[int], tuple[int, int] | None]


class Allocation:
    """The holes of one open file, told in whole blocks of `block_bytes`.

    `next_data` looks; it raises OSError of the medium. `hole_status` is what `base:allocation` says
    of a hole: also that it has no space, or only that it reads as zeroes.
    """

    def __init__(self, next_data: NextData, block_bytes: int = 1, hole_status: int = HOLE) -> None:
        self._next_data = next_data
        self._block_bytes = block_bytes
        self._hole_status = hole_status
        self._known_start = self._known_end = 0
        self._saved_s = LOOK_SAVED_S_MAX
        self._looked_s = time.monotonic()

    def is_known_data(self, offset: int, length: int) -> bool:
        """Whether all of it was data when somebody looked last."""
        return self._known_start <= offset and offset + length <= self._known_end

    def forget(self) -> None:
        """Holes may have been made."""
        self._known_start = self._known_end = 0

    def holes_now(self, offset: int, length: int) -> list[tuple[int, int]] | None:
        """The extents of a READ if a hole is known in it, on the loop's thread.

        None if there is none, or if looking has taken its share of the time.
        """
        if self.is_known_data(offset, length):
            return None
        begun_s = time.monotonic()
        saved_s = self._saved_s + (begun_s - self._looked_s) * LOOK_SHARE
        self._looked_s = begun_s
        self._saved_s = min(saved_s, LOOK_SAVED_S_MAX)
        if self._saved_s <= 0:
            return None
        try:
            found = self.extents(offset, length, PARTS_MAX)
        except OSError:
            return None  # The read meets the error again and reports it.
        self._looked_s = time.monotonic()
        self._saved_s -= self._looked_s - begun_s
        covered = sum(part for part, _ in found)
        if covered < length:
            found.append((length - covered, 0))
        return None if len(found) == 1 and not found[0][1] else found

    def extents(self, offset: int, length: int, count_max: int) -> list[tuple[int, int]]:
        """(length, status) of consecutive ranges from `offset` on, neighbours never alike.

        They cover `length` bytes, or less after `count_max` ranges. Raises OSError.
        """
        end = offset + length
        block = self._block_bytes
        found: list[tuple[int, int]] = []
        position = offset
        while position < end and len(found) < count_max:
            data = self._next_data(position)
            hole_end, data_end = end, end
            if data is not None:
                self._known_start, self._known_end = data
                # A block that has any data is data.
                hole_end = max(position, min(end, data[0] // block * block))
                data_end = min(end, -(-data[1] // block) * block)
            if hole_end > position:
                _append(found, hole_end - position, self._hole_status)
                position = hole_end
            else:
                # A file that shrank between two looks shows no end: no claim is made of the rest.
                stop = data_end if data_end > position else end
                _append(found, stop - position, 0)
                position = stop
        return found


def next_data_of(descriptor: int, size_bytes: int) -> NextData:
    """A `NextData` of an open file that is `size_bytes` long, or a device."""

    def next_data(offset: int) -> tuple[int, int] | None:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
            return start, os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                if os.lseek(descriptor, 0, os.SEEK_END) >= size_bytes:
                    return None
                # The file was cut short: what is gone is an error to read and not a hole.
                return offset, size_bytes
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return offset, size_bytes
            raise

    return next_data


def cut(data: memoryview, extents: Sequence[tuple[int, int]]) -> list[Part]:
    """The data of a READ in parts, with the length of each hole in its place."""
    found: list[Part] = []
    position = 0
    for length, status in extents:
        zero = status & NBD_STATE_ZERO
        found.append(length if zero else data[position : position + length])
        position += length
    return found


def _append(found: list[tuple[int, int]], length: int, status: int) -> None:
    if found and found[-1][1] == status:
        found[-1] = (found[-1][0] + length, status)
    else:
        found.append((length, status))

"""Disks with a volatile cache: what was written is visible at once and durable after a sync.

A crash of the process loses nothing. A loss of power leaves, for each 512-byte sector that was
written since the last sync, any one of the versions that it had since then, the old one included.
"""

from __future__ import annotations

import enum
import random

SECTOR_BYTES = 512
BLOCK_BYTES = 4096

#: How many versions of each unsynced sector existed when a sync began.
SyncMark = dict[int, int]


class Loss(enum.Enum):
    """Which unsynced sectors a loss of power takes."""

    ALL = "all"
    SOME = "some"
    NONE = "none"


class SectorDisk:
    """A `MetadataFile`, and the base of the data disk. Addressed in whole sectors."""

    def __init__(self, size_bytes: int) -> None:
        assert size_bytes % SECTOR_BYTES == 0
        self.size_bytes = size_bytes
        self.image = bytearray(size_bytes)
        #: Sector → its versions since it was last durable; the first is the durable one.
        self._unsynced: dict[int, list[bytes]] = {}

    @property
    def unsynced_sectors(self) -> int:
        return len(self._unsynced)

    def pread(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and offset + length <= self.size_bytes
        return bytes(self.image[offset : offset + length])

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        length = len(data)
        assert offset % SECTOR_BYTES == 0 and length % SECTOR_BYTES == 0
        assert offset >= 0 and offset + length <= self.size_bytes
        image, unsynced = self.image, self._unsynced
        view = bytes(data)
        for start in range(0, length, SECTOR_BYTES):
            place = offset + start
            versions = unsynced.get(place)
            if versions is None:
                versions = unsynced[place] = [bytes(image[place : place + SECTOR_BYTES])]
            versions.append(view[start : start + SECTOR_BYTES])
        image[offset : offset + length] = view

    def begin_sync(self) -> SyncMark:
        """Note what a sync that begins now has to make durable."""
        return {place: len(versions) - 1 for place, versions in self._unsynced.items()}

    def end_sync(self, mark: SyncMark) -> None:
        """What the mark names is durable."""
        for place, count in mark.items():
            versions = self._unsynced.get(place)
            if versions is None:
                continue
            del versions[:count]
            if len(versions) == 1:
                del self._unsynced[place]

    def sync(self) -> None:
        """Make everything durable at once."""
        self._unsynced.clear()

    def lose_power(self, loss: Loss, choice: random.Random) -> None:
        """Keep for each unsynced sector one of its versions."""
        for place, versions in self._unsynced.items():
            if loss is Loss.ALL:
                kept = versions[0]
            elif loss is Loss.NONE:
                kept = versions[-1]
            else:
                kept = choice.choice(versions)
            self.image[place : place + SECTOR_BYTES] = kept
        self._unsynced.clear()


class DataDisk(SectorDisk):
    """A backing: sectors, and holes in units of 4 KiB blocks."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.allocated = bytearray((size_bytes + BLOCK_BYTES - 1) // BLOCK_BYTES)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write data; its blocks are holes no more."""
        self.pwrite(offset, data)
        first, last = offset // BLOCK_BYTES, (offset + len(data) - 1) // BLOCK_BYTES + 1
        self.allocated[first:last] = b"\1" * (last - first)

    def zero(self, offset: int, length: int, *, punch: bool) -> None:
        """Make a range read as zeroes; with `punch` its whole blocks become holes."""
        self.write(offset, bytes(length))
        if punch:
            first = -(-offset // BLOCK_BYTES)
            last = (offset + length) // BLOCK_BYTES
            if offset + length == self.size_bytes:
                last = len(self.allocated)
            if first < last:
                self.allocated[first:last] = bytes(last - first)

    def is_allocated(self, offset: int, length: int) -> bool:
        """Whether no block of the range is a hole."""
        first, last = offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES + 1
        return 0 not in self.allocated[first:last]

    def hole_end(self, offset: int) -> int:
        """Return where the hole at `offset` ends; `offset` itself if there is none."""
        block = self.allocated.find(1, offset // BLOCK_BYTES)
        return self.size_bytes if block < 0 else max(offset, block * BLOCK_BYTES)

    def lose_power(self, loss: Loss, choice: random.Random) -> None:
        super().lose_power(loss, choice)
        blank = bytes(BLOCK_BYTES)
        for block in range(len(self.allocated)):
            start = block * BLOCK_BYTES
            if self.image[start : start + BLOCK_BYTES] != blank[: self.size_bytes - start]:
                self.allocated[block] = 1

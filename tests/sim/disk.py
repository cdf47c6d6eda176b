"""Disks with a volatile cache: what was written is visible at once and durable after a sync.

A crash of the process loses nothing. A loss of power leaves, for each 512-byte sector that was
written since the last sync, any one of the versions that it had since then, the old one included;
where tearing is allowed, also the beginning of one version and the end of another. A disk may be
told to fail: then an operation raises `OSError`, as a backing or a metadata file does.
"""

from __future__ import annotations

import enum
import errno
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


class Operation(enum.Enum):
    """What a disk can refuse to do."""

    READ = "read"
    WRITE = "write"
    SYNC = "sync"


class SectorDisk:
    """A `MetadataFile`, and the core of the data disk. Addressed in whole sectors."""

    def __init__(self, size_bytes: int) -> None:
        assert size_bytes % SECTOR_BYTES == 0
        self.size_bytes = size_bytes
        self.image = bytearray(size_bytes)
        #: Operations that fail, until the disk is mended.
        self.failing: set[Operation] = set()
        #: Sector → its versions since it was last durable; the first is the durable one.
        self._unsynced: dict[int, list[bytes]] = {}

    @property
    def unsynced_sectors(self) -> int:
        return len(self._unsynced)

    def check(self, operation: Operation) -> None:
        """Raise `OSError` if this operation fails now."""
        if operation in self.failing:
            raise OSError(errno.EIO, f"the disk does not {operation.value}")

    def pread(self, offset: int, length: int) -> bytes:
        assert offset >= 0 and offset + length <= self.size_bytes
        self.check(Operation.READ)
        return bytes(self.image[offset : offset + length])

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        length = len(data)
        assert offset % SECTOR_BYTES == 0 and length % SECTOR_BYTES == 0
        assert offset >= 0 and offset + length <= self.size_bytes
        self.check(Operation.WRITE)
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
        self.check(Operation.SYNC)
        self._unsynced.clear()

    def durable_sector(self, place: int) -> bytes | bytearray:
        """What a loss of power would leave of a sector if it took all that it may."""
        versions = self._unsynced.get(place)
        return self.image[place : place + SECTOR_BYTES] if versions is None else versions[0]

    def durable(self, offset: int, length: int) -> bytearray:
        """The same for a range of whole sectors."""
        found = self.image[offset : offset + length]
        for place in range(offset, offset + length, SECTOR_BYTES):
            versions = self._unsynced.get(place)
            if versions is not None:
                found[place - offset : place - offset + SECTOR_BYTES] = versions[0]
        return found

    def losses(
        self, loss: Loss, choice: random.Random, *, tear: float = 0.0
    ) -> list[tuple[int, bytes]]:
        """Draw what each unsynced sector would hold after a loss of power; changes nothing."""
        kept: list[tuple[int, bytes]] = []
        for place, versions in self._unsynced.items():
            if loss is Loss.ALL:
                sector = versions[0]
            elif loss is Loss.NONE:
                sector = versions[-1]
            else:
                sector = choice.choice(versions)
                if tear and choice.random() < tear:
                    cut = choice.randrange(1, SECTOR_BYTES)
                    sector = sector[:cut] + choice.choice(versions)[cut:]
            kept.append((place, sector))
        return kept

    def lose_power(self, loss: Loss, choice: random.Random, *, tear: float = 0.0) -> None:
        """Keep for each unsynced sector one of its versions (or, torn, a part of each of two)."""
        for place, sector in self.losses(loss, choice, tear=tear):
            self.image[place : place + SECTOR_BYTES] = sector
        self._unsynced.clear()

    def mend(self) -> None:
        """Every operation succeeds again."""
        self.failing.clear()

    def copy(self) -> SectorDisk:
        """Return a disk with the same visible contents, all of it durable."""
        twin = SectorDisk(self.size_bytes)
        twin.image[:] = self.image
        return twin


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

    def lose_power(self, loss: Loss, choice: random.Random, *, tear: float = 0.0) -> None:
        touched = {place // BLOCK_BYTES for place in self._unsynced}
        super().lose_power(loss, choice, tear=tear)
        for block in touched:
            start = block * BLOCK_BYTES
            if any(self.image[start : start + BLOCK_BYTES]):
                self.allocated[block] = 1

    def wipe(self) -> None:
        """Another disk, all zeroes and all holes, is in this one's place."""
        self.image[:] = bytes(self.size_bytes)
        self.allocated[:] = bytes(len(self.allocated))
        self._unsynced.clear()
        self.mend()

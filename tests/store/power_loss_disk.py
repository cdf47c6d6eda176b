"""A disk for tests that records every operation, so that power can be cut after any of them.

A loss of power keeps, for each 512-byte sector that was written since the last sync, any one of the
versions that it had since then, the old one included: lost writes, torn writes and any order.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SECTOR_BYTES = 512


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Sync:
    pass


class PowerLossDisk:
    """A `MetadataFile` in memory."""

    def __init__(self, image: bytes | bytearray) -> None:
        self.image = bytearray(image)
        self.durable = bytes(image)
        self.log: list[Write | Sync] = []

    def pread(self, offset: int, length: int) -> bytes:
        assert offset + length <= len(self.image)
        return bytes(self.image[offset : offset + length])

    def pwrite(self, offset: int, data: bytes) -> None:
        assert offset % SECTOR_BYTES == 0 and len(data) % SECTOR_BYTES == 0
        assert offset + len(data) <= len(self.image)
        self.image[offset : offset + len(data)] = data
        self.log.append(Write(offset, data))

    def sync(self) -> None:
        self.log.append(Sync())

    def start_recording(self) -> None:
        """Take the present contents as durable and forget the log."""
        self.durable = bytes(self.image)
        self.log.clear()

    def cut_after(self, operations: int, choice: random.Random | None) -> PowerLossDisk:
        """Return the disk as it is after power failed when this many operations were done.

        With `choice` each unsynced sector is drawn; without, all unsynced writes are lost.
        """
        image = bytearray(self.durable)
        unsynced: dict[int, list[bytes]] = {}
        for operation in self.log[:operations]:
            if isinstance(operation, Sync):
                for offset, versions in unsynced.items():
                    image[offset : offset + SECTOR_BYTES] = versions[-1]
                unsynced.clear()
                continue
            for start in range(0, len(operation.data), SECTOR_BYTES):
                sector = operation.data[start : start + SECTOR_BYTES]
                unsynced.setdefault(operation.offset + start, []).append(sector)
        if choice is not None:
            for offset, versions in unsynced.items():
                if choice.random() < 0.5:
                    image[offset : offset + SECTOR_BYTES] = choice.choice(versions)
        return PowerLossDisk(image)

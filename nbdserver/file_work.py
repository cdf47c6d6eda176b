"""What is done to a file for one request, blocking: the only code here that a thread runs.

Knows the descriptor and nothing of connections. Errors of the disk become an `Outcome` with the
number for the client and a sentence; the first of each kind is logged. After a failed fdatasync the
kernel may have dropped what it could not write, so from then on nothing is written or synced.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Final

from nbdserver.allocation import EXTENTS_MAX, HOLE, Allocation, cut, next_data_of
from nbdserver.buffers import Chunk
from nbdserver.file_threads import Outcome, Step
from nbdserver.protocol import (
    NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLAG_REQ_ONE,
    NBD_CMD_TRIM,
    NBD_EIO,
    NBD_ENOSPC,
    NBD_ENOTSUP,
)
from nbdserver.replies import Extents
from nbdserver.requests import Request, StatusRequest
from nbdserver.zeroing import Aim, Zeroing

log = logging.getLogger("nbdserver")

#: What one CACHE reads ahead at most.
CACHE_BYTES_MAX: Final = 64 << 20

_NO_SPACE: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class FileWork:
    """The operations on one open file. The caller owns the descriptor."""

    def __init__(
        self, descriptor: int, path: Path, size_bytes: int, block_bytes: int, *, device: bool
    ) -> None:
        self._descriptor = descriptor
        self._path = path
        self._device = device
        self._errors_logged: set[tuple[str, int]] = set()
        self.allocation = Allocation(next_data_of(descriptor, size_bytes), block_bytes)
        self.sync_failed = False

    def failed(self, operation: str, error: OSError, at: int | None = None) -> Outcome:
        """The outcome for an error of the disk."""
        number = error.errno or errno.EIO
        if (operation, number) not in self._errors_logged:
            self._errors_logged.add((operation, number))
            log.error("%s: %s failed: %s", self._path, operation, error.strerror)
        wire = NBD_ENOSPC if number in _NO_SPACE else NBD_EIO
        return Outcome(wire, f"{operation}: {error.strerror}", at)

    def write(self, request: Request) -> Outcome:
        """A WRITE."""
        data, offset = request.payload, request.offset
        try:
            self._refuse_after_failed_sync()
            while data:
                written = os.pwrite(self._descriptor, data, offset)
                data = data[written:]
                offset += written
        except OSError as error:
            return self.failed("write", error, offset)
        return Outcome()

    def read(self, request: Request, data: memoryview, hold: Chunk | None) -> Outcome:
        """A READ of all of its range into `data`."""
        outcome = self._fill(data, request.offset)
        outcome.hold = hold
        if not outcome.error:
            outcome.data = data
        return outcome

    def read_parts(
        self,
        request: Request,
        parts: list[tuple[int, int]],
        data: memoryview,
        hold: Chunk | None,
    ) -> Outcome:
        """A READ whose holes are known: only the rest is read, each part to its place in `data`."""
        position = 0
        outcome = Outcome()
        for length, status in parts:
            if not status & HOLE and not outcome.error:
                piece = data[position : position + length]
                outcome = self._fill(piece, request.offset + position)
            position += length
        outcome.hold = hold
        if not outcome.error:
            outcome.parts = cut(data, parts)
        return outcome

    def _fill(self, data: memoryview, offset: int) -> Outcome:
        position = 0
        try:
            while position < len(data):
                count = os.preadv(self._descriptor, (data[position:],), offset + position)
                if not count:
                    raise OSError(errno.EIO, "the file is shorter than when it was opened")
                position += count
        except OSError as error:
            return self.failed("read", error, offset + position)
        return Outcome()

    def zeroing(self, request: Request) -> tuple[Zeroing, Step]:
        """A TRIM or a WRITE_ZEROES, and what does its next step."""
        trims = request.command == NBD_CMD_TRIM
        fast = bool(request.flags & NBD_CMD_FLAG_FAST_ZERO)
        aim = Aim.TRIM if trims else Aim.FAST_ZEROES if fast else Aim.ZEROES
        zeroing = Zeroing(
            self._descriptor,
            request.offset,
            request.length,
            aim,
            may_punch=trims or not request.flags & NBD_CMD_FLAG_NO_HOLE,
            device=self._device,
        )

        def step() -> Outcome | None:
            try:
                self._refuse_after_failed_sync()
                return Outcome() if zeroing.step() else None
            except OSError as error:
                if error.errno == errno.ENOTSUP and fast:
                    return Outcome(NBD_ENOTSUP, str(error.strerror))
                return self.failed("trim" if trims else "zero", error)

        return zeroing, step

    def cache(self, request: Request) -> Outcome:
        """A CACHE: a hint to the kernel, bounded; where it takes none, nothing is lost."""
        length = min(request.length, CACHE_BYTES_MAX)
        try:
            os.posix_fadvise(self._descriptor, request.offset, length, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            log.debug("%s: reading ahead failed: %s", self._path, error.strerror)
        return Outcome()

    def status(self, request: StatusRequest) -> Outcome:
        """A BLOCK_STATUS of the one context that a file has."""
        count_max = 1 if request.flags & NBD_CMD_FLAG_REQ_ONE else EXTENTS_MAX
        try:
            extents: Extents = self.allocation.extents(request.offset, request.length, count_max)
        except OSError as error:
            return self.failed("looking for holes", error)
        return Outcome(statuses=dict.fromkeys(request.contexts, extents))

    def sync(self) -> Outcome:
        """Make all that was written durable."""
        try:
            self._refuse_after_failed_sync()
            os.fdatasync(self._descriptor)
        except OSError as error:
            self.sync_failed = True
            return self.failed("fdatasync", error)
        return Outcome()

    def _refuse_after_failed_sync(self) -> None:
        if self.sync_failed:
            raise OSError(errno.EIO, "an earlier fdatasync failed, so written data may be lost")

"""Serves a plain file or a block device.

Small work on the page cache happens on the loop's thread, where a system call of two microseconds
costs less than any hand-over. What may block goes to a few threads: reads that the cache cannot
answer, large requests, zeroing and every fdatasync. Adjacent writes of one turn become one pwritev.

Ordering: a WRITE is answered after its bytes are in the page cache, so every later READ sees them
and every later fdatasync covers them, on whichever connection. Requests in flight together have no
order, as the protocol allows. One fdatasync at a time runs; those who ask meanwhile share the next
one, which starts after they asked. After a failed fdatasync the kernel may have dropped what it
could not write, so from then on every FLUSH, FUA and write is refused.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import stat
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from nbdserver.buffers import ByteBudget, Chunk, ChunkPool
from nbdserver.protocol import (
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_TRIM,
    NBD_CMD_WRITE,
    NBD_EIO,
    NBD_ENOSPC,
)
from nbdserver.zeroing import DEVICE_GRANULARITY_BYTES, zero_range

if TYPE_CHECKING:
    from nbdserver.connection import Connection
    from nbdserver.transmission import Request

log = logging.getLogger("nbdserver")

INLINE_REQUEST_BYTES_MAX = 1 << 20
INLINE_TURN_BYTES_MAX = 4 << 20
# Reads from here on use a warm buffer of a pool; below, a fresh bytearray costs less.
POOLED_READ_BYTES_MIN = 64 << 10
POOLED_READ_BYTES_MAX = 256 << 20
SPARE_READ_BYTES_MAX = 16 << 20
THREADS = 4

_NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class FileBackend:
    """A `Backend` over one file, shared by all its connections. Raises OSError if it cannot open.

    `size_bytes` is the file's size now; it must not change while it is served.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, path: Path, *, read_only: bool = False
    ) -> None:
        self._loop = loop
        self._path = path
        access = os.O_RDONLY if read_only else os.O_RDWR
        self._descriptor = os.open(path, access | os.O_CLOEXEC)
        is_device = stat.S_ISBLK(os.fstat(self._descriptor).st_mode)
        self._granularity_bytes = DEVICE_GRANULARITY_BYTES if is_device else 1
        self.size_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)
        self._read_flags = os.RWF_NOWAIT
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="nbdserver-file")
        self._finished: deque[tuple[Request, int, memoryview | None, Chunk | None]] = deque()
        self._sync_waiting: list[Request] = []
        self._syncing: list[Request] = []
        self._sync_failed = False
        self._errors_logged: set[tuple[str, int]] = set()
        self._read_pool = ChunkPool(
            ByteBudget(POOLED_READ_BYTES_MAX), POOLED_READ_BYTES_MAX, SPARE_READ_BYTES_MAX
        )

    def close(self) -> None:
        """Wait for the threads and close the file. No connection may be using it any more."""
        self._threads.shutdown(wait=True)
        os.close(self._descriptor)

    def submit(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Carry out one turn's requests; see `export.Backend`."""
        run: list[Request] = []
        run_end = -1
        inline_bytes_left = INLINE_TURN_BYTES_MAX
        for request in requests:
            command, length = request.command, request.length
            inline = length <= INLINE_REQUEST_BYTES_MAX and length <= inline_bytes_left
            if command == NBD_CMD_WRITE:
                if not inline or self._sync_failed:
                    self._in_thread(self._write_alone, request)
                    continue
                inline_bytes_left -= length
                if request.offset != run_end:
                    if run:
                        self._write_run(run)
                    run = []
                run.append(request)
                run_end = request.offset + length
            elif command == NBD_CMD_READ:
                self._read(request, inline)
                inline_bytes_left -= length if inline else 0
            elif command == NBD_CMD_FLUSH:
                self._sync_waiting.append(request)
            else:
                self._in_thread(self._zero, request)
        if run:
            self._write_run(run)
        if self._sync_waiting and not self._syncing:
            self._start_sync()
        connection.send_replies()

    def disconnected(self, connection: Connection) -> None:
        """Nothing is kept for a connection beyond its requests, and those finish by themselves."""

    # On the loop's thread.

    def _write_run(self, run: list[Request]) -> None:
        """Write requests that follow each other without a gap, and answer them."""
        try:
            if len(run) == 1:
                payload = run[0].payload
                assert payload is not None
                written = os.pwrite(self._descriptor, payload, run[0].offset)
                if written != len(payload):
                    _write_all(self._descriptor, payload[written:], run[0].offset + written)
            else:
                self._write_many(run)
        except OSError as error:
            self._answer_all(run, self._wire_error("write", error))
            return
        for request in run:
            if request.flags & NBD_CMD_FLAG_FUA:
                self._sync_waiting.append(request)
            else:
                request.connection.reply(request)  # type: ignore[union-attr]

    def _write_many(self, run: list[Request]) -> None:
        payloads = [request.payload for request in run if request.payload is not None]
        offset = run[0].offset
        written = os.pwritev(self._descriptor, payloads, offset)
        for payload in payloads:
            # Only after a short write is there anything left to do.
            if written < len(payload):
                _write_all(self._descriptor, payload[written:], offset + written)
            written = max(0, written - len(payload))
            offset += len(payload)

    def _read(self, request: Request, inline: bool) -> None:
        length = request.length
        hold: Chunk | None = None
        if length >= POOLED_READ_BYTES_MIN and (hold := self._read_pool.take(length)):
            data = hold.view[:length]
        else:
            data = memoryview(bytearray(length))
        if inline and self._read_cached(data, request.offset):
            request.connection.reply(request, 0, data, hold)  # type: ignore[union-attr]
        else:
            self._in_thread(self._read_all, request, data, hold)

    def _read_cached(self, data: memoryview, offset: int) -> bool:
        """True if all of it was to be had without waiting for the disk."""
        try:
            return os.preadv(self._descriptor, (data,), offset, self._read_flags) == len(data)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and self._read_flags:
                # Not known to this file system; tmpfs, for one, has no need of it.
                self._read_flags = 0
                return self._read_cached(data, offset)
            return False  # The thread meets the error again and reports it.

    def _start_sync(self) -> None:
        self._syncing, self._sync_waiting = self._sync_waiting, []
        self._threads.submit(self._sync).add_done_callback(self._report_bug)

    def _after_sync(self, error: int) -> None:
        self._sync_failed = self._sync_failed or error != 0
        answered, self._syncing = self._syncing, []
        self._answer_all(answered, error)
        if self._sync_waiting:
            self._start_sync()

    def _answer_all(self, requests: Sequence[Request], error: int) -> None:
        """Answer requests of any connections, and send."""
        connections = set()
        for request in requests:
            connection = request.connection
            assert connection is not None
            connection.reply(request, error)
            connections.add(connection)
        for connection in connections:
            connection.send_replies()

    def _answer_finished(self) -> None:
        """Answer what the threads have done since the last time."""
        connections = set()
        while self._finished:
            request, error, data, hold = self._finished.popleft()
            connection = request.connection
            assert connection is not None
            if not error and data is None and request.flags & NBD_CMD_FLAG_FUA:
                self._sync_waiting.append(request)
                continue
            connection.reply(request, error, data, hold)
            connections.add(connection)
        if self._sync_waiting and not self._syncing:
            self._start_sync()
        for connection in connections:
            connection.send_replies()

    def _in_thread(
        self,
        work: Callable[[Request, memoryview | None], None],
        request: Request,
        data: memoryview | None = None,
        hold: Chunk | None = None,
    ) -> None:
        future = self._threads.submit(self._carry_out, work, request, data, hold)
        future.add_done_callback(self._report_bug)

    # In a thread.

    def _carry_out(
        self,
        work: Callable[[Request, memoryview | None], None],
        request: Request,
        data: memoryview | None,
        hold: Chunk | None,
    ) -> None:
        try:
            work(request, data)
            error = 0
        except OSError as failure:
            error = self._wire_error(work.__name__.strip("_"), failure)
        self._finished.append((request, error, data, hold))
        self._loop.call_soon_threadsafe(self._answer_finished)

    def _write_alone(self, request: Request, data: memoryview | None) -> None:
        self._refuse_after_failed_sync()
        assert request.payload is not None
        _write_all(self._descriptor, request.payload, request.offset)

    def _read_all(self, request: Request, data: memoryview | None) -> None:
        assert data is not None
        position = 0
        while position < len(data):
            count = os.preadv(self._descriptor, (data[position:],), request.offset + position)
            if not count:
                raise OSError(errno.EIO, "the file is shorter than when it was opened")
            position += count

    def _zero(self, request: Request, data: memoryview | None) -> None:
        self._refuse_after_failed_sync()
        zero_range(
            self._descriptor,
            request.offset,
            request.length,
            may_punch=request.command == NBD_CMD_TRIM or not request.flags & NBD_CMD_FLAG_NO_HOLE,
            granularity_bytes=self._granularity_bytes,
        )

    def _sync(self) -> None:
        error = 0
        try:
            self._refuse_after_failed_sync()
            os.fdatasync(self._descriptor)
        except OSError as failure:
            error = self._wire_error("fdatasync", failure)
        self._loop.call_soon_threadsafe(self._after_sync, error)

    def _refuse_after_failed_sync(self) -> None:
        if self._sync_failed:
            raise OSError(errno.EIO, "an earlier fdatasync failed, so written data may be lost")

    # In either.

    def _wire_error(self, operation: str, error: OSError) -> int:
        """The error number for the client; the first of its kind is logged."""
        number = error.errno or errno.EIO
        if (operation, number) not in self._errors_logged:
            self._errors_logged.add((operation, number))
            log.error("%s: %s failed: %s", self._path, operation, error.strerror)
        return NBD_ENOSPC if number in _NO_SPACE else NBD_EIO

    def _report_bug(self, future: Future[None]) -> None:
        """Whatever a thread raised beyond OSError is our bug, and is shown as the loop's are."""
        error = future.exception()
        if error is not None:
            context = {"message": "file thread failed", "exception": error}
            self._loop.call_soon_threadsafe(self._loop.call_exception_handler, context)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write the whole of `data`, however often it takes. Raises OSError."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset += written

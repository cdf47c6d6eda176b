"""Serves a plain file or a block device.

Small work on the page cache happens on the loop's thread, where a system call of two microseconds
costs less than any hand-over. What may block goes to threads (`file_threads.py`). Adjacent writes
of one turn become one pwritev.

Ordering: a WRITE is answered after its bytes are in the page cache, so every later READ sees them
and every later fdatasync covers them, on whichever connection. Requests in flight together have no
order, as the protocol allows, except with a zeroing: what touches its range waits until it is done,
and then goes on in the order in which it came.
One fdatasync at a time runs; those who ask meanwhile share the next one, which starts after they
asked. After a failed one every FLUSH, FUA and write is refused.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nbdserver.allocation import cut
from nbdserver.buffers import ByteBudget, Chunk, ChunkPool
from nbdserver.contexts import BASE_ALLOCATION
from nbdserver.file_data import FILE_DATA_BYTES_MIN, FileData, PageCache
from nbdserver.file_threads import FileThreads, Outcome
from nbdserver.file_work import FileWork
from nbdserver.overlaps import Overlaps
from nbdserver.protocol import (
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_CACHE,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_TRIM,
    NBD_CMD_WRITE,
    NBD_CMD_WRITE_ZEROES,
)
from nbdserver.requests import StatusRequest

if TYPE_CHECKING:
    from nbdserver.connection import Connection
    from nbdserver.requests import Request

INLINE_REQUEST_BYTES_MAX: Final = 1 << 20
INLINE_TURN_BYTES_MAX: Final = 4 << 20
# Reads from here on use a warm buffer of a pool; below, a fresh bytearray costs less.
POOLED_READ_BYTES_MIN: Final = 64 << 10
POOLED_READ_BYTES_MAX: Final = 256 << 20
SPARE_READ_BYTES_MAX: Final = 16 << 20

_WRITING: Final = frozenset((NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES))


class FileBackend:
    """A `Backend` over one file, shared by all its connections. Raises OSError if it cannot open.

    `size_bytes` is the file's size now, cut to whole blocks of `block_bytes`; it must not change
    while the file is served. `contexts` are the metadata contexts that can be answered.
    """

    contexts: Final = (BASE_ALLOCATION,)

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        path: Path,
        *,
        read_only: bool = False,
        block_bytes: int = 1,
    ) -> None:
        access = os.O_RDONLY if read_only else os.O_RDWR
        self._descriptor = os.open(path, access | os.O_CLOEXEC)
        device = stat.S_ISBLK(os.fstat(self._descriptor).st_mode)
        found_bytes = os.lseek(self._descriptor, 0, os.SEEK_END)
        self.size_bytes = found_bytes - found_bytes % block_bytes
        self._read_flags = os.RWF_NOWAIT
        self._page_cache = PageCache(self._descriptor, self.size_bytes)
        self._work = FileWork(self._descriptor, path, self.size_bytes, block_bytes, device=device)
        self._threads = FileThreads(loop, self._deliver)
        self._overlaps = Overlaps()
        self._sync_waiting: list[Request] = []
        self._syncing: list[Request] = []
        self._read_pool = ChunkPool(
            ByteBudget(POOLED_READ_BYTES_MAX), POOLED_READ_BYTES_MAX, SPARE_READ_BYTES_MAX
        )

    def close(self) -> None:
        """Wait for the threads and close the file. No connection may be using it any more."""
        self._threads.close()
        self._page_cache.close()
        os.close(self._descriptor)

    def submit(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Carry out one turn's requests; see `export.Backend`."""
        self._carry_out(requests)
        connection.send_replies()

    def disconnected(self, connection: Connection) -> None:
        """Nothing is kept for a connection beyond its requests, and those finish by themselves."""

    # On the loop's thread.

    def _carry_out(self, requests: Sequence[Request], *, held: bool = False) -> None:
        """Do or begin these; if they were `held` before, they have waited for all they overlap."""
        run: list[Request] = []
        run_end = -1
        inline_bytes_left = INLINE_TURN_BYTES_MAX
        overlaps = self._overlaps
        for request in requests:
            if not held and overlaps.busy and overlaps.must_wait(request):
                continue
            command, length, connection = request.command, request.length, request.connection
            try:
                if command == NBD_CMD_WRITE:
                    if (
                        length > INLINE_REQUEST_BYTES_MAX
                        or length > inline_bytes_left
                        or self._work.sync_failed
                    ):
                        self._threads.run(request, partial(self._work.write, request))
                        continue
                    inline_bytes_left -= length
                    if request.offset != run_end:
                        if run:
                            self._write_run(run)
                        run = []
                    run.append(request)
                    run_end = request.offset + length
                elif command == NBD_CMD_READ:
                    inline = length <= INLINE_REQUEST_BYTES_MAX and length <= inline_bytes_left
                    inline_bytes_left -= length if inline else 0
                    if run and request.offset < run_end and run[0].offset < request.offset + length:
                        self._write_run(run)
                        run, run_end = [], -1
                    self._read(request, inline)
                elif command == NBD_CMD_FLUSH:
                    self._sync_waiting.append(request)
                else:
                    # A zeroing must not begin before a write that came before it.
                    if run:
                        self._write_run(run)
                    run, run_end = [], -1
                    self._begin_other(request)
            except Exception as bug:  # ours; it ends this client and no other
                _fail(connection, request, bug)
        if run:
            self._write_run(run)
        if self._sync_waiting and not self._syncing:
            self._start_sync()

    def _begin_other(self, request: Request) -> None:
        command = request.command
        if command in (NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES):
            self._overlaps.begin(request)
            self._work.allocation.forget()
            zeroing, step = self._work.zeroing(request)
            self._threads.run_steps(request, step, lambda: self._zeroed(request, zeroing.position))
        elif command == NBD_CMD_CACHE:
            self._threads.run(request, partial(self._work.cache, request))
        else:
            assert command == NBD_CMD_BLOCK_STATUS and isinstance(request, StatusRequest)
            if self._work.allocation.is_known_data(request.offset, request.length):
                data = ((request.length, 0),)
                statuses = dict.fromkeys(request.contexts, data)
                request.connection.reply_status(request, statuses)  # type: ignore[union-attr]
            else:
                self._threads.run(request, partial(self._work.status, request))

    def _write_run(self, run: list[Request]) -> None:
        """Write requests that follow each other without a gap, and answer them."""
        failure = None
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
            failure = self._work.failed("write", error)
        for request in run:
            connection = request.connection
            assert connection is not None
            if failure is not None:
                connection.reply(request, failure.error, text=failure.text)
            elif request.flags & NBD_CMD_FLAG_FUA:
                self._sync_waiting.append(request)
            else:
                connection.reply(request)

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
        connection, offset, length = request.connection, request.offset, request.length
        assert connection is not None
        parts = None
        if connection.tells_holes:
            parts = self._work.allocation.holes_now(offset, length)
            if parts is not None and len(parts) == 1:
                connection.reply_sparse(request, [length])
                return
        if (
            inline
            and parts is None
            and length >= FILE_DATA_BYTES_MIN
            and connection.sends_at_once(length)
            and self._page_cache.holds(offset, length)
        ):
            connection.reply_file(request, FileData(self._descriptor, offset, length))
            return
        hold: Chunk | None = None
        if length >= POOLED_READ_BYTES_MIN and (hold := self._read_pool.take(length)):
            data = hold.view[:length]
        else:
            data = memoryview(bytearray(length))
        if inline and self._read_cached(data, offset):
            if parts is None:
                connection.reply(request, 0, data, hold)
            else:
                connection.reply_sparse(request, cut(data, parts), hold)
        elif parts is None:
            self._threads.run(request, partial(self._work.read, request, data, hold))
        else:
            work = partial(self._work.read_parts, request, parts, data, hold)
            self._threads.run(request, work)

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
        self._threads.sync(self._work.sync, self._after_sync)

    def _after_sync(self, outcome: Outcome) -> None:
        answered, self._syncing = self._syncing, []
        self._answer([(request, outcome) for request in answered])
        if self._sync_waiting:
            self._start_sync()

    def _zeroed(self, request: Request, position: int) -> None:
        """A zeroing goes on from `position`: what lies before waits no longer."""
        self._release(self._overlaps.advance(request, position))

    def _deliver(self, batch: Sequence[tuple[Request, Outcome]]) -> None:
        """Answer what the threads have done, and go on with whoever waited for it."""
        answers = []
        released: list[Request] = []
        for request, outcome in batch:
            if request.command in (NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES):
                self._work.allocation.forget()
                released += self._overlaps.end(request)
            done = outcome.error or outcome.bug is not None
            if not done and request.flags & NBD_CMD_FLAG_FUA and request.command in _WRITING:
                self._sync_waiting.append(request)
            else:
                answers.append((request, outcome))
        self._answer(answers)
        self._release(released)

    def _release(self, requests: Sequence[Request]) -> None:
        """Carry out requests that were held, and whatever waits for a sync by now."""
        connections = {request.connection for request in requests}
        self._carry_out(requests, held=True)
        for connection in connections:
            assert connection is not None
            connection.send_replies()

    def _answer(self, answers: Sequence[tuple[Request, Outcome]]) -> None:
        """Answer requests of any connections, and send."""
        connections = set()
        for request, outcome in answers:
            connection = request.connection
            assert connection is not None
            connections.add(connection)
            if outcome.bug is not None:
                connection.fail(outcome.bug, [request])
            elif outcome.error:
                hold, text, at = outcome.hold, outcome.text, outcome.at
                connection.reply(request, outcome.error, hold=hold, text=text, at=at)
            elif outcome.parts is not None:
                connection.reply_sparse(request, outcome.parts, outcome.hold)
            elif outcome.statuses is not None:
                connection.reply_status(request, outcome.statuses)
            else:
                connection.reply(request, 0, outcome.data, outcome.hold)
        for connection in connections:
            connection.send_replies()


def _fail(connection: Connection | None, request: Request, bug: Exception) -> None:
    """End the client whose request met an error of ours."""
    assert connection is not None
    connection.fail(bug, [request] if request.connection is connection else ())


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write the whole of `data`, however often it takes. Raises OSError."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        data = data[written:]
        offset += written

"""Answering what reads: data, holes, statuses and hints.

From the page cache inside the turn, from the disk in a thread. A read that fails is answered by
nobody: its client sends it again where the data can be read (design §7). Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nbdserver.allocation import cut
from nbdserver.buffers import ByteBudget, Chunk, ChunkPool
from nbdserver.connection import Connection
from nbdserver.file_data import FILE_DATA_BYTES_MIN, FileData, PageCache
from nbdserver.protocol import NBD_CMD_CACHE, NBD_CMD_READ
from nbdserver.replies import Extents
from nbdserver.requests import Request, StatusRequest
from repl.core.volume import Volume
from repl.node.block_status import BlockStatus, allocation_of
from repl.store.backing import Backing
from repl.store.iothreads import IoThreads

#: What one CACHE reads ahead at most.
CACHE_BYTES_MAX: Final = 64 << 20
#: Reads from here on use a warm buffer of a pool; below, a fresh bytearray costs less.
POOLED_READ_BYTES_MIN: Final = 64 << 10
#: What all buffers of the pool are at most; reads beyond that get fresh ones.
POOLED_READ_BYTES_MAX: Final = 256 << 20
SPARE_READ_BYTES_MAX: Final = 16 << 20

_Holes = list[tuple[int, int]]


class Reader:
    """Carries out `Outbox.reads`; a disk error goes to `failed`."""

    def __init__(
        self,
        volume: Volume,
        backing: Backing,
        threads: IoThreads,
        failed: Callable[[str], None],
        run_again: Callable[[Callable[[], None]], None],
    ) -> None:
        self._volume = volume
        self._backing = backing
        self._threads = threads
        self._failed = failed
        self._run_again = run_again
        self._allocation = allocation_of(backing)
        self._status = BlockStatus(volume, self._allocation, threads)
        self._page_cache = PageCache(backing.fileno(), volume.size_bytes)
        self._pool = ChunkPool(
            ByteBudget(POOLED_READ_BYTES_MAX), POOLED_READ_BYTES_MAX, SPARE_READ_BYTES_MAX
        )

    def close(self) -> None:
        """Let go of the backing. Nothing is answered any more."""
        self._page_cache.close()

    def forget_holes(self) -> None:
        """Where there was data there may be holes by now."""
        self._allocation.forget()

    def answer(self, request: Request, answered: set[Connection]) -> None:
        """Answer now, and note in `answered` whose replies are to be sent, or begin to."""
        if request.command == NBD_CMD_READ:
            self._read(request, answered)
        elif isinstance(request, StatusRequest):
            self._status.answer(request, _reply_status)
        else:
            assert request.command == NBD_CMD_CACHE, request
            length = min(request.length, CACHE_BYTES_MAX)
            self._threads.run(
                self._backing.prefetch,
                request.offset,
                length,
                done=lambda _result, _error: _reply(request),
            )

    def _read(self, request: Request, answered: set[Connection]) -> None:
        connection, length = request.connection, request.length
        assert connection is not None
        holes: _Holes | None = None
        if connection.tells_holes:
            holes = self._allocation.holes_now(request.offset, length)
            if holes is not None and len(holes) == 1:
                connection.reply_sparse(request, [length])
                answered.add(connection)
                return
        if (
            holes is None
            and length >= FILE_DATA_BYTES_MIN
            and connection.sends_at_once(length)
            and self._page_cache.holds(request.offset, length)
        ):
            descriptor = self._backing.fileno()
            connection.reply_file(request, FileData(descriptor, request.offset, length))
            answered.add(connection)
            return
        hold: Chunk | None = None
        buffer: bytearray | memoryview
        if length >= POOLED_READ_BYTES_MIN and (hold := self._pool.take(length)) is not None:
            buffer = hold.view[:length]
        else:
            buffer = bytearray(length)
        try:
            cached = self._backing.preadv_cached(buffer, request.offset)
        except OSError as error:
            _release(hold)
            self._could_not(request, error)
            return
        if cached:
            _reply_data(request, buffer, holes, hold)
            answered.add(connection)
            return
        self._read_in_thread(request, buffer, holes, hold)

    def _read_in_thread(
        self,
        request: Request,
        buffer: bytearray | memoryview,
        holes: _Holes | None,
        hold: Chunk | None,
    ) -> None:
        self._threads.run(
            self._backing.preadv,
            [buffer],
            request.offset,
            done=lambda _result, error: self._done(request, buffer, holes, hold, error),
        )

    def _done(
        self,
        request: Request,
        buffer: bytearray | memoryview,
        holes: _Holes | None,
        hold: Chunk | None,
        error: Exception | None,
    ) -> None:
        connection = request.connection
        if connection is None:
            _release(hold)
            return
        if error is not None:
            _release(hold)
            failure = error
            self._run_again(lambda: self._could_not(request, failure))
            return
        _reply_data(request, buffer, holes, hold)
        connection.send_replies()

    def _could_not(self, request: Request, error: Exception) -> None:
        self._failed(f"read: {error}")
        self._volume.forget(request)


def _reply_data(
    request: Request, buffer: bytearray | memoryview, holes: _Holes | None, hold: Chunk | None
) -> None:
    """Answer; the buffer goes back to its pool when all of it was sent, or never will be."""
    connection = request.connection
    assert connection is not None
    if holes is None:
        connection.reply(request, 0, buffer, hold)
    else:
        connection.reply_sparse(request, cut(memoryview(buffer), holes), hold)


def _release(hold: Chunk | None) -> None:
    if hold is not None:
        hold.release()


def _reply(request: Request) -> None:
    connection = request.connection
    if connection is not None:
        connection.reply(request)
        connection.send_replies()


def _reply_status(request: StatusRequest, statuses: dict[int, Extents]) -> None:
    connection = request.connection
    if connection is not None:
        connection.reply_status(request, statuses)
        connection.send_replies()

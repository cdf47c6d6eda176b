"""Carrying out client writes on the backing: coalesced, inside the turn, into the page cache.

Long zeroings go to a thread. A write that finds no room is kept and tried again as it is, in its
order, until it succeeds or the volume lets go of it; it is never reported done, and never failed.
Decides nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

from repl.core.outbox import DiskJob, Op, WriteKind
from repl.store.backing import NO_ROOM, Backing
from repl.store.iothreads import IoThreads

#: Zeroing more than this at once is left to a thread, in pieces of this size.
ZERO_IN_TURN_BYTES = 8 << 20
#: Buffers of adjacent writes that go down in one call.
BUFFERS_PER_CALL = 256

_WRITE = WriteKind.WRITE


class Core(Protocol):
    """What the writer tells the volume."""

    @property
    def failed(self) -> str: ...
    def disk_done(self, op: Op) -> None: ...
    def no_space(self, reason: str) -> None: ...
    def space_back(self) -> None: ...


class Writer:
    """Carries out `DiskJob`s; a disk error goes to `failed` and ends the batch."""

    def __init__(
        self,
        volume: Core,
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
        self._closed = False
        #: Writes that found no room, oldest first.
        self._starved: deque[DiskJob] = deque()

    def write(self, jobs: list[DiskJob]) -> None:
        """Carry out a turn's jobs; they do not overlap each other or any other in flight."""
        index, count = 0, len(jobs)
        try:
            while index < count:
                first = index
                _, kind, start, length = jobs[first]
                index += 1
                if kind is _WRITE and (index == count or jobs[index][2] != start + length):
                    # Nothing is adjacent, as in nearly every random load.
                    self._write_one(jobs[first])
                else:
                    index = self._run_end(jobs, first)
                    self._run(jobs[first:index])
        except OSError as error:
            self._failed(f"write: {error}")

    def _write_one(self, job: DiskJob) -> None:
        op, _kind, start, length = job
        try:
            self._backing.pwrite(op.payload, start)  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._volume.no_space(_described(error, start, length))
            self._starved.append(job)
        else:
            self._volume.disk_done(op)

    def retry(self) -> None:
        """Try the starved writes again, as far as there is room."""
        try:
            while self._starved and not self._volume.failed:
                job = self._starved[0]
                if _is_long(job):
                    self._zero_in_thread(self._starved.popleft())
                    return
                if not self._try(job):
                    return
                self._volume.disk_done(self._starved.popleft()[0])
        except OSError as error:
            self._failed(f"write: {error}")
            return
        self._volume.space_back()

    @property
    def starved(self) -> bool:
        """Whether a write waits for room."""
        return bool(self._starved)

    def let_go(self) -> None:
        """The volume abandoned its writes: what waits for room is never carried out."""
        starved, self._starved = self._starved, deque()
        for op, *_ in starved:
            self._volume.disk_done(op)
        self._volume.space_back()

    def close(self) -> None:
        """Nothing is begun any more; a zeroing in a thread ends after its present piece."""
        self._closed = True

    def _run_end(self, jobs: list[DiskJob], first: int) -> int:
        """Return the index behind the adjacent writes that begin at `first`."""
        _, kind, start, length = jobs[first]
        last = first + 1
        if kind != WriteKind.WRITE:
            return last
        end = start + length
        while last < len(jobs) and jobs[last][2] == end and last - first < BUFFERS_PER_CALL:
            if jobs[last][1] != WriteKind.WRITE:
                break
            end += jobs[last][3]
            last += 1
        return last

    def _run(self, run: list[DiskJob]) -> None:
        """Carry out one job, or adjacent writes in one call."""
        op, _kind, start, _length = run[0]
        if _is_long(run[0]):
            self._zero_in_thread(run[0])
        elif len(run) > 1:
            buffers = [job[0].payload for job in run]  # type: ignore[attr-defined]
            try:
                self._backing.pwritev(buffers, start)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                # One by one: those that lie in blocks which exist need no room.
                for job in run:
                    self._run([job])
                return
            for job in run:
                self._volume.disk_done(job[0])
        elif self._try(run[0]):
            self._volume.disk_done(op)
        else:
            self._starved.append(run[0])

    def _try(self, job: DiskJob) -> bool:
        """Carry out one job now; False if there is no room for it."""
        op, kind, start, length = job
        try:
            if kind == WriteKind.WRITE:
                self._backing.pwritev([op.payload], start)  # type: ignore[attr-defined]
            elif kind == WriteKind.TRIM:
                self._backing.punch(start, length)
            else:
                self._backing.zero(start, length)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._volume.no_space(_described(error, start, length))
            return False
        return True

    def _zero_in_thread(self, job: DiskJob) -> None:
        self._threads.run(
            self._zero_pieces, job, done=lambda ended, error: self._zeroed(job, ended, error)
        )

    def _zero_pieces(self, job: DiskJob) -> bool:
        """In a thread: zero the whole range; False if the writer was closed before the end."""
        _op, kind, start, length = job
        zero = self._backing.punch if kind == WriteKind.TRIM else self._backing.zero
        for piece in range(start, start + length, ZERO_IN_TURN_BYTES):
            if self._closed:
                return False
            zero(piece, min(ZERO_IN_TURN_BYTES, start + length - piece))
        return True

    def _zeroed(self, job: DiskJob, ended: bool | None, error: Exception | None) -> None:
        op, _kind, start, length = job

        def report() -> None:
            if error is None:
                assert ended, "a closed writer reports to nobody"
                self._volume.disk_done(op)
                if not self._starved:
                    self._volume.space_back()
            elif isinstance(error, OSError) and error.errno in NO_ROOM:
                self._volume.no_space(_described(error, start, length))
                self._starved.append(job)
            else:
                self._failed(f"write: {error}")

        self._run_again(report)


def _is_long(job: DiskJob) -> bool:
    """Whether this is a zeroing that does not fit a turn."""
    return job[1] != WriteKind.WRITE and job[3] > ZERO_IN_TURN_BYTES


def _described(error: OSError, start: int, length: int) -> str:
    return f"{error.strerror or error} ({length} bytes at {start})"

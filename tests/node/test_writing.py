"""A write without room is neither done nor failed: it is tried again as it is, or let go of."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, cast

import pytest

from repl.core.outbox import DiskJob, WriteKind
from repl.node.writing import ZERO_IN_TURN_BYTES, Writer
from repl.store.backing import Backing
from repl.store.iothreads import IoThreads

NO_ROOM = OSError(errno.ENOSPC, "No space left on device")


class Disk:
    """A backing that notes what it was asked, and has room below `room_until` only."""

    def __init__(self) -> None:
        self.written: list[tuple[int, int]] = []
        self.zeroed: list[tuple[int, int]] = []
        self.room_until = 1 << 40
        self.error: OSError = NO_ROOM

    def _check(self, end: int) -> None:
        if end > self.room_until:
            raise self.error

    def pwrite(self, buffer: bytes, offset: int) -> None:
        self.pwritev([buffer], offset)

    def pwritev(self, buffers: list[bytes], offset: int) -> None:
        end = offset + sum(map(len, buffers))
        self._check(end)
        self.written.append((offset, end))

    def zero(self, offset: int, length: int) -> None:
        self._check(offset + length)
        self.zeroed.append((offset, length))

    punch = zero


class Core:
    """What the writer tells the volume."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.full = ""
        self.failed = ""

    def disk_done(self, op: object) -> None:
        self.done.append(op)

    def no_space(self, reason: str) -> None:
        self.full = reason

    def space_back(self) -> None:
        self.full = ""


class Threads:
    """Calls are carried out when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[Callable[..., Any], tuple[Any, ...], Callable[..., None]]] = []

    def run(self, call: Callable[..., Any], *args: Any, done: Callable[..., None]) -> None:
        self.calls.append((call, args, done))

    def work(self) -> None:
        calls, self.calls = self.calls, []
        for call, args, done in calls:
            try:
                done(call(*args), None)
            except OSError as error:
                done(None, error)


class Op:
    """A client's request with its payload."""

    def __init__(self, payload: bytes = b"") -> None:
        self.payload = payload


class Bench:
    """A writer and everything around it."""

    def __init__(self) -> None:
        self.disk, self.core, self.threads = Disk(), Core(), Threads()
        self.failures: list[str] = []
        self.writer = Writer(
            self.core,
            cast(Backing, self.disk),
            cast(IoThreads, self.threads),
            self.failures.append,
            lambda feed: feed(),
        )


@pytest.fixture
def bench() -> Bench:
    return Bench()


def write(offset: int, length: int = 4096) -> DiskJob:
    return (Op(bytes(length)), WriteKind.WRITE, offset, length)


def zero(offset: int, length: int) -> DiskJob:
    return (Op(), WriteKind.ZERO, offset, length)


def test_adjacent_writes_go_down_in_one_call(bench: Bench) -> None:
    jobs = [write(0), write(4096), write(16384)]
    bench.writer.write(jobs)
    assert bench.disk.written == [(0, 8192), (16384, 20480)]
    assert bench.core.done == [job[0] for job in jobs]


def test_write_without_room_waits_and_its_neighbours_do_not(bench: Bench) -> None:
    bench.disk.room_until = 8192
    jobs = [write(0), write(4096), write(8192)]
    bench.writer.write(jobs)
    assert bench.core.done == [job[0] for job in jobs[:2]]
    assert bench.writer.starved and bench.core.full
    bench.writer.retry()
    assert bench.core.done == [job[0] for job in jobs[:2]], "there is still no room"
    bench.disk.room_until = 1 << 20
    bench.writer.retry()
    assert bench.core.done == [job[0] for job in jobs]
    assert not bench.writer.starved and not bench.core.full and not bench.failures


def test_write_that_was_let_go_is_never_carried_out(bench: Bench) -> None:
    bench.disk.room_until = 0
    job = write(0)
    bench.writer.write([job])
    bench.writer.let_go()
    bench.disk.room_until = 1 << 20
    bench.writer.retry()
    assert bench.disk.written == []
    assert bench.core.done == [job[0]], "its buffer is given back"


def test_other_errors_fail_the_copy(bench: Bench) -> None:
    bench.disk.room_until, bench.disk.error = 0, OSError(errno.EIO, "Input/output error")
    bench.writer.write([write(0), write(4096)])
    assert len(bench.failures) == 1 and not bench.core.done and not bench.writer.starved


def test_long_zeroing_leaves_the_turn_and_is_done_at_its_end(bench: Bench) -> None:
    job = zero(0, 3 * ZERO_IN_TURN_BYTES + 512)
    bench.writer.write([job])
    assert not bench.disk.zeroed and not bench.core.done
    bench.threads.work()
    assert [length for _, length in bench.disk.zeroed] == [ZERO_IN_TURN_BYTES] * 3 + [512]
    assert bench.core.done == [job[0]]


def test_long_zeroing_without_room_is_tried_again_in_a_thread(bench: Bench) -> None:
    bench.disk.room_until = ZERO_IN_TURN_BYTES
    job = zero(0, 2 * ZERO_IN_TURN_BYTES)
    bench.writer.write([job])
    bench.threads.work()
    assert bench.writer.starved and not bench.core.done
    bench.disk.room_until = 1 << 40
    bench.writer.retry()
    bench.threads.work()
    assert bench.core.done == [job[0]] and not bench.core.full


def test_closed_writer_ends_a_long_zeroing_early(bench: Bench) -> None:
    bench.writer.write([zero(0, 4 * ZERO_IN_TURN_BYTES)])
    bench.writer.close()
    ((call, args, _done),) = bench.threads.calls
    assert call(*args) is False
    assert bench.disk.zeroed == []

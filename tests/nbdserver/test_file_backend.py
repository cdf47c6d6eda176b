"""A file behind a connection: contents, durability order, errors of the disk."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from nbdserver import protocol as nbd
from nbdserver import zeroing
from nbdserver.connection import Connection
from nbdserver.file_backend import FileBackend
from nbdserver.file_data import FILE_DATA_BYTES_MIN, FileData, PageCache
from tests.nbdserver.conftest import DISK_BYTES, Run
from tests.nbdserver.served_file import Gate, ServedFile
from tests.nbdserver.wire import eventually, read, request, write

MIB = 1 << 20
FUA = nbd.NBD_CMD_FLAG_FUA


@pytest.mark.parametrize("length", [1, 4096, 64 << 10, MIB, 3 * MIB, 32 * MIB])
def test_what_is_written_is_read_back_whatever_its_size(run: Run, disk: Path, length: int) -> None:
    async def scenario() -> None:
        served = ServedFile(disk)
        data = os.urandom(length)
        assert await served.ask(write(5, data)) == 0
        assert await served.read(5, length) == data
        assert await served.read(0, 5) == bytes(5)
        await served.close()
        assert disk.read_bytes()[5 : 5 + length] == data

    run(scenario())


def test_adjacent_writes_of_a_turn_become_one_system_call(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    calls = []
    real = os.pwritev

    def counted(descriptor: int, buffers: Any, offset: int) -> int:
        calls.append((offset, len(buffers)))
        return real(descriptor, buffers, offset)

    async def scenario() -> None:
        served = ServedFile(disk)
        batch = b"".join(write(1000 + i * 10, bytes([65 + i]) * 10, cookie=i) for i in range(9))
        await served.client.send(batch + write(0, b"apart", cookie=9))
        assert [await served.client.reply() for _ in range(10)] == [(0, i) for i in range(10)]
        assert await served.read(1000, 90) == b"".join(bytes([65 + i]) * 10 for i in range(9))
        await served.close()

    monkeypatch.setattr(os, "pwritev", counted)
    asyncio.run(scenario())
    assert calls == [(1000, 9)]


@pytest.mark.parametrize("first_count", [0, 1, 9, 10, 11, 25, 39])
def test_short_write_of_a_run_is_completed(
    monkeypatch: pytest.MonkeyPatch, disk: Path, first_count: int
) -> None:
    real = os.pwritev

    def short(descriptor: int, buffers: Any, offset: int) -> int:
        return real(descriptor, [b"".join(buffers)[:first_count]], offset)

    async def scenario() -> None:
        served = ServedFile(disk)
        data = os.urandom(40)
        await served.client.send(b"".join(write(i, data[i : i + 10]) for i in range(0, 40, 10)))
        assert await served.client.receive(64)
        assert await served.read(0, 50) == data + bytes(10)
        await served.close()

    monkeypatch.setattr(os, "pwritev", short)
    asyncio.run(scenario())


def test_later_write_of_a_turn_wins_over_an_earlier_one(disk: Path) -> None:
    async def scenario() -> None:
        served = ServedFile(disk)
        await served.client.send(write(0, b"aaaa") + write(4, b"bbbb") + write(2, b"cccc"))
        await served.client.receive(48)
        assert await served.read(0, 8) == b"aaccccbb"
        await served.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("command", [nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES])
@pytest.mark.parametrize("flags", [0, FUA])
def test_zeroed_range_reads_as_zero_and_edges_stay(
    run: Run, disk: Path, command: int, flags: int
) -> None:
    async def scenario() -> None:
        served = ServedFile(disk)
        assert await served.ask(write(0, b"x" * MIB)) == 0
        assert await served.ask(request(command, 1001, 500_000, flags=flags)) == 0
        found = await served.read(0, MIB)
        assert found == b"x" * 1001 + bytes(500_000) + b"x" * (MIB - 501_001)
        await served.close()

    run(scenario())


def test_zeroing_all_of_a_large_export_is_one_request(disk: Path) -> None:
    os.truncate(disk, 3 << 30)

    async def scenario() -> None:
        served = ServedFile(disk)
        assert await served.ask(write((3 << 30) - 5, b"tail!")) == 0
        assert await served.ask(request(nbd.NBD_CMD_WRITE_ZEROES, 0, 3 << 30)) == 0
        assert await served.read((3 << 30) - 5, 5) == bytes(5)
        await served.close()

    asyncio.run(scenario())


def test_flush_waits_for_the_sync_and_later_ones_share_the_next(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    gate = Gate(os.fdatasync)
    monkeypatch.setattr(os, "fdatasync", gate)

    async def scenario() -> None:
        served = ServedFile(disk)
        flush = nbd.NBD_CMD_FLUSH
        await served.client.send(request(flush, cookie=1))
        await eventually(lambda: gate.begun == 1, "the first sync runs")
        # These came after it began, so it may not answer them.
        await served.client.send(
            request(flush, cookie=2)
            + write(0, b"x", cookie=3, flags=FUA)
            + write(1, b"y", cookie=4)
        )
        assert await served.client.reply() == (0, 4)
        gate.open()
        assert [await served.client.reply() for _ in range(3)] == [(0, 1), (0, 2), (0, 3)]
        assert gate.begun == 2
        await served.close()

    asyncio.run(scenario())


def test_flush_on_one_connection_covers_writes_on_another(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    synced = []
    real = os.fdatasync

    def recording(descriptor: int) -> None:
        synced.append(os.pread(descriptor, 4, 0))
        real(descriptor)

    monkeypatch.setattr(os, "fdatasync", recording)

    async def scenario() -> None:
        served = ServedFile(disk)
        other = served.another()
        assert await served.ask(write(0, b"data")) == 0
        assert await served.ask(request(nbd.NBD_CMD_FLUSH), other) == 0
        await served.close()

    asyncio.run(scenario())
    assert synced == [b"data"]


@pytest.mark.parametrize("length", [1, MIB + 1], ids=["in the turn", "in a thread"])
def test_write_with_fua_is_durable_before_its_answer(
    monkeypatch: pytest.MonkeyPatch, disk: Path, length: int
) -> None:
    gate = Gate(os.fdatasync)
    monkeypatch.setattr(os, "fdatasync", gate)

    async def scenario() -> None:
        served = ServedFile(disk)
        await served.client.send(write(0, b"x" * length, flags=FUA, cookie=1))
        await eventually(lambda: gate.begun == 1, "it is synced")
        assert disk.read_bytes()[:length] == b"x" * length
        await served.client.send(write(length, b"y", cookie=2))
        assert await served.client.reply() == (0, 2)
        gate.open()
        assert await served.client.reply() == (0, 1)
        await served.close()

    asyncio.run(scenario())


def test_failed_sync_is_never_followed_by_success(
    monkeypatch: pytest.MonkeyPatch, disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    async def scenario() -> None:
        served = ServedFile(disk)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", failing)
            assert await served.ask(request(nbd.NBD_CMD_FLUSH)) == nbd.NBD_EIO
        for data in (
            request(nbd.NBD_CMD_FLUSH),
            write(0, b"x"),
            write(0, b"x", flags=FUA),
            request(nbd.NBD_CMD_WRITE_ZEROES, 0, 1),
        ):
            assert await served.ask(data) == nbd.NBD_EIO
        assert await served.read(0, 1) == b"\0"
        await served.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert caplog.text.count("the disk is gone") == 1


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, nbd.NBD_ENOSPC),
        (errno.EDQUOT, nbd.NBD_ENOSPC),
        (errno.EIO, nbd.NBD_EIO),
        (errno.ESTALE, nbd.NBD_EIO),
    ],
)
def test_write_errors_reach_the_client_and_are_logged_once(
    monkeypatch: pytest.MonkeyPatch,
    disk: Path,
    caplog: pytest.LogCaptureFixture,
    number: int,
    error: int,
) -> None:
    def failing(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    async def scenario() -> None:
        served = ServedFile(disk)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", failing)
            for _ in range(3):
                assert await served.ask(write(0, b"x")) == error
        assert await served.ask(write(0, b"x")) == 0
        await served.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert len([each for each in caplog.records if each.levelno == logging.ERROR]) == 1


def test_file_cut_under_the_server_gives_an_error_and_no_invented_data(disk: Path) -> None:
    async def scenario() -> None:
        served = ServedFile(disk)
        os.truncate(disk, 1000)
        assert await served.ask(read(0, 4096)) == nbd.NBD_EIO
        assert await served.read(0, 1000) == bytes(1000)
        await served.close()

    asyncio.run(scenario())


def test_read_that_would_block_goes_to_a_thread(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    threads = set()
    real = os.preadv

    def cold(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "cold")
        threads.add(threading.current_thread())
        return real(descriptor, buffers, offset, flags)

    async def scenario() -> None:
        served = ServedFile(disk)
        assert await served.ask(write(0, b"cold data")) == 0
        assert await served.read(0, 9) == b"cold data"
        await served.close()

    monkeypatch.setattr(os, "preadv", cold)
    asyncio.run(scenario())
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("can_tell", [True, False])
def test_large_read_is_the_same_whether_the_page_cache_is_sent_or_copied(
    monkeypatch: pytest.MonkeyPatch, run: Run, disk: Path, can_tell: bool
) -> None:
    sent: list[int] = []
    real = FileData.send_to

    def noted(data: FileData, sock: socket.socket) -> int:
        sent.append(real(data, sock))
        return sent[-1]

    async def scenario() -> None:
        served = ServedFile(disk)
        content = os.urandom(FILE_DATA_BYTES_MIN + 4096)
        assert await served.ask(write(4096, content)) == 0
        with disk.open("rb") as file:
            tells = PageCache(file.fileno(), DISK_BYTES).holds(4096, len(content))
        assert (
            await served.read(4096, FILE_DATA_BYTES_MIN - 1) == content[: FILE_DATA_BYTES_MIN - 1]
        )
        assert sent == []
        assert await served.read(4096, len(content)) == content
        assert bool(sent) == tells
        await served.close()

    monkeypatch.setattr(FileData, "send_to", noted)
    if not can_tell:
        monkeypatch.setattr(PageCache, "holds", lambda *_: False)
    run(scenario())


def test_file_system_without_nowait_is_read_directly(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    flags_seen = []
    real = os.preadv

    def unsupported(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        flags_seen.append(flags)
        if flags & os.RWF_NOWAIT:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(descriptor, buffers, offset, flags)

    async def scenario() -> None:
        served = ServedFile(disk)
        for _ in range(3):
            assert await served.read(0, 5) == bytes(5)
        await served.close()

    monkeypatch.setattr(os, "preadv", unsupported)
    asyncio.run(scenario())
    assert flags_seen == [os.RWF_NOWAIT, 0, 0, 0]


def test_abandoned_connection_is_idle_only_after_its_thread_is_done(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    gate = Gate(zeroing.fallocate)
    monkeypatch.setattr(zeroing, "fallocate", gate)

    async def scenario() -> None:
        served = ServedFile(disk)
        idle: list[Connection] = []
        connection = served.connections[0]
        connection.on_idle = idle.append
        await served.client.send(request(nbd.NBD_CMD_TRIM, 0, 4096))
        await eventually(lambda: gate.begun == 1, "the thread works")
        connection.abandon()
        assert idle == []
        gate.open()
        await eventually(lambda: idle == [connection], "the request is finished")
        await served.close()

    asyncio.run(scenario())


def test_size_is_the_size_of_the_file(disk: Path) -> None:
    async def scenario() -> None:
        backend = FileBackend(asyncio.get_running_loop(), disk, read_only=True)
        assert backend.size_bytes == DISK_BYTES
        backend.close()

    asyncio.run(scenario())

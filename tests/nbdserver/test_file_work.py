"""A file behind structured replies: holes, statuses, errors with a place; long zeroing in order."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from nbdserver import protocol as nbd
from nbdserver import zeroing
from nbdserver.connection import State
from nbdserver.terms import ReplyStyle, Terms
from tests.nbdserver.conftest import DISK_BYTES, Run
from tests.nbdserver.served_file import Gate, ServedFile, Steps
from tests.nbdserver.wire import Chunk, chunks, eventually, read, request, simple_reply, write

KIB = 1 << 10
MIB = 1 << 20
STRUCTURED = Terms(ReplyStyle.STRUCTURED, ("base:allocation",))
STATUS = nbd.NBD_CMD_BLOCK_STATUS
ZEROES = nbd.NBD_CMD_WRITE_ZEROES


class ChunkedFile(ServedFile):
    """A served file whose answers come in chunks."""

    def __init__(self, path: Path, block_bytes: int = 1) -> None:
        super().__init__(path, STRUCTURED, block_bytes)

    async def answers(self, data: bytes) -> list[Chunk]:
        """The chunks that answer the one request in `data`."""
        await self.client.send(data)
        found: list[Chunk] = []
        while not found or not found[-1].done:
            header = await self.client.receive(20)
            (length,) = struct.unpack_from(">I", header, 16)
            found += chunks(header + await self.client.receive(length))
        return found

    async def extents(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        (chunk,) = await self.answers(request(STATUS, offset, length, flags=flags))
        context, found = chunk.extents()
        assert context == 1
        return found


def parts(found: list[Chunk]) -> list[tuple[int, int, bytes]]:
    """(type, offset, data or length of the hole as bytes) of content chunks."""
    return [
        (each.type, int.from_bytes(each.payload[:8], "big"), each.payload[8:]) for each in found
    ]


def test_holes_are_told_apart_from_data(run: Run, disk: Path) -> None:
    async def scenario() -> None:
        served = ChunkedFile(disk)
        await served.client.send(write(64 * KIB, b"d" * 64 * KIB, cookie=1))
        assert await served.client.receive(16) == simple_reply(1)
        found = parts(await served.answers(read(0, 256 * KIB)))
        assert found == [
            (2, 0, struct.pack(">I", 64 * KIB)),
            (1, 64 * KIB, b"d" * 64 * KIB),
            (2, 128 * KIB, struct.pack(">I", 128 * KIB)),
        ]
        assert parts(await served.answers(read(0, 32 * MIB - 1)))[-1][0] == 2
        assert parts(await served.answers(read(1 * MIB, 4096))) == [(2, MIB, b"\0\0\x10\0")]
        await served.close()

    run(scenario())


def test_data_is_one_chunk_and_unfragmented_reads_have_no_holes(run: Run, disk: Path) -> None:
    async def scenario() -> None:
        served = ChunkedFile(disk)
        data = os.urandom(8 * KIB)
        await served.client.send(write(4 * KIB, data))
        await served.client.receive(16)
        assert parts(await served.answers(read(4 * KIB, 8 * KIB))) == [(1, 4 * KIB, data)]
        df = nbd.NBD_CMD_FLAG_DF
        found = parts(await served.answers(read(0, 64 * KIB, flags=df)))
        assert found == [(1, 0, bytes(4 * KIB) + data + bytes(52 * KIB))]
        await served.close()

    run(scenario())


def test_mixed_read_that_misses_the_cache_reads_only_the_data(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    asked = []
    real = os.preadv

    def cold(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "cold")
        asked.append((offset, len(buffers[0])))
        return real(descriptor, buffers, offset, flags)

    async def scenario() -> None:
        served = ChunkedFile(disk)
        await served.client.send(write(64 * KIB, b"d" * 64 * KIB))
        await served.client.receive(16)
        found = parts(await served.answers(read(0, 256 * KIB)))
        assert [each[0] for each in found] == [2, 1, 2]
        assert found[1][2] == b"d" * 64 * KIB
        await served.close()

    monkeypatch.setattr(os, "preadv", cold)
    asyncio.run(scenario())
    assert asked == [(64 * KIB, 64 * KIB)]


def test_block_status_follows_writes_and_trims(run: Run, disk: Path) -> None:
    async def scenario() -> None:
        served = ChunkedFile(disk)
        assert await served.extents(0, DISK_BYTES) == [(DISK_BYTES, 3)]
        await served.client.send(write(64 * KIB, b"d" * 64 * KIB))
        await served.client.receive(16)
        assert await served.extents(0, 256 * KIB) == [
            (64 * KIB, 3),
            (64 * KIB, 0),
            (128 * KIB, 3),
        ]
        assert await served.extents(70 * KIB, 4096) == [(4096, 0)]
        one = nbd.NBD_CMD_FLAG_REQ_ONE
        assert await served.extents(100 * KIB, 256 * KIB, one) == [(28 * KIB, 0)]
        await served.client.send(request(nbd.NBD_CMD_TRIM, 64 * KIB, 32 * KIB))
        await served.client.receive(16)
        assert await served.extents(64 * KIB, 64 * KIB) == [(32 * KIB, 3), (32 * KIB, 0)]
        await served.close()

    run(scenario())


def test_status_is_told_in_whole_blocks(disk: Path) -> None:
    async def scenario() -> None:
        served = ChunkedFile(disk, block_bytes=64 * KIB)
        await served.client.send(write(64 * KIB, b"d" * 64 * KIB))
        await served.client.receive(16)
        os.pwrite(served.backend._descriptor, b"x", 200 * KIB)
        assert await served.extents(0, 512 * KIB) == [
            (64 * KIB, 3),
            (64 * KIB, 0),
            (64 * KIB, 3),
            (64 * KIB, 0),
            (256 * KIB, 3),
        ]
        await served.close()

    asyncio.run(scenario())


def test_fragmented_file_is_told_piece_by_piece(disk: Path) -> None:
    async def scenario() -> None:
        served = ChunkedFile(disk)
        for number in range(5000):
            os.pwrite(served.backend._descriptor, b"x", number * 8192)
        found = await served.extents(0, 5000 * 8192)
        assert len(found) == 4096
        assert sum(length for length, _ in found) < 5000 * 8192
        assert {length for length, _ in found} == {4096}
        await served.close()

    asyncio.run(scenario())


def test_read_error_tells_the_byte_at_which_it_failed(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    real = os.preadv

    def bad_sector(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "cold")
        if offset >= 8192:
            raise OSError(errno.EIO, "bad sector")
        return real(descriptor, [buffers[0][: 8192 - offset]], offset, flags)

    async def scenario() -> None:
        served = ChunkedFile(disk)
        await served.client.send(write(0, b"d" * 16384))
        await served.client.receive(16)
        (chunk,) = await served.answers(read(4096, 8192))
        assert chunk.type == nbd.NBD_REPLY_TYPE_ERROR_OFFSET
        assert chunk.error() == (nbd.NBD_EIO, "read: bad sector", struct.pack(">Q", 8192))
        await served.close()

    monkeypatch.setattr(os, "preadv", bad_sector)
    asyncio.run(scenario())


def test_file_cut_under_the_server_is_an_error_and_no_hole(disk: Path) -> None:
    async def scenario() -> None:
        served = ChunkedFile(disk)
        os.truncate(disk, MIB)
        (chunk,) = await served.answers(read(2 * MIB, 4096))
        assert chunk.error()[0] == nbd.NBD_EIO
        assert await served.extents(2 * MIB, 4096) == [(4096, 0)]
        await served.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("length", [4096, DISK_BYTES])
def test_cache_is_a_success_that_changes_nothing(disk: Path, length: int) -> None:
    async def scenario() -> None:
        served = ChunkedFile(disk)
        await served.client.send(request(nbd.NBD_CMD_CACHE, 0, length, cookie=2))
        assert await served.client.receive(16) == simple_reply(2)
        await served.close()

    asyncio.run(scenario())


def test_hint_that_the_system_refuses_is_a_success_all_the_same(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    def refused(*_: int) -> None:
        raise OSError(errno.EINVAL, "no advice")

    async def scenario() -> None:
        served = ServedFile(disk)
        assert await served.ask(request(nbd.NBD_CMD_CACHE, 0, 4096)) == 0
        await served.close()

    monkeypatch.setattr(os, "posix_fadvise", refused)
    asyncio.run(scenario())


def test_fast_zero_is_done_where_possible_and_refused_without_a_trace_elsewhere(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    async def scenario() -> None:
        served = ServedFile(disk)
        fast = nbd.NBD_CMD_FLAG_FAST_ZERO
        assert await served.ask(write(0, b"d" * 8192)) == 0
        assert await served.ask(request(ZEROES, 0, 4096, flags=fast)) == 0
        assert await served.read(0, 8192) == bytes(4096) + b"d" * 4096
        monkeypatch.setattr(zeroing, "fallocate", unsupported)
        assert await served.ask(request(ZEROES, 4096, 4096, flags=fast)) == nbd.NBD_ENOTSUP
        assert await served.read(4096, 4096) == b"d" * 4096
        # Without the flag it is never refused for being slow; a trim just does nothing.
        assert await served.ask(request(nbd.NBD_CMD_TRIM, 4096, 4096)) == 0
        assert await served.read(4096, 4096) == b"d" * 4096
        assert await served.ask(request(ZEROES, 4096, 4096)) == 0
        assert await served.read(4096, 4096) == bytes(4096)
        await served.close()

    asyncio.run(scenario())


def test_long_zeroing_delays_only_what_touches_it_and_that_in_order(
    run: Run, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        steps = Steps(monkeypatch)
        served = ServedFile(disk)
        other = served.another()
        assert await served.ask(write(0, b"o" * 4 * MIB)) == 0
        await served.client.send(request(ZEROES, 0, 4 * MIB, cookie=1))
        await eventually(lambda: steps.begun == 1, "it has begun")
        await served.client.send(
            read(3 * MIB, 3, cookie=2)
            + write(3 * MIB, b"new", cookie=3)
            + read(3 * MIB, 3, cookie=4)
            + write(3 * MIB + 1, b"er", cookie=5)
            + read(3 * MIB, 3, cookie=6)
        )
        # Elsewhere, everything goes on; a flush waits for nothing.
        for _ in range(3):
            assert await served.ask(write(5 * MIB, b"x"), other) == 0
            assert await served.ask(request(nbd.NBD_CMD_FLUSH), other) == 0
        await served.client.send(write(6 * MIB, b"x", cookie=7))
        assert await served.client.reply() == (0, 7)
        steps.allow(4)
        assert await served.client.reply() == (0, 1)
        assert await served.client.receive(5 * 16 + 3 * 3) == (
            simple_reply(2)
            + bytes(3)
            + simple_reply(3)
            + simple_reply(4)
            + b"new"
            + simple_reply(5)
            + simple_reply(6)
            + b"ner"
        )
        await served.close()

    run(scenario())


def test_requests_behind_the_front_of_a_zeroing_go_on(
    run: Run, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        steps = Steps(monkeypatch)
        served = ServedFile(disk)
        assert await served.ask(write(0, b"o" * 4 * MIB)) == 0
        await served.client.send(request(ZEROES, 0, 4 * MIB, cookie=1))
        await served.client.send(write(10, b"early", cookie=2) + write(3 * MIB, b"late", cookie=3))
        steps.allow(1)
        assert await served.client.reply() == (0, 2)
        assert os.pread(served.backend._descriptor, 4, 3 * MIB) == b"oooo"
        steps.allow(3)
        replies = {await served.client.reply() for _ in range(2)}
        assert replies == {(0, 1), (0, 3)}
        assert await served.read(0, 16) == bytes(10) + b"early" + b"\0"
        assert await served.read(3 * MIB, 5) == b"late\0"
        await served.close()

    run(scenario())


def test_two_long_zeroings_take_turns(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    real = zeroing.write_zeroes

    def recorded(descriptor: int, offset: int, length: int) -> None:
        if length:
            order.append(offset // (8 * MIB))
        real(descriptor, offset, length)

    def unsupported(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "not here")

    async def scenario() -> None:
        served = ServedFile(disk)
        await served.client.send(
            request(ZEROES, 0, 6 * MIB, cookie=1) + request(ZEROES, 8 * MIB, MIB, cookie=2)
        )
        assert await served.client.reply() == (0, 2)
        assert await served.client.reply() == (0, 1)
        await served.close()

    monkeypatch.setattr(zeroing, "fallocate", unsupported)
    monkeypatch.setattr(zeroing, "write_zeroes", recorded)
    monkeypatch.setattr(zeroing, "WRITE_STEP_BYTES", MIB)
    asyncio.run(scenario())
    assert sorted(order) == [0] * 6 + [1]
    assert order.index(1) < 3


def test_sync_and_cold_read_never_wait_for_a_zeroing(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def cold(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            raise BlockingIOError(errno.EAGAIN, "cold")
        return real(descriptor, buffers, offset, flags)

    async def scenario() -> None:
        steps = Steps(monkeypatch)
        served = ServedFile(disk)
        for number in range(6):
            await served.client.send(request(ZEROES, number * MIB, MIB, cookie=1))
        await eventually(lambda: steps.begun == 1, "they have begun")
        other = served.another()
        assert await served.ask(request(nbd.NBD_CMD_FLUSH), other) == 0
        assert await served.ask(read(20 * MIB, 4096), other) == 0
        steps.allow(6)
        assert [await served.client.reply() for _ in range(6)] == [(0, 1)] * 6
        await served.close()

    monkeypatch.setattr(os, "preadv", cold)
    asyncio.run(scenario())


def test_zeroing_with_fua_is_durable_before_its_answer(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(os.fdatasync)
    monkeypatch.setattr(os, "fdatasync", gate)

    async def scenario() -> None:
        served = ServedFile(disk)
        fua = nbd.NBD_CMD_FLAG_FUA
        await served.client.send(request(ZEROES, 0, MIB, flags=fua, cookie=1) + read(0, 1))
        assert await served.client.reply() == (0, 0)
        assert await served.client.receive(1) == b"\0"
        gate.open()
        assert await served.client.reply() == (0, 1)
        await served.close()

    asyncio.run(scenario())
    assert gate.begun == 1


@pytest.mark.parametrize("where", ["thread", "turn"])
def test_error_of_ours_in_the_backend_ends_one_client_and_leaves_no_ghost(
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("our bug")

    async def scenario() -> None:
        served = ServedFile(disk)
        idle: list[object] = []
        victim = served.connections[0]
        victim.on_idle = idle.append
        other = served.another()
        with monkeypatch.context() as patched:
            if where == "thread":
                patched.setattr(os, "posix_fadvise", broken)
                await served.client.send(request(nbd.NBD_CMD_CACHE, 0, 4096))
            else:
                patched.setattr(os, "preadv", broken)
                await served.client.send(write(0, b"a") + read(0, 1) + write(1, b"b"))
            await eventually(lambda: victim.state is State.CLOSED, "it is closed")
        await eventually(lambda: idle == [victim], "nothing of it is left in flight")
        assert await served.ask(write(0, b"ok", cookie=1), other) == 0
        await served.close()

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert [each.levelname for each in caplog.records] == ["ERROR"]
    assert "our bug" in caplog.text

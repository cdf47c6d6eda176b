"""Reads, holes, statuses and hints of a replicated volume, as an NBD client gets them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest

from nbdserver import protocol as nbd
from nbdserver.file_data import PageCache
from nbdserver.terms import ReplyStyle, Terms
from repl.store import fallocate
from repl.store.backing import Backing
from tests.nbdserver.wire import (
    Chunk,
    LoopClient,
    chunks,
    eventually,
    read,
    request,
    simple_reply,
    write,
)
from tests.node.served_engine import SIZE_BYTES, STRUCTURED, ServedEngine

KIB = 1 << 10
MIB = 1 << 20
STATUS = nbd.NBD_CMD_BLOCK_STATUS
ZEROES = nbd.NBD_CMD_WRITE_ZEROES


async def answers(client: LoopClient, data: bytes) -> list[Chunk]:
    """The chunks that answer the one request in `data`."""
    await client.send(data)
    found: list[Chunk] = []
    while not found or not found[-1].done:
        header = await client.receive(20)
        (length,) = struct.unpack_from(">I", header, 16)
        found += chunks(header + await client.receive(length))
    return found


async def done(client: LoopClient, data: bytes) -> None:
    """Send a request that must succeed without data."""
    await client.send(data)
    assert await client.receive(16) == simple_reply(0)


async def extents(client: LoopClient, offset: int, length: int, flags: int = 0) -> dict[int, Any]:
    found = await answers(client, request(STATUS, offset, length, flags=flags))
    return dict(chunk.extents() for chunk in found)


def test_holes_of_the_backing_are_told_apart(tmp_path: Path) -> None:
    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        client = served.client()
        await done(client, write(64 * KIB, b"d" * 64 * KIB))
        found = await answers(client, read(0, 256 * KIB))
        assert [(each.type, each.payload[8:]) for each in found] == [
            (2, struct.pack(">I", 64 * KIB)),
            (1, b"d" * 64 * KIB),
            (2, struct.pack(">I", 128 * KIB)),
        ]
        await done(client, request(nbd.NBD_CMD_TRIM, 0, MIB))
        (hole,) = await answers(client, read(64 * KIB, 64 * KIB))
        assert hole.payload == struct.pack(">QI", 64 * KIB, 64 * KIB)
        await served.close()

    asyncio.run(scenario())


def test_reads_with_simple_replies_are_as_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        client = served.client(Terms())
        await done(client, write(4096, b"data"))
        await client.send(read(4094, 8, cookie=1))
        assert await client.receive(24) == simple_reply(1) + b"\0\0data\0\0"
        await served.close()

    asyncio.run(scenario())


def test_read_that_misses_the_cache_tells_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        client = served.client()
        await done(client, write(64 * KIB, b"d" * 64 * KIB))
        monkeypatch.setattr(Backing, "preadv_cached", lambda *_: False)
        found = await answers(client, read(32 * KIB, 64 * KIB))
        assert [(each.type, each.payload[8:]) for each in found] == [
            (2, struct.pack(">I", 32 * KIB)),
            (1, b"d" * 32 * KIB),
        ]
        await served.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("cached", [True, False])
def test_buffer_of_a_read_is_not_filled_again_before_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    """A client that takes nothing for a while: its replies wait in buffers of the pool."""

    monkeypatch.setattr(PageCache, "holds", lambda *_: False)

    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        client, pool = served.client(Terms()), served.engine._reader._pool
        for number in range(8):
            await done(client, write(number * MIB, bytes([number + 1]) * MIB))
        if not cached:
            monkeypatch.setattr(Backing, "preadv_cached", lambda *_: False)
        await client.send(b"".join(read(number * MIB, MIB, number) for number in range(8)))
        ours = served.connection
        await eventually(lambda: ours.requests == 16 and not ours.requests_in_flight, "answered")
        assert ours.unsent_bytes > 4 * MIB
        assert pool.out_bytes > 4 * MIB
        answered = set()
        for _ in range(8):
            _, number = await client.reply()
            assert await client.receive(MIB) == bytes([number + 1]) * MIB
            answered.add(number)
        assert answered == set(range(8))
        assert pool.out_bytes == 0
        await served.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("terms", [Terms(), STRUCTURED], ids=["simple", "structured"])
def test_reads_from_the_page_cache_wait_for_a_client_that_takes_its_time(
    tmp_path: Path, terms: Terms
) -> None:
    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        client = served.client(terms)
        ours = served.connection
        contents = [os.urandom(MIB) for _ in range(8)]
        for number, content in enumerate(contents):
            await done(client, write(number * MIB, content))
        await client.send(b"".join(read(number * MIB, MIB, number) for number in range(8)))
        await eventually(lambda: ours.requests == 16 and not ours.requests_in_flight, "answered")
        assert ours.unsent_bytes > 4 * MIB
        # What one turn cannot hope to send at once is read into buffers, as ever.
        assert served.engine._reader._pool.out_bytes > 4 * MIB
        for content in contents:
            await client.receive(28 if terms is STRUCTURED else 16)
            assert await client.receive(MIB) == content
        assert ours.unsent_bytes == 0
        await served.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("ending", ["gone", "failed in the turn", "failed in a thread"])
def test_buffer_of_a_read_that_nobody_gets_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    held = threading.Event()
    monkeypatch.setattr(PageCache, "holds", lambda *_: False)

    def failing(*_: Any) -> bool:
        raise OSError(errno.EIO, "the disk")

    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        client, pool = served.client(Terms()), served.engine._reader._pool
        await done(client, write(0, b"d" * MIB))
        monkeypatch.setattr(Backing, "preadv_cached", lambda *_: False)
        if ending == "failed in the turn":
            monkeypatch.setattr(Backing, "preadv_cached", failing)
        elif ending == "failed in a thread":
            monkeypatch.setattr(Backing, "preadv", failing)
        else:
            monkeypatch.setattr(Backing, "preadv", lambda *_: held.wait(10))
        await client.send(read(0, MIB))
        await eventually(lambda: served.connection.requests == 2, "it is read")
        if ending == "gone":
            served.connection.abandon()
            assert pool.out_bytes > MIB
            held.set()
        await eventually(lambda: served.connection.closed and not pool.out_bytes, "it is back")
        assert await client.read_to_end() == b""
        await served.close()

    asyncio.run(scenario())


def test_status_shows_holes_and_what_the_peer_lacks(tmp_path: Path) -> None:
    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        client = served.client()
        await done(client, write(64 * KIB, b"d" * 64 * KIB))
        await done(client, write(MIB + 100, b"x"))
        found = await extents(client, 0, 2 * MIB)
        holes = [(64 * KIB, 3), (64 * KIB, 0), (896 * KIB, 3), (4 * KIB, 0), (1020 * KIB, 3)]
        assert found[1] == holes
        # The peer was never here: it lacks what was written, block by block.
        lacking = [(64 * KIB, 0), (64 * KIB, 1), (896 * KIB, 0), (4 * KIB, 1), (1020 * KIB, 0)]
        assert found[2] == lacking
        one = nbd.NBD_CMD_FLAG_REQ_ONE
        found = await extents(client, 100 * KIB, 64 * KIB, one)
        assert found == {1: [(28 * KIB, 0)], 2: [(28 * KIB, 1)]}
        await served.close()

    asyncio.run(scenario())


def test_status_of_one_context_answers_that_one_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        for name, status in (("base:allocation", 3), ("x-repl:out-of-sync:beta", 0)):
            client = served.client(Terms(ReplyStyle.STRUCTURED, (name,)))
            assert await extents(client, 0, SIZE_BYTES) == {1: [(SIZE_BYTES, status)]}
        # Negotiated for a peer that the configuration has no more: nothing is claimed to be there.
        client = served.client(Terms(ReplyStyle.STRUCTURED, ("x-repl:out-of-sync:gone",)))
        assert await extents(client, 0, SIZE_BYTES) == {1: [(SIZE_BYTES, 1)]}
        await served.close()

    asyncio.run(scenario())


def test_status_where_looking_fails_claims_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise OSError(errno.EIO, "the disk")

    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        client = served.client()
        # The allocation has the method bound already.
        monkeypatch.setattr(os, "lseek", failing)
        assert (await extents(client, 0, MIB))[1] == [(MIB, 0)]
        monkeypatch.undo()
        await served.close()

    asyncio.run(scenario())


def test_space_that_is_reserved_is_zero_and_no_hole(tmp_path: Path) -> None:
    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        await served.close()

    asyncio.run(scenario())
    from repl.node.block_status import allocation_of

    backing = Backing.open(str(tmp_path / "r0.img"), "r0")
    backing.keeps_space = True
    assert allocation_of(backing).extents(0, SIZE_BYTES, 9) == [(SIZE_BYTES, 2)]
    backing.close()


def test_cache_is_a_hint_that_succeeds(tmp_path: Path) -> None:
    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        await done(served.client(), request(nbd.NBD_CMD_CACHE, 0, SIZE_BYTES))
        await served.close()

    asyncio.run(scenario())


def test_fast_zero_is_done_only_where_it_is_known_to_be_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, no_hole = nbd.NBD_CMD_FLAG_FAST_ZERO, nbd.NBD_CMD_FLAG_NO_HOLE

    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        client = served.client()
        await done(client, write(0, b"d" * 8192))
        await done(client, request(ZEROES, 0, 4096, flags=fast))
        for flags in (fast | no_hole, fast):
            served.store.backing._can_punch = flags != fast
            (refused,) = await answers(client, request(ZEROES, 4096, 4096, flags=flags))
            assert refused.error()[0] == nbd.NBD_ENOTSUP
        (chunk,) = await answers(client, read(4096, 4096))
        assert chunk.payload[8:] == b"d" * 4096
        await done(client, request(ZEROES, 4096, 4096, flags=no_hole))
        await served.close()

    asyncio.run(scenario())


def test_fast_zero_is_probed_without_touching_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refused(_fd: int, offset: int, length: int) -> bool:
        asked.append((offset, length))
        return False

    backing = Backing.create(str(tmp_path / "image"), "r0")
    backing.set_size(1 << 20)
    assert backing.zeroes_fast()
    assert backing.zeroes_fast()
    assert os.path.getsize(backing.path) == 1 << 20
    backing.close()
    monkeypatch.setattr(fallocate, "punch_hole", refused)
    other = Backing.open(str(tmp_path / "image"), "r0")
    assert not other.zeroes_fast()
    assert not other.zeroes_fast()
    assert asked == [(1 << 20, 1 << 20)]
    other.keeps_space = True
    assert not other.zeroes_fast()
    other.close()


def test_new_client_waits_for_the_writes_of_one_who_left(tmp_path: Path) -> None:
    """The half-closed connection of a client that is gone still has a write in flight: whoever
    comes next begins after it, so that a write sent again is not undone."""

    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        first = served.client()
        engine, volume = served.engine, served.engine.volume
        volume.freeze("test")
        await first.send(write(0, b"old"))
        await eventually(lambda: volume.writes.pending == 1, "the write is held")
        old = served.connection
        first.sock.shutdown(socket.SHUT_WR)
        second = served.client()
        await second.send(write(0, b"new"))
        for _ in range(50):
            await asyncio.sleep(0)
        assert (volume.writes.pending, old.requests_in_flight) == (1, 1)
        volume.thaw("test")
        engine.run()
        assert await second.receive(16) == simple_reply(0)
        (chunk,) = await answers(second, read(0, 3))
        assert chunk.payload[8:] == b"new"
        assert await first.read_to_end() == simple_reply(0)
        await served.close()

    asyncio.run(scenario())


def test_status_waits_while_the_volume_is_frozen(tmp_path: Path) -> None:
    async def scenario() -> None:
        served = await ServedEngine.primary(tmp_path)
        client = served.client(STRUCTURED)
        volume = served.engine.volume
        volume.freeze("test")
        await client.send(request(STATUS, 0, MIB) + request(nbd.NBD_CMD_CACHE, 0, MIB))
        await eventually(lambda: volume.writes.pending == 2, "both are held")
        volume.thaw("test")
        served.engine.run()
        assert len(await client.receive(16 + 2 * 32)) == 80
        await served.close()

    asyncio.run(scenario())

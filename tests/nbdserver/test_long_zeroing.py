"""Zeroings in order: who waits for them, for whom they wait, and until when."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from nbdserver import protocol as nbd
from nbdserver import zeroing
from nbdserver.connection import Connection
from nbdserver.file_threads import FileThreads
from tests.nbdserver.conftest import Run
from tests.nbdserver.served_file import ServedFile, Steps
from tests.nbdserver.serving import wait_for
from tests.nbdserver.wire import eventually, read, request, simple_reply, write

MIB = 1 << 20
ZEROES = nbd.NBD_CMD_WRITE_ZEROES


def test_every_zeroing_that_ends_in_a_batch_frees_its_range(
    monkeypatch: pytest.MonkeyPatch, disk: Path
) -> None:
    """The loop is busy while three zeroings end, the first of which somebody waits for."""
    real = zeroing.fallocate
    begun = 0
    first, fourth = threading.Event(), threading.Event()

    def gated(*arguments: int) -> None:
        nonlocal begun
        begun += 1
        if begun in (1, 4):
            assert (first if begun == 1 else fourth).wait(20)
        real(*arguments)

    monkeypatch.setattr(zeroing, "fallocate", gated)

    async def scenario() -> None:
        served = ServedFile(disk)
        ranges = [request(ZEROES, n * MIB, MIB, cookie=n) for n in range(4)]
        await served.client.send(b"".join(ranges) + read(0, 4, cookie=9))
        await eventually(lambda: begun == 1, "the first zeroing runs")
        first.set()
        # One thread zeroes: while it is at the fourth, three have ended that nobody was told of.
        wait_for(lambda: begun == 4, "three zeroings have ended")
        fourth.set()
        found = await served.client.receive(5 * 16 + 4)
        assert found[:48] == b"".join(map(simple_reply, range(3)))
        for n in range(4):
            assert await served.read(n * MIB, 4) == bytes(4)
        await served.close()

    asyncio.run(scenario())


def test_zeroing_of_a_client_that_is_gone_ends_with_its_step(
    run: Run, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        steps = Steps(monkeypatch)
        served = ServedFile(disk)
        idle: list[Connection] = []
        gone = served.connections[0]
        gone.on_idle = idle.append
        assert await served.ask(write(0, b"o" * 8 * MIB)) == 0
        other = served.another()
        await served.client.send(
            request(ZEROES, 0, 4 * MIB) + request(ZEROES, 4 * MIB, MIB) + request(ZEROES, 0, MIB)
        )
        await eventually(lambda: steps.begun == 1, "the first has begun")
        await other.send(read(3 * MIB, 4, cookie=7))
        gone.abandon()
        for _ in range(50):
            await asyncio.sleep(0)
        assert idle == []
        steps.allow(100)
        await eventually(lambda: idle == [gone], "its requests are finished")
        # The two others, one of which had to wait, have not even begun.
        assert steps.begun == 1
        assert await other.receive(20) == simple_reply(7) + b"oooo"
        assert await served.ask(read(MIB - 4, 8), other) == 0
        assert await other.receive(8) == bytes(4) + b"oooo"
        await served.close()

    run(scenario())


def test_request_that_touches_only_one_that_waits_comes_behind_it(
    run: Run, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        steps = Steps(monkeypatch)
        served = ServedFile(disk)
        await served.client.send(request(ZEROES, 0, MIB, cookie=1))
        await eventually(lambda: steps.begun == 1, "it has begun")
        await served.client.send(
            write(MIB - 2, b"over", cookie=2) + read(MIB, 2, cookie=3) + read(MIB + 2, 2, cookie=4)
        )
        assert await served.client.receive(18) == simple_reply(4) + bytes(2)
        steps.allow(1)
        assert await served.client.receive(3 * 16 + 2) == (
            simple_reply(1) + simple_reply(2) + simple_reply(3) + b"er"
        )
        await served.close()

    run(scenario())


def test_writes_of_a_turn_are_in_the_file_before_a_later_zeroing_begins(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found_at_begin = []
    real = FileThreads.run_steps

    def noted(threads: FileThreads, *arguments: Any) -> None:
        found_at_begin.append(disk.read_bytes()[:6])
        real(threads, *arguments)

    monkeypatch.setattr(FileThreads, "run_steps", noted)

    async def scenario() -> None:
        served = ServedFile(disk)
        await served.client.send(
            write(0, b"fir", cookie=1)
            + write(3, b"st.", cookie=2)
            + request(ZEROES, 0, 4, cookie=3)
        )
        assert await served.client.receive(3 * 16) == b"".join(map(simple_reply, (1, 2, 3)))
        assert await served.read(0, 6) == bytes(4) + b"t."
        await served.close()

    asyncio.run(scenario())
    assert found_at_begin == [b"first."]


def test_zeroing_without_holes_keeps_the_space_and_any_other_frees_it(disk: Path) -> None:
    async def scenario() -> None:
        served = ServedFile(disk)
        empty = disk.stat().st_blocks
        assert await served.ask(write(0, b"x" * MIB)) == 0
        full = disk.stat().st_blocks
        no_hole = nbd.NBD_CMD_FLAG_NO_HOLE
        assert await served.ask(request(ZEROES, 0, MIB, flags=no_hole)) == 0
        assert disk.stat().st_blocks >= full
        assert await served.ask(request(ZEROES, 0, MIB)) == 0
        assert disk.stat().st_blocks == empty < full
        await served.close()

    asyncio.run(scenario())

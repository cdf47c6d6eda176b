"""Zeroings that take their time: who waits for them, in which order, and until when."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from nbdserver import protocol as nbd
from nbdserver import zeroing
from nbdserver.connection import Connection
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

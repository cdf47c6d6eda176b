"""Zeroings that take their time: who waits for them, in which order, and until when."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from nbdserver import protocol as nbd
from nbdserver import zeroing
from tests.nbdserver.served_file import ServedFile
from tests.nbdserver.serving import wait_for
from tests.nbdserver.wire import eventually, read, request, simple_reply

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

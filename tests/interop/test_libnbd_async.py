"""libnbd with many requests in flight, of every kind, checked against a model byte by byte."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests import libnbd
from tests.interop.conftest import Connect
from tests.interop.targets import Target

BLOCK = 8192
BLOCKS = 2048
ROUNDS = 1500
IN_FLIGHT = 48


class Model:
    """What the export must hold, and what was seen instead."""

    def __init__(self, handle: Any, seed: int) -> None:
        self.handle = handle
        self.chance = random.Random(seed)
        self.data = bytearray(handle.pread(BLOCK * BLOCKS, 0))
        self.wrong: list[tuple[int, str]] = []
        self._busy: set[int] = set()
        self._buffers: list[Any] = []

    def step(self) -> None:
        """One request on a block that has none in flight: two at once would have no order."""
        while self.handle.aio_in_flight() >= IN_FLIGHT:
            self.handle.poll(-1)
        offset = self.chance.randrange(BLOCKS) * BLOCK
        if offset in self._busy:
            self.drain()
        self._busy.add(offset)
        kind = self.chance.choice(
            (self._read, self._read_parts, self._write, self._zero, self._trim, self._status)
        )
        kind(offset)

    def drain(self) -> None:
        while self.handle.aio_in_flight():
            self.handle.poll(-1)
        self._busy.clear()
        self._buffers.clear()

    def _done(self, offset: int, what: str) -> Any:
        def done(error: Any) -> int:
            if error.value:
                self.wrong.append((offset, f"{what}: error {error.value}"))
            return 1

        return done

    def _read(self, offset: int) -> None:
        buffer = libnbd.load().Buffer(BLOCK)
        wanted = bytes(self.data[offset : offset + BLOCK])

        def done(error: Any) -> int:
            if error.value or bytes(buffer.to_bytearray()) != wanted:
                self.wrong.append((offset, "read"))
            return 1

        self.handle.aio_pread(buffer, offset, done)

    def _read_parts(self, offset: int) -> None:
        buffer = libnbd.load().Buffer(BLOCK)
        wanted = bytes(self.data[offset : offset + BLOCK])
        covered = []

        def chunk(data: bytes, at: int, _kind: int, _error: Any) -> int:
            covered.append((at, len(data)))
            return 0

        def done(error: Any) -> int:
            total = sum(length for _, length in covered)
            if error.value or total != BLOCK or bytes(buffer.to_bytearray()) != wanted:
                self.wrong.append((offset, f"structured read {covered}"))
            return 1

        self.handle.aio_pread_structured(buffer, offset, chunk, done)

    def _write(self, offset: int) -> None:
        nbd = libnbd.load()
        data = self.chance.randbytes(BLOCK)
        self.data[offset : offset + BLOCK] = data
        buffer = nbd.Buffer.from_bytearray(bytearray(data))
        self._buffers.append(buffer)
        fua = self.chance.choice((0, 0, 0, nbd.CMD_FLAG_FUA))
        self.handle.aio_pwrite(buffer, offset, self._done(offset, "write"), fua)

    def _zero(self, offset: int) -> None:
        nbd = libnbd.load()
        self.data[offset : offset + BLOCK] = bytes(BLOCK)
        flags = self.chance.choice((0, nbd.CMD_FLAG_NO_HOLE))
        self.handle.aio_zero(BLOCK, offset, self._done(offset, "zero"), flags)

    def _trim(self, offset: int) -> None:
        # Both targets give back space as zeroes, which the protocol does not demand.
        self.data[offset : offset + BLOCK] = bytes(BLOCK)
        self.handle.aio_trim(BLOCK, offset, self._done(offset, "trim"))

    def _status(self, offset: int) -> None:
        empty = not any(self.data[offset : offset + BLOCK])

        def seen(_context: str, _offset: int, entries: list[int], _error: Any) -> int:
            if sum(entries[::2]) != BLOCK or (not empty and 3 in entries[1::2]):
                self.wrong.append((offset, f"status {entries}"))
            return 0

        self.handle.aio_block_status(BLOCK, offset, seen, self._done(offset, "status"))


@pytest.mark.parametrize(
    ("over", "seed"),
    [("unix", 1), pytest.param("tcp", 2, marks=pytest.mark.slow)],
)
def test_every_kind_of_request_agrees_with_a_model(
    export: Target, connect: Connect, over: str, seed: int
) -> None:
    handle = libnbd.load().NBD()
    handle.add_meta_context("base:allocation")
    handle.set_uri_allow_local_file(True)
    handle.connect_uri(export.uri() if over == "unix" else export.tcp_uri())
    model = Model(handle, seed)
    for _ in range(ROUNDS):
        model.step()
    model.drain()
    assert model.wrong == []
    assert handle.pread(BLOCK * BLOCKS, 0) == model.data
    handle.flush()
    handle.shutdown()
    assert export.backing().read_bytes()[: BLOCK * BLOCKS] == model.data

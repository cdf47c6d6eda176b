"""A file backend with connections of the test's own loop, and gates for its system calls."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from nbdserver import zeroing
from nbdserver.connection import Connection, State
from nbdserver.export import ExportInfo
from nbdserver.file_backend import FileBackend
from nbdserver.terms import Terms
from tests.nbdserver.wire import LoopClient, eventually, read

STEP_BYTES = 1 << 20


class ServedFile:
    """A file backend and any number of connections to it."""

    def __init__(self, path: Path, terms: Terms | None = None, block_bytes: int = 1) -> None:
        self.loop = asyncio.get_running_loop()
        self.backend = FileBackend(self.loop, path, block_bytes=block_bytes)
        self.terms = terms
        self.block_bytes = block_bytes
        self.connections: list[Connection] = []
        self.client = self.another()

    def another(self) -> LoopClient:
        ours, theirs = socket.socketpair()
        export = ExportInfo(
            "",
            self.backend.size_bytes,
            can_multi_conn=True,
            minimum_block_bytes=self.block_bytes,
            preferred_block_bytes=max(4096, self.block_bytes),
            can_fast_zero=True,
            contexts=FileBackend.contexts,
        )
        connection = Connection(self.loop, ours, export, self.backend, terms=self.terms)
        connection.start()
        self.connections.append(connection)
        return LoopClient(theirs)

    async def ask(self, data: bytes, client: LoopClient | None = None) -> int:
        client = client or self.client
        await client.send(data)
        return (await client.reply())[0]

    async def read(self, offset: int, length: int) -> bytes:
        assert await self.ask(read(offset, length)) == 0
        return await self.client.receive(length)

    async def close(self) -> None:
        for connection in self.connections:
            connection.finish()
        await eventually(
            lambda: all(each.state is State.CLOSED for each in self.connections), "all closed"
        )
        self.backend.close()


class Gate:
    """Stands in for a system call: each call waits until `open()`; counts calls begun."""

    def __init__(self, real: Any) -> None:
        self.begun = 0
        self._real = real
        self._opened = threading.Event()

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.begun += 1
        assert self._opened.wait(20)
        return self._real(*arguments, **options)

    def open(self) -> None:
        self._opened.set()


class Steps:
    """Stands in for the writing of zeroes: every step waits to be let through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self._allowed = threading.Semaphore(0)
        self._real = zeroing.write_zeroes

        def unsupported(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "not here")

        monkeypatch.setattr(zeroing, "fallocate", unsupported)
        monkeypatch.setattr(zeroing, "write_zeroes", self._write)
        monkeypatch.setattr(zeroing, "WRITE_STEP_BYTES", STEP_BYTES)

    def _write(self, descriptor: int, offset: int, length: int) -> None:
        if length:
            self.begun += 1
            assert self._allowed.acquire(timeout=20)
        self._real(descriptor, offset, length)

    def allow(self, count: int) -> None:
        self._allowed.release(count)

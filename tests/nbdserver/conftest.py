"""Fixtures of the NBD server's tests: a file, a server process, both event loops."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from nbdserver.protocol import NBD_CMD_WRITE_ZEROES
from tests.nbdserver.honest import LAST_MIB, Honest
from tests.nbdserver.serving import ServerProcess, wait_for
from tests.nbdserver.wire import request

DISK_BYTES = 64 << 20

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a coroutine to its end, on the stock loop and on uvloop."""
    runner: Run = asyncio.run if request.param == "asyncio" else uvloop.run
    return runner


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A sparse file of 64 MiB."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    return path


@pytest.fixture
def server(disk: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server process for `disk`."""
    with ServerProcess(disk, tmp_path) as process:
        yield process


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server process for a whole module, which must end well and never have met a bug."""
    folder = tmp_path_factory.mktemp("server")
    disk = folder / "disk.img"
    disk.touch()
    os.truncate(disk, DISK_BYTES)
    with ServerProcess(disk, folder) as process:
        yield process
        assert process.stop() == 0
        assert not [line for line in process.log if "Traceback" in line], process.log


@pytest.fixture
def honest(server: ServerProcess) -> Iterator[Honest]:
    """An honest client that is at work before, while and after a test misbehaves.

    The part of the disk that is not its own is zeroes at the beginning.
    """
    with_honest = Honest(server)
    with_honest.works()
    assert with_honest.client.ask(request(NBD_CMD_WRITE_ZEROES, 0, LAST_MIB)) == 0
    before = server.open_descriptors()
    yield with_honest
    with_honest.works()
    wait_for(lambda: server.open_descriptors() <= before, "descriptors are back where they were")
    with_honest.client.close()

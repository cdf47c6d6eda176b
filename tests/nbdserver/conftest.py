"""Fixtures of the NBD server's tests: a file, a server process, both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.nbdserver.serving import ServerProcess

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

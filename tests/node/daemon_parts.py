"""What the tests of the supervisor and its fronts share: a configuration, workers that are fake,
a deadline for every wait.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import uvloop

from repl.addresses import Address
from repl.config import (
    Config,
    NbdSettings,
    NodeSettings,
    PeerSettings,
    TimeoutSettings,
    VolumeSettings,
)
from repl.node.channel import Message
from repl.node.supervisor import Supervisor
from repl.node.worker_process import WorkerProcess, WorkerTimes
from tests.daemon import PORTS

FAKE_WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
DEADLINE_S = 60.0
SIZE_BYTES = 1 << 20
#: A busy machine may hold a healthy worker up for a second; two of these five steps show silence.
TIMES = WorkerTimes(silent_s=5.0, start_s=60.0, stop_s=20.0, backoff_first_s=0.05)
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def configuration(
    folder: Path, volumes: tuple[str, ...] = ("r0",), when_secondary: str = "refuse"
) -> Config:
    """Return the configuration of a node "alpha" with a peer "beta", all of it in `folder`."""
    node = NodeSettings(
        name="alpha",
        state_dir=str(folder / "state"),
        control=str(folder / "repld.sock"),
        listen=Address("127.0.0.1", PORTS.take()),
        metrics=None,
        insecure=False,
    )
    return Config(
        file=str(folder / "repld.toml"),
        node=node,
        nbd=NbdSettings(str(folder / "nbd.sock"), None, when_secondary),
        peers={"beta": PeerSettings("beta", (Address("127.0.0.1", 7799),))},
        volumes={
            name: VolumeSettings(name, SIZE_BYTES, str(folder / f"{name}.img"), ("beta",))
            for name in volumes
        },
        timeouts=TimeoutSettings(),
    )


def with_node(config: Config, **changes: Any) -> Config:
    """Return `config` with other values in its [node] table."""
    return replace(config, node=replace(config.node, **changes))


def run(scenario: Callable[[], Awaitable[None]], loop: str = "uvloop") -> None:
    """Run `scenario` on a fresh loop, within `DEADLINE_S`."""

    async def within_deadline() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(within_deadline())


@asynccontextmanager
async def running(config: Config, times: WorkerTimes = TIMES) -> AsyncIterator[Supervisor]:
    """A supervisor with fake workers that are all up; stopped at the end, whatever happens."""
    supervisor = Supervisor(config, worker_command=FAKE_WORKER, worker_times=times)
    await supervisor.start()
    try:
        for worker in supervisor.workers.values():
            await until(worker, lambda worker=worker: worker.answers)  # type: ignore[misc]
        yield supervisor
    finally:
        for worker in supervisor.workers.values():
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGCONT)
        await supervisor.stop()


async def until(worker: WorkerProcess, condition: Callable[[], bool]) -> None:
    """Wait until the worker's news make `condition` true; the test's deadline bounds it."""
    while not condition():
        await worker.changed(0.2)


async def until_volume(worker: WorkerProcess, condition: Callable[[Message], bool]) -> None:
    await until(worker, lambda: worker.answers and condition(worker.last_volume()))


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"

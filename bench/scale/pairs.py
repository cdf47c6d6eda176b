"""Pairs of nodes for the tables: on the disk that is measured, loaded by fio, accounted for."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench import accounting, fio
from bench.contenders.ours import product_root
from bench.processes import ContenderBroke
from repl.cli.client import Client
from repl.errors import ReplError
from tests.daemon import DeadlineMissed, Node, VolumeSpec
from tests.pair import Pair, is_in_sync

POLL_PAUSE_S = 0.01
STATE_DEADLINE_S = 120.0

_T = TypeVar("_T")


@contextlib.contextmanager
def two_nodes(folder: Path, volumes: Sequence[VolumeSpec]) -> Iterator[Pair]:
    """Prepare two nodes whose backing files are in `folder`. Raises ContenderBroke."""
    try:
        with Pair.make(tuple(volumes)) as pair:
            for node in pair.nodes:
                node.root = product_root()
                node.disk_folder = folder / node.name
                node.disk_folder.mkdir(exist_ok=True)
                node.write_config()
            try:
                yield pair
            finally:
                for node in pair.nodes:
                    for volume in volumes:
                        node.backing(volume.name).unlink(missing_ok=True)
    except (DeadlineMissed, AssertionError) as error:
        raise ContenderBroke(str(error)) from error


def start_serving(pair: Pair, volumes: Sequence[VolumeSpec]) -> None:
    """Start both, and make alpha the primary of every volume."""
    pair.start()
    for volume in volumes:
        until(pair.alpha, is_in_sync, volume.name)
        pair.alpha.promote(volume.name)
        until(pair.alpha, is_in_sync, volume.name)


def until(
    node: Node, condition: Callable[[dict[str, Any]], object], volume: str = "r0"
) -> dict[str, Any]:
    """Ask the daemon itself, often, and without starting a process for it.

    Raises DeadlineMissed. A daemon that does not answer yet is asked again.
    """
    client = Client(str(node.control))
    deadline_s = time.monotonic() + STATE_DEADLINE_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(ReplError):
            seen = client.volume(volume)
            if condition(seen):
                return seen
        time.sleep(POLL_PAUSE_S)
    raise DeadlineMissed(f"{node.name}: {volume} does not get there\n{node.log_tail()}")


def populate_start(path: Path, size_bytes: int) -> None:
    """Write zeroes over the beginning of a backing file, page by page (see `bench.pages`)."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    zeroes = bytes(4096)
    try:
        for offset in range(0, size_bytes, len(zeroes)):
            os.pwrite(fd, zeroes, offset)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class Load:
    """One sample: what fio saw, and what the servers used for it."""

    measured: fio.Measured
    cpu_us_per_op: float

    def figures(self) -> dict[str, float]:
        return {
            "IOPS": self.measured.iops,
            "CPU_us_per_op": self.cpu_us_per_op,
            "p99_us": self.measured.p99_us,
        }


def groups(pair: Pair) -> list[int]:
    """Return the process groups of the nodes that run."""
    return [node.groups[-1] for node in pair.nodes if node.process is not None]


def loaded(pair: Pair, command: list[str], runtime_s: int) -> Load:
    """Run one fio, and account for what both nodes used meanwhile."""
    os.sync()
    before_s = accounting.cpu_s(groups(pair))
    printed = fio.run(command, runtime_s + fio.DEADLINE_EXTRA_S)
    used_s = accounting.cpu_s(groups(pair)) - before_s
    try:
        measured = fio.parse(printed)
    except ValueError as error:
        raise ContenderBroke(str(error)) from error
    active_s = measured.runtime_s + fio.RAMP_MS / 1000
    return Load(measured, used_s / active_s / measured.iops * 1e6)


def worker_mib(node: Node, volume: str = "r0") -> float:
    """Return the proportional set size of a volume's worker in MiB."""
    return accounting.pss_bytes(node.worker_pid(volume)) / fio.MIB

"""Does a write cost the same whatever the size of the volume, the number of volumes and clients?

Each function takes one sample of one line; `CURVES` says which lines there are. 4 KiB random writes
into two copies everywhere, into a part of the volume that is in the page cache, so that what grows
is ours and not the disk's.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench import fio
from bench.fio import Workload
from bench.processes import ContenderBroke
from bench.scale.pairs import (
    loaded,
    populate_start,
    start_serving,
    two_nodes,
    until,
    worker_mib,
)
from tests.daemon import VolumeSpec
from tests.pair import Pair, is_in_sync

GIB, TIB = 1 << 30, 1 << 40
#: The part of a volume that is written.
WRITTEN_BYTES = 256 << 20
DEPTH = 32
#: In flight over all volumes or clients together.
DEPTH_IN_ALL = 64
BLOCK_BYTES = 4096
DISCARD_BYTES_MAX = 1 << 30
DISCARD_DEADLINE_S = 120.0
DIRTY_VOLUME_BYTES = 64 * GIB

Figures = dict[str, float]


class Sampling(Protocol):
    """Takes one sample of one line."""

    def __call__(self, folder: Path, line: int, runtime_s: int) -> Figures: ...


@dataclass(frozen=True)
class Curve:
    """One table: its lines, and how one sample of a line is taken (folder, line, seconds)."""

    key: str
    title: str
    axis: str
    method: str
    lines: tuple[int, ...]
    label: Callable[[int], str]
    sample: Sampling


def _prepared(pair: Pair, volumes: tuple[VolumeSpec, ...], written_bytes: int) -> None:
    start_serving(pair, volumes)
    for volume in volumes:
        for node in pair.nodes:
            populate_start(node.backing(volume.name), written_bytes)


def by_size(folder: Path, line: int, runtime_s: int) -> Figures:
    """One sparse volume of `line` bytes."""
    volumes = (VolumeSpec("r0", line),)
    with two_nodes(folder, volumes) as pair:
        _prepared(pair, volumes, WRITTEN_BYTES)
        workload = Workload("randwrite", BLOCK_BYTES, DEPTH)
        command = fio.arguments(workload, pair.alpha.uri(), WRITTEN_BYTES, runtime_s)
        figures = loaded(pair, command, runtime_s).figures()
        return figures | {"worker_MiB": worker_mib(pair.alpha)}


def by_volumes(folder: Path, line: int, runtime_s: int) -> Figures:
    """`line` volumes, each with a client of its own."""
    written_bytes = WRITTEN_BYTES // line
    volumes = tuple(VolumeSpec(f"r{number}", WRITTEN_BYTES) for number in range(line))
    with two_nodes(folder, volumes) as pair:
        _prepared(pair, volumes, written_bytes)
        workload = Workload("randwrite", BLOCK_BYTES, max(1, DEPTH_IN_ALL // line))
        uris = [pair.alpha.uri(volume.name) for volume in volumes]
        command = fio.arguments_for_each(workload, uris, written_bytes, runtime_s)
        return loaded(pair, command, runtime_s).figures()


def by_clients(folder: Path, line: int, runtime_s: int) -> Figures:
    """`line` clients of one volume, each with its own part of it."""
    volumes = (VolumeSpec("r0", WRITTEN_BYTES),)
    with two_nodes(folder, volumes) as pair:
        _prepared(pair, volumes, WRITTEN_BYTES)
        workload = Workload("randwrite", BLOCK_BYTES, DEPTH_IN_ALL // line, connections=line)
        command = fio.arguments(workload, pair.alpha.uri(), WRITTEN_BYTES, runtime_s)
        return loaded(pair, command, runtime_s).figures()


def by_dirty_blocks(folder: Path, line: int, runtime_s: int) -> Figures:
    """`line` blocks dirty for a peer that is away; then it comes back."""
    volumes = (VolumeSpec("r0", DIRTY_VOLUME_BYTES),)
    with two_nodes(folder, volumes) as pair:
        _prepared(pair, volumes, WRITTEN_BYTES)
        pair.alpha.ctl_ok("disconnect", "r0")
        discard(pair.alpha.uri(), WRITTEN_BYTES, line * BLOCK_BYTES)
        workload = Workload("randwrite", BLOCK_BYTES, DEPTH)
        command = fio.arguments(workload, pair.alpha.uri(), WRITTEN_BYTES, runtime_s)
        figures = loaded(pair, command, runtime_s).figures()
        figures["worker_MiB"] = worker_mib(pair.alpha)
        pair.alpha.ctl_ok("connect", "r0")
        until(pair.alpha, is_in_sync)
        return figures


def discard(uri: str, start: int, length: int) -> None:
    """Discard a range through the export, in pieces that qemu-io takes."""
    commands = []
    for offset in range(start, start + length, DISCARD_BYTES_MAX):
        commands += ["-c", f"discard {offset} {min(DISCARD_BYTES_MAX, start + length - offset)}"]
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-d", "unmap", *commands, uri],
        capture_output=True,
        text=True,
        timeout=DISCARD_DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        raise ContenderBroke(f"qemu-io: {done.stdout}{done.stderr}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes // TIB} TiB" if size_bytes >= TIB else f"{size_bytes // GIB} GiB"


_METHOD = "4 KiB random writes into two copies, in {}."
CURVES = (
    Curve(
        "size",
        "Size of the volume",
        "size",
        _METHOD.format(f"the first 256 MiB of one sparse volume, depth {DEPTH}"),
        (GIB, 64 * GIB, TIB, 15 * TIB),
        _size,
        by_size,
    ),
    Curve(
        "volumes",
        "Number of volumes",
        "volumes",
        _METHOD.format(f"all of them at once, {DEPTH_IN_ALL} requests in flight in all"),
        (1, 4, 16, 64),
        str,
        by_volumes,
    ),
    Curve(
        "clients",
        "Number of clients",
        "clients",
        _METHOD.format(f"one volume, {DEPTH_IN_ALL} requests in flight in all"),
        (1, 4, 16, 64),
        str,
        by_clients,
    ),
    Curve(
        "dirty",
        "Dirty blocks",
        "dirty blocks",
        _METHOD.format(
            "one copy while the peer is away and so many other blocks (discarded ones) are dirty "
            f"for it, depth {DEPTH}; the peer comes back afterwards and is brought up to date"
        ),
        (10, 1_000, 100_000, 10_000_000),
        lambda count: f"{count:,}",
        by_dirty_blocks,
    ),
)

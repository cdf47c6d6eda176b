"""What is measured: rows (a workload in a setting), the contenders of each, and three suites.

A cell is one row on one contender. Rows of one `Stage` share running contenders.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from bench.fio import Workload

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class Stage(enum.Enum):
    """What the contenders of a row run on, set up once for all rows of the stage."""

    #: A volume that is wholly in the page cache, in pages of 4 KiB; both nodes on loopback.
    LOCAL = "local"
    #: The same, but written through the export in pieces of 1 MiB (see `pages`).
    POURED = "poured"
    #: The same with 5 ms each way between the nodes.
    DISTANT = "distant"
    #: A sparse volume so large that nearly every write meets an extent at rest.
    COLD = "cold"
    #: Local, while the second copy is being brought up to date.
    RESYNC = "resync"


#: Each way.
LINK_DELAY_MS = 5.0
LOCAL_BYTES = 256 * MIB
COLD_BYTES = 64 * GIB
RESYNC_BYTES = 1 * GIB


@dataclass(frozen=True)
class Row:
    """One line of a comparison: `key` in results, `title` for people."""

    key: str
    title: str
    workload: Workload
    contenders: tuple[str, ...]
    stage: Stage = Stage.LOCAL
    #: Client and second node on one processor, first node on another one.
    pinned: bool = False
    #: Status and metrics are asked for 100 times a second meanwhile.
    polled: bool = False
    #: Why nobody can be measured here, for a row that waits for a feature.
    missing: str = ""

    @property
    def in_megabytes(self) -> bool:
        """Whether people compare MB/s here and not operations."""
        return self.workload.block_bytes > 16 * KIB


@dataclass(frozen=True)
class Suite:
    """Rows, how often, and how long each sample is."""

    name: str
    rows: tuple[Row, ...]
    repetitions: int
    runtime_s: int

    @property
    def cells(self) -> int:
        return sum(len(row.contenders) for row in self.rows)


PAIRS = ("repl", "repl-interpreted", "limit", "limit-crc", "mirror-tcp", "mirror-unix", "quorum")
SINGLES = ("repl-single", "nbdserver", "limit-single", "nbdkit", "qemu-nbd", "nbd-server")
#: What the floors of the first figure are measured against.
FLOOR_PAIRS = ("repl", "repl-interpreted", "limit", "mirror-tcp", "mirror-unix")
TLS_SINGLES = ("nbdserver-tls", "nbdkit-tls")
SHORT_PAIRS = ("repl", "limit", "mirror-unix")
SHORT_SINGLES = ("repl-single", "nbdserver", "limit-single", "nbdkit")

_NAMES = {"randwrite": "random write", "randread": "random read", "write": "sequential write"}
_NAMES |= {"read": "sequential read", "randrw": "random 70/30 mix"}


def _title(workload: Workload) -> str:
    size = workload.block_bytes
    shown = f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
    return f"{shown} {_NAMES[workload.pattern]}, depth {workload.depth}"


def _row(key: str, workload: Workload, contenders: tuple[str, ...], *more: str) -> Row:
    return Row(key, ", ".join((_title(workload), *more)), workload, contenders)


WRITE = Workload("randwrite", 4 * KIB, 32)
READ = Workload("randread", 4 * KIB, 32)
WRITE_1, WRITE_4 = replace(WRITE, depth=1), replace(WRITE, depth=4)
READ_1, READ_4 = replace(READ, depth=1), replace(READ, depth=4)
MIX = Workload("randrw", 4 * KIB, 32, read_percent=70)
WRITE_128K, READ_128K = Workload("write", 128 * KIB, 8), Workload("read", 128 * KIB, 8)
WRITE_1M, READ_1M = Workload("write", MIB, 4), Workload("read", MIB, 4)


def pair_rows(wide: tuple[str, ...], short: tuple[str, ...]) -> tuple[Row, ...]:
    """Return the rows in which two copies are kept; `wide` and `short` take part."""
    return (
        _row("write-4k-1", WRITE_1, wide),
        replace(_row("write-4k-1-pinned", WRITE_1, short, "pinned"), pinned=True),
        _row("write-4k-4", WRITE_4, short),
        _row("write-4k-32", WRITE, wide),
        _row("read-4k-1", READ_1, short),
        replace(_row("read-4k-1-pinned", READ_1, short, "pinned"), pinned=True),
        _row("read-4k-4", READ_4, short),
        _row("read-4k-32", READ, short),
        _row("write-128k", WRITE_128K, wide),
        _row("read-128k", READ_128K, short),
        _row("write-1m", WRITE_1M, wide),
        _row("read-1m", READ_1M, short),
        _row("mix-4k-32", MIX, short),
        _row("write-4k-2x32", replace(WRITE, connections=2), short, "two connections"),
        _row("write-4k-4x32", replace(WRITE, connections=4), short, "four connections"),
        _row("flush-each", replace(WRITE_1, flush_every=1), short, "a flush after each"),
        _row("flush-32", replace(WRITE, flush_every=32), short, "a flush after every 32"),
        replace(
            _row("poured-write-4k-32", WRITE, short, "into what was written in 1 MiB pieces"),
            stage=Stage.POURED,
        ),
        *setting_rows(),
    )


def setting_rows() -> tuple[Row, ...]:
    """Return the rows in which something else is going on, or the link is a long one."""
    return (
        replace(_row("busy", WRITE, ("repl",), "busy control plane"), polled=True),
        replace(_row("busy-1", WRITE_1, ("repl",), "busy control plane"), polled=True),
        _row("tls-peer", WRITE, ("repl-tls", "repl"), "peers over TLS"),
        _row("tls-peer-128k", WRITE_128K, ("repl-tls", "repl"), "peers over TLS"),
        _row("tls-client", WRITE, ("repl-nbds", "repl-tls"), "client over TLS"),
        _row("tls-client-128k", WRITE_128K, ("repl-nbds", "repl-tls"), "client over TLS"),
        replace(_row("far-write-4k-1", WRITE_1, DISTANT_PAIRS, "10 ms away"), stage=Stage.DISTANT),
        replace(_row("far-write-4k-32", WRITE, DISTANT_PAIRS, "10 ms away"), stage=Stage.DISTANT),
        replace(
            _row("far-write-128k", WRITE_128K, DISTANT_PAIRS, "10 ms away"), stage=Stage.DISTANT
        ),
        replace(_row("cold", WRITE, ("repl", "limit"), "cold intent map"), stage=Stage.COLD),
        replace(_row("resync", WRITE, ("repl",), "during a resync"), stage=Stage.RESYNC),
        replace(_row("resync-1", WRITE_1, ("repl",), "during a resync"), stage=Stage.RESYNC),
    )


#: A Unix socket reaches no other machine.
DISTANT_PAIRS = ("repl", "limit", "mirror-tcp")


def single_rows(wide: tuple[str, ...], short: tuple[str, ...]) -> tuple[Row, ...]:
    """Return the rows with one copy: what the network part costs beside plain NBD servers."""
    return (
        _row("one-write-4k-1", WRITE_1, wide, "one copy"),
        replace(_row("one-write-4k-1-pinned", WRITE_1, short, "one copy", "pinned"), pinned=True),
        _row("one-write-4k-4", WRITE_4, SHORT_SINGLES, "one copy"),
        _row("one-write-4k-32", WRITE, wide, "one copy"),
        _row("one-read-4k-1", READ_1, wide, "one copy"),
        replace(_row("one-read-4k-1-pinned", READ_1, short, "one copy", "pinned"), pinned=True),
        _row("one-read-4k-4", READ_4, SHORT_SINGLES, "one copy"),
        _row("one-read-4k-32", READ, wide, "one copy"),
        _row("one-mix-4k-32", MIX, SHORT_SINGLES, "one copy"),
        _row("one-write-128k", WRITE_128K, short, "one copy"),
        _row("one-read-128k", READ_128K, short, "one copy"),
        _row("one-write-1m", WRITE_1M, wide, "one copy"),
        _row("one-read-1m", READ_1M, wide, "one copy"),
        _row("one-tls-write-128k", WRITE_128K, TLS_SINGLES, "one copy", "client over TLS"),
        _row("one-tls-read-128k", READ_128K, TLS_SINGLES, "one copy", "client over TLS"),
    )


def _only(rows: tuple[Row, ...], keys: str) -> tuple[Row, ...]:
    by_key = {row.key: row for row in rows}
    return tuple(by_key[key] for key in keys.split())


QUICK = Suite(
    "quick",
    _only(pair_rows(FLOOR_PAIRS, FLOOR_PAIRS), "write-4k-1 write-4k-32 write-128k"),
    repetitions=3,
    runtime_s=2,
)
STANDARD = Suite(
    "standard",
    (
        _row("write-4k-32", WRITE, PAIRS),
        *_only(
            pair_rows(FLOOR_PAIRS, SHORT_PAIRS),
            "write-4k-1 write-4k-1-pinned read-4k-32 write-128k write-1m mix-4k-32 write-4k-4x32 "
            "flush-32 poured-write-4k-32 busy tls-peer tls-client far-write-4k-32 cold resync",
        ),
        *_only(
            single_rows(SINGLES, SHORT_SINGLES), "one-write-4k-1 one-write-4k-32 one-read-4k-32"
        ),
    ),
    repetitions=3,
    runtime_s=2,
)
FULL = Suite(
    "full",
    (*pair_rows(PAIRS, FLOOR_PAIRS), *single_rows(SINGLES, SINGLES)),
    repetitions=5,
    runtime_s=5,
)
SUITES = {suite.name: suite for suite in (QUICK, STANDARD, FULL)}

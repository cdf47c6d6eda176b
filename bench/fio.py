"""The load: one fio with its nbd engine (libnbd), and what its JSON says.

Pure but for `run`: a `Workload` becomes a command line, and fio's output becomes a `Measured`.
Whole seconds only: fio cuts a fraction off --runtime, and 0 means for ever.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bench.processes import ContenderBroke, missing_command

RAMP_MS = 500
#: Beyond its own runtime, for connecting and for a contender that hangs.
DEADLINE_EXTRA_S = 60.0
WATCH_PAUSE_S = 0.5
NS_PER_US = 1000.0
MIB = 1 << 20

_T = TypeVar("_T")


@dataclass(frozen=True)
class Workload:
    """What a client does: fio's `pattern`, block size, requests in flight per connection."""

    pattern: str
    block_bytes: int
    depth: int
    #: Connections, each with its own part of the volume, so that no two writes overlap.
    connections: int = 1
    #: Share of reads, for a mixed pattern.
    read_percent: int | None = None
    #: A flush after so many writes; 0 is never.
    flush_every: int = 0


@dataclass(frozen=True)
class Measured:
    """What one run of fio saw. Latencies include the time to submit."""

    operations: int
    runtime_s: float
    iops: float
    bytes_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    longest_us: float
    #: fio's own processor time as a share of one processor, per connection.
    fio_cpu_share: float


def missing() -> str:
    """Return why fio cannot be used, or nothing."""
    if reason := missing_command("fio"):
        return reason
    engines = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True, check=False)
    return "" if "nbd" in engines.stdout.split() else "this fio was built without its nbd engine"


def arguments(workload: Workload, uri: str, size_bytes: int, runtime_s: int) -> list[str]:
    """Return fio's arguments for a timed run; `size_bytes` is the volume's."""
    return arguments_for_each(workload, [uri], size_bytes, runtime_s)


def arguments_for_each(
    workload: Workload, uris: Sequence[str], size_bytes: int, runtime_s: int
) -> list[str]:
    """Return the arguments for the same load on several volumes at once, counted together."""
    assert runtime_s >= 1
    part = size_bytes // workload.connections
    part -= part % workload.block_bytes
    options = {
        "ioengine": "nbd",
        "rw": workload.pattern,
        "bs": workload.block_bytes,
        "iodepth": workload.depth,
        "size": part,
        "numjobs": workload.connections,
        "offset_increment": part,
        "runtime": runtime_s,
        "ramp_time": f"{RAMP_MS}ms",
        "unified_rw_reporting": "mixed",
        "lat_percentiles": 1,
        "clat_percentiles": 0,
        "output-format": "json",
    }
    if workload.read_percent is not None:
        options["rwmixread"] = workload.read_percent
    if workload.flush_every:
        # Not fdatasync: the engine only knows this one. Both are NBD_CMD_FLUSH.
        options["fsync"] = workload.flush_every
    return [
        "fio",
        *(f"--{key}={value}" for key, value in options.items()),
        *("--time_based", "--group_reporting", "--thread"),
        # Options before the first name are those of every job.
        *(option for uri in uris for option in ("--name=load", f"--uri={uri}")),
    ]


def fill_arguments(uri: str, size_bytes: int) -> list[str]:
    """Return the arguments that write the whole volume once."""
    return [
        *("fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", "--rw=write", "--bs=1m"),
        *("--iodepth=4", f"--size={size_bytes}", "--output-format=json"),
    ]


def verify_arguments(uri: str, size_bytes: int) -> list[str]:
    """Return the arguments that write blocks with checksums, then read them back."""
    return [
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite"),
        *("--bsrange=4k-256k", "--blockalign=4k", "--iodepth=16", f"--size={size_bytes}"),
        *("--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0"),
        "--output-format=json",
    ]


def parse(text: str) -> Measured:
    """Read fio's JSON of one group of jobs. Raises ValueError for what is no such thing."""
    return _of_only_job(text, _of_job)


def parse_fill(text: str) -> float:
    """Return the bytes per second of a fill. Raises ValueError for what is no such thing."""
    return _of_only_job(text, lambda job: float(job["write"]["bw_bytes"]))


def _of_only_job(text: str, read: Callable[[dict[str, Any]], _T]) -> _T:
    start = text.find("{")
    if start < 0:
        raise ValueError(f"fio printed no JSON: {text[:200]!r}")
    # fio may print a line before the JSON and another one behind it.
    parsed, _ = json.JSONDecoder().raw_decode(text[start:])
    try:
        (job,) = parsed["jobs"]
        return read(job)
    except (KeyError, TypeError) as error:
        raise ValueError(f"fio's JSON has another shape: {error!r}") from error


def _of_job(job: dict[str, Any]) -> Measured:
    if job["error"]:
        raise ValueError(f"fio's job ended with error {job['error']}")
    mixed = job["mixed"]
    if not mixed["total_ios"]:
        raise ValueError("fio completed no request")
    latency = mixed["lat_ns"]["percentile"]
    return Measured(
        operations=int(mixed["total_ios"]),
        runtime_s=mixed["runtime"] / 1000,
        iops=float(mixed["iops"]),
        bytes_per_s=float(mixed["bw_bytes"]),
        p50_us=latency["50.000000"] / NS_PER_US,
        p99_us=latency["99.000000"] / NS_PER_US,
        p999_us=latency["99.900000"] / NS_PER_US,
        longest_us=mixed["lat_ns"]["max"] / NS_PER_US,
        fio_cpu_share=(job["usr_cpu"] + job["sys_cpu"]) / 100,
    )


def run(
    command: list[str],
    deadline_s: float = DEADLINE_EXTRA_S,
    cpu: int | None = None,
    watch: Callable[[], object] = lambda: None,
) -> str:
    """Run fio, on one processor if `cpu` is given; return what it printed.

    `watch` is called twice a second meanwhile. Raises ContenderBroke if it fails or does not end:
    the server is at fault.
    """
    if cpu is not None:
        command = ["taskset", "--cpu-list", str(cpu), *command]
    deadline = time.monotonic() + deadline_s
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=WATCH_PAUSE_S)
                    break
                except subprocess.TimeoutExpired:
                    if time.monotonic() > deadline:
                        raise ContenderBroke(f"fio did not end in {deadline_s:g} s") from None
                    watch()
        finally:
            process.kill()
    if process.returncode != 0:
        raise ContenderBroke(f"fio failed with {process.returncode}: {err[-600:].strip()}")
    return out

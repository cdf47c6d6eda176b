"""`python -m bench.profiling ROW`: where the processor time of one operation goes, in our pair.

Each instrument has a run of the row's load to itself, so that none disturbs another one: processor
time of both workers (/proc), system calls (perf stat), Python functions (py-spy, which pauses the
worker for each sample, so that only its shares are used), kernel and library functions (perf
record). All is per operation, and time on a processor only: other work on the machine makes caches
colder but is not in it.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench import fio
from bench.cells import FULL, LOCAL_BYTES, Row
from bench.contender import Place, Served
from bench.contenders.ours import Repl
from bench.pages import populate
from bench.processes import missing_command

SAMPLES_PER_S = 500
TOOL_DEADLINE_S = 60.0
#: System calls are counted one event each; these are what an engine like this one makes.
SYSTEM_CALLS = (
    *("recvfrom", "recvmsg", "sendto", "sendmsg", "pwrite64", "pwritev", "pread64", "preadv"),
    *("preadv2", "pwritev2", "fdatasync", "epoll_wait", "epoll_pwait", "epoll_ctl", "futex"),
    *("read", "write", "mmap", "munmap"),
)
TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
FUNCTIONS_SHOWN = 28
SYMBOLS_SHOWN = 24


@dataclass(frozen=True)
class Usage:
    """User and system processor time of one process."""

    user_us: float
    system_us: float

    @property
    def total_us(self) -> float:
        return self.user_us + self.system_us

    def since(self, earlier: Usage, operations: float) -> Usage:
        """Return what was used for each operation since an earlier look."""
        return Usage(
            (self.user_us - earlier.user_us) / operations,
            (self.system_us - earlier.system_us) / operations,
        )


def parse_usage(stat: str) -> Usage:
    """Read /proc/PID/stat (proc(5))."""
    fields = stat.rpartition(")")[2].split()
    return Usage(int(fields[11]) * TICK_US, int(fields[12]) * TICK_US)


def usage(pid: int) -> Usage:
    return parse_usage(Path(f"/proc/{pid}/stat").read_text())


def parse_stacks(text: str) -> tuple[dict[str, int], dict[str, int]]:
    """Read py-spy's raw format; return samples by function, its own and with what it calls."""
    own: collections.Counter[str] = collections.Counter()
    total: collections.Counter[str] = collections.Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if not stack:
            continue
        # name (path/file.py:12) → file.name
        frames = [
            re.sub(r"^(\S+) \((?:.*/)?([^/:]+?)(?:\.py)?(?::\d+)?\)$", r"\2.\1", frame)
            for frame in stack.split(";")
        ]
        own[frames[-1]] += int(count)
        for frame in set(frames):
            total[frame] += int(count)
    return dict(own), dict(total)


def parse_events(text: str) -> dict[str, int]:
    """Read `perf stat -x,`; return counts by system call."""
    counts = {}
    for line in text.splitlines():
        value, _unit, event, *_ = [*line.split(","), "", ""]
        if value.isdigit() and (name := event.partition("sys_enter_")[2]):
            counts[name] = int(value)
    return counts


def parse_symbols(text: str) -> list[tuple[float, str]]:
    """Read `perf report --stdio` sorted by library and symbol; return (percent, symbol)."""
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*(\d+\.\d+)%\s+(\S+)\s+\[(.)\]\s+(.+?)(?:\s+-)*\s*$", line)
        if match:
            percent, library, ring, symbol = match.groups()
            shown = f"kernel {symbol}" if ring == "k" else f"{library} {symbol}"
            found.append((float(percent), shown))
    return found


@contextlib.contextmanager
def attached(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run an instrument beside the block, which must end before it does; wait for its end."""
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
            process.wait(TOOL_DEADLINE_S)
        finally:
            process.kill()


class Profiler:
    """Loads a running pair and takes one kind of measurement at a time."""

    def __init__(self, row: Row, served: Served, folder: Path, seconds: int) -> None:
        self._row = row
        self._served = served
        self._folder = folder
        self._seconds = seconds
        self.workers = {node.name: node.worker_pid() for node in served.nodes}

    def load(self) -> fio.Measured:
        """One run of the row's load; what comes before its measured time is warm-up for all."""
        command = fio.arguments(self._row.workload, self._served.uri, LOCAL_BYTES, self._seconds)
        return fio.parse(fio.run(command, self._seconds + fio.DEADLINE_EXTRA_S))

    def _active_s(self, measured: fio.Measured) -> float:
        return measured.runtime_s + fio.RAMP_MS / 1000

    def costs(self) -> tuple[fio.Measured, dict[str, Usage]]:
        """Return the load's figures, and what each worker used per operation."""
        before = {name: usage(pid) for name, pid in self.workers.items()}
        measured = self.load()
        operations = measured.iops * self._active_s(measured)
        per_operation = {
            name: usage(pid).since(before[name], operations) for name, pid in self.workers.items()
        }
        return measured, per_operation

    def system_calls(self) -> dict[str, dict[str, float]]:
        """Return calls per operation by worker."""
        events = ",".join(f"syscalls:sys_enter_{name}" for name in SYSTEM_CALLS)
        found = {}
        for name, pid in self.workers.items():
            log = self._folder / f"{name}.stat"
            command = ["perf", "stat", "-x,", "-o", str(log), "-e", events, "-p", str(pid)]
            with attached([*command, "--", "sleep", str(self._seconds)]):
                measured = self.load()
            # perf looks on for as long as the measured time; the load goes on around it.
            operations = measured.iops * self._seconds
            counts = parse_events(log.read_text())
            found[name] = {call: count / operations for call, count in counts.items() if count}
        return found

    def functions(self) -> dict[str, tuple[dict[str, int], dict[str, int]]]:
        """Return py-spy's samples by worker: own, and with callees.

        Of the thread that holds the interpreter's lock: what waits in a system call is not in it.
        """
        found = {}
        for name, pid in self.workers.items():
            log = self._folder / f"{name}.stacks"
            command = [
                *("py-spy", "record", "--gil", "--format", "raw"),
                *("--output", str(log)),
                *("--rate", str(SAMPLES_PER_S), "--duration", str(self._seconds)),
                *("--pid", str(pid)),
            ]
            with attached(command):
                self.load()
            found[name] = parse_stacks(log.read_text())
        return found

    def symbols(self) -> dict[str, list[tuple[float, str]]]:
        """Return perf's percentages by worker, of kernel and library functions."""
        found = {}
        for name, pid in self.workers.items():
            log = self._folder / f"{name}.perf"
            record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(4 * SAMPLES_PER_S)]
            command = [*record, "-o", str(log), "-p", str(pid), "--", "sleep", str(self._seconds)]
            with attached(command):
                self.load()
            report = ["perf", "report", "--stdio", "-q", "-i", str(log), "--sort", "dso,symbol"]
            done = subprocess.run(report, capture_output=True, text=True, check=False)
            found[name] = parse_symbols(done.stdout)
        return found


def shares(counts: Mapping[str, int], whole: int, cost_us: float, most: int) -> Iterable[str]:
    """Return lines `µs per operation, name`, the dearest first."""
    for name, count in sorted(counts.items(), key=lambda item: -item[1])[:most]:
        yield f"    {count / whole * cost_us:7.2f} µs  {name}"


def show(profiler: Profiler, say: Callable[[str], None]) -> None:
    """Measure, and say what was found."""
    profiler.load()  # so that every extent is hot
    measured, costs = profiler.costs()
    say(f"{measured.iops:,.0f} IOPS, p50 {measured.p50_us:,.0f} µs, p99 {measured.p99_us:,.0f} µs")
    for name, cost in costs.items():
        say(
            f"{name}: {cost.total_us:.1f} µs/op = user {cost.user_us:.1f} "
            f"+ system {cost.system_us:.1f}"
        )
    for name, calls in profiler.system_calls().items():
        shown = ", ".join(f"{call} {n:.2f}" for call, n in sorted(calls.items()) if n >= 0.005)
        say(f"{name}: system calls per operation: {shown}")
    for name, (own, total) in profiler.functions().items():
        whole = sum(own.values()) or 1
        say(f"{name}: Python functions, their own user time")
        for line in shares(own, whole, costs[name].user_us, FUNCTIONS_SHOWN):
            say(line)
        say(f"{name}: Python functions, with everything they call")
        for line in shares(total, whole, costs[name].user_us, FUNCTIONS_SHOWN):
            say(line)
    for name, symbols in profiler.symbols().items():
        say(f"{name}: kernel and library functions")
        for percent, symbol in symbols[:SYMBOLS_SHOWN]:
            say(f"    {percent / 100 * costs[name].total_us:7.2f} µs  {symbol}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("row_key", metavar="ROW")
@click.option("--seconds", type=click.IntRange(2, 60), default=5, show_default=True)
def main(row_key: str, seconds: int) -> None:
    """Show where the time of one operation of ROW (a key of bench/cells.py) goes."""
    rows = {row.key: row for row in FULL.rows if "repl" in row.contenders}
    if row_key not in rows:
        raise click.UsageError(f"no such row; rows are: {' '.join(rows)}")
    if reason := fio.missing() or missing_command("perf", "py-spy"):
        raise click.UsageError(f"{reason} (Debian: linux-perf; PyPI: the extra `bench`)")
    with tempfile.TemporaryDirectory(prefix="repl-profile-") as inner:
        folder = Path(inner)
        place = Place(folder / "pair", LOCAL_BYTES)
        place.folder.mkdir()
        with Repl("repl", "", replicated=True).serve(place) as served:
            for copy in served.copies:
                populate(copy)
            show(Profiler(rows[row_key], served, folder, seconds), click.echo)
    sys.exit(0)


if __name__ == "__main__":
    main()

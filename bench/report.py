"""A run as Markdown: what was measured where, one table a row, and what it comes to.

Pure: a `Run` in, text out. What is missing, what broke and what differs comes before any figure.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from bench.results import Cell, RowFacts, Run, Sample
from bench.summary import (
    Comparison,
    Spread,
    comparisons,
    floors,
    row_comparisons,
    speed,
    spread,
    verdict,
)

MIB = 1 << 20
#: Above this share of a processor fio itself is what is measured.
FIO_BUSY_SHARE = 0.9
#: PSS of one supervisor and one worker, with a clean map.
MEMORY_BYTES_MAX = 150 * MIB

HEAD = (
    "contender | {unit}, median | lowest – highest | {other} | p50 µs | p99 µs | p99.9 µs "
    "| CPU µs/op | fio CPU | peak MiB"
)


def median_of(cell: Cell, value: Callable[[Sample], float]) -> float:
    return statistics.median(value(sample) for sample in cell.samples)


def megabytes(sample: Sample) -> float:
    """Return MB per second."""
    return sample.bytes_per_s / 1e6


def table(lines: Iterable[Sequence[str]], head: str) -> list[str]:
    """Return a Markdown table; all columns but the first are figures."""
    columns = head.count("|") + 1
    rule = "|".join(["---", *["---:"] * (columns - 1)])
    return [f"| {head} |", f"|{rule}|", *(f"| {' | '.join(line)} |" for line in lines)]


def cell_line(cell: Cell, title: str, *, in_megabytes: bool) -> list[str]:
    """Return one contender's line of a row's table."""
    shown, other = (megabytes, speed) if in_megabytes else (speed, megabytes)
    speeds = Spread.of([shown(sample) for sample in cell.samples])
    fio_share = median_of(cell, lambda s: s.fio_cpu_share)
    return [
        title,
        f"{speeds.median:,.0f}",
        f"{speeds.low:,.0f} – {speeds.high:,.0f}",
        f"{median_of(cell, other):,.0f}",
        f"{median_of(cell, lambda s: s.p50_us):,.0f}",
        f"{median_of(cell, lambda s: s.p99_us):,.0f}",
        f"{median_of(cell, lambda s: s.p999_us):,.0f}",
        f"{median_of(cell, lambda s: s.cpu_us_per_op):,.1f}",
        f"{fio_share:.0%}{' (!)' if fio_share > FIO_BUSY_SHARE else ''}",
        f"{median_of(cell, lambda s: s.peak_bytes) / MIB:,.0f}",
    ]


def row_section(run: Run, row: RowFacts) -> list[str]:
    """Return a row's heading, table and verdict."""
    lines = ["", f"### {row.title}", ""]
    if row.missing:
        return [*lines, f"Missing: {row.missing}."]
    cells = [cell for cell in run.cells if cell.row == row.key]
    if not cells:
        return [*lines, "Nobody was measured."]
    titles = {contender.key: contender.title for contender in run.contenders}
    units = ("MB/s", "IOPS") if row.in_megabytes else ("IOPS", "MB/s")
    lines += table(
        (cell_line(cell, titles[cell.contender], in_megabytes=row.in_megabytes) for cell in cells),
        HEAD.format(unit=units[0], other=units[1]),
    )
    notes = sorted({s.note for cell in cells for s in cell.samples if s.note})
    lines += ["", f"Noted: {'; '.join(notes)}."] if notes else []
    for sentence in filter(None, map(in_words, row_comparisons(run, row))):
        lines += ["", sentence]
    return lines


def in_words(found: Comparison) -> str:
    """Return what a row comes to."""
    parts = []
    if found.limit is not None:
        parts.append(f"{found.ours.over(found.limit):.2f} of the C limit")
    if found.peer is not None:
        ratio, word = found.ours.over(found.peer), verdict(found.ours, found.peer).value
        parts.append(f"{ratio:.2f} × the fastest other one, {found.peer_key} ({word})")
    return f"{found.contender}: {'; '.join(parts)}." if parts else ""


def ratio_table(run: Run) -> list[str]:
    """Return the overview: every row in which one of ours took part."""

    def shown(ratio: float | None) -> str:
        return "–" if ratio is None else f"{ratio:.2f}"

    lines = [
        (
            found.row.title,
            found.contender,
            shown(found.of_limit),
            shown(found.of_peer),
            found.peer_key or "–",
            verdict(found.ours, found.peer).value if found.peer else "–",
        )
        for found in comparisons(run)
    ]
    head = "row | ours | of the C limit | of the fastest other | which is | verdict"
    return table(lines, head) if lines else ["Nothing of ours was measured."]


def memory_sentence(run: Run) -> str:
    """Return what our processes need, or that it was not measured."""
    memory = run.memory
    if memory is None:
        return "Memory: not measured"
    word = "reached" if memory.total_bytes < MEMORY_BYTES_MAX else "NOT REACHED"
    return (
        f"Memory (PSS) with a clean map of {memory.volume_bytes >> 30} GiB: supervisor "
        f"{memory.supervisor_bytes / MIB:.1f} MiB + worker {memory.worker_bytes / MIB:.1f} MiB = "
        f"{memory.total_bytes / MIB:.1f} MiB, wanted under {MEMORY_BYTES_MAX // MIB} MiB: {word}"
    )


def trouble(run: Run) -> list[str]:
    """Return what makes figures doubtful or absent, one sentence each."""
    found = [f"missing: {c.title}: {c.missing}" for c in run.contenders if c.missing]
    found += [f"missing: {row.title}: {row.missing}" for row in run.rows if row.missing]
    found += [
        f"BROKE: {b.contender} ({b.where}, repetition {b.repetition + 1}): {b.reason}"
        for b in run.breakages
    ]
    found += [
        f"COPIES DIFFER: {c.contender} ({c.stage}, repetition {c.repetition + 1}) "
        f"at offset {c.difference_offset}"
        for c in run.checks
        if c.difference_offset is not None
    ]
    if run.machine.load_average > 0.5:
        found.append(
            f"other work ran on this machine (load {run.machine.load_average}): "
            "these figures are not to be quoted"
        )
    return found


def checks_sentence(run: Run) -> str:
    """Return how often copies were compared."""
    equal = sum(check.difference_offset is None for check in run.checks)
    return f"Both copies were compared {len(run.checks)} times and equal {equal} times."


def markdown(run: Run) -> str:
    """Return the whole report."""
    machine = run.machine
    lines = [
        f"# Benchmark `{run.suite}` of commit {run.commit}",
        "",
        f"{run.started}. {run.repetitions} repetitions of {run.runtime_s} s. {machine.cpus} × "
        f"{machine.cpu_model}, {machine.memory_bytes / (1 << 30):.0f} GiB, Linux {machine.kernel}, "
        f"{machine.filesystem}, Python {machine.python}, {machine.fio}.",
        "",
        f"{checks_sentence(run)} {memory_sentence(run)}",
        "",
        *(
            f"- {' '.join(sentence.split())}"
            for sentence in (*trouble(run), *map(str, floors(run)))
        ),
        "",
        "## Ratios of medians",
        "",
        *ratio_table(run),
        "",
        "## Rows",
    ]
    for row in run.rows:
        lines += row_section(run, row)
    lines += ["", "## Who took part", ""]
    lines += [f"- `{c.key}`: {c.title}, {c.version or c.missing}" for c in run.contenders]
    return "\n".join(lines) + "\n"


def brief(run: Run) -> str:
    """Return what a terminal shows after the quick suite."""
    lines = []
    for row in run.rows:
        lines.append(row.title)
        for cell in run.cells:
            if cell.row == row.key:
                speeds = spread(cell)
                lines.append(
                    f"  {cell.contender:<12} {speeds.median:>9,.0f} IOPS "
                    f"({speeds.low:,.0f} – {speeds.high:,.0f}) "
                    f"{median_of(cell, lambda s: s.bytes_per_s) / 1e6:>7,.0f} MB/s  "
                    f"p99 {median_of(cell, lambda s: s.p99_us):,.0f} µs  "
                    f"CPU {median_of(cell, lambda s: s.cpu_us_per_op):,.1f} µs/op"
                )
        lines += [
            f"  {sentence}" for each in row_comparisons(run, row) if (sentence := in_words(each))
        ]
    lines += ["", checks_sentence(run), memory_sentence(run), *map(str, floors(run))]
    lines += trouble(run)
    return "\n".join(lines)

"""Runs to make reports of: small, made up, and valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.contender import Kind
from bench.results import Cell, ContenderFacts, CopyCheck, Machine, Memory, RowFacts, Run, Sample

MACHINE = Machine(
    cpu_model="A Processor",
    cpus=2,
    memory_bytes=8 << 30,
    kernel="6.1",
    python="3.11.2",
    fio="fio-3.33",
    filesystem="ext4",
    load_average=0.1,
)
KINDS = {
    "repl": Kind.OURS,
    "repl-single": Kind.OURS,
    "limit": Kind.LIMIT,
    "mirror-tcp": Kind.PEER,
    "mirror-unix": Kind.PEER,
}


def sample(iops: float, repetition: int = 0, block_bytes: int = 4096) -> Sample:
    return Sample(
        repetition=repetition,
        operations=int(iops),
        iops=iops,
        bytes_per_s=iops * block_bytes,
        p50_us=100.0,
        p99_us=300.0,
        p999_us=900.0,
        cpu_us_per_op=12.5,
        fio_cpu_share=0.5,
        peak_bytes=64 << 20,
    )


def run_of(speeds: Mapping[str, Mapping[str, Sequence[float]]], block_bytes: int = 4096) -> Run:
    """Make a run: row → contender → IOPS of its samples."""
    cells = tuple(
        Cell(
            row=row,
            contender=contender,
            samples=tuple(sample(v, i, block_bytes) for i, v in enumerate(values)),
        )
        for row, of_row in speeds.items()
        for contender, values in of_row.items()
    )
    return Run(
        suite="quick",
        commit="abc1234",
        started="2026-01-01T00:00:00+0000",
        repetitions=3,
        runtime_s=2,
        machine=MACHINE,
        contenders=tuple(
            ContenderFacts(
                key=key, title=f"title of {key}", kind=kind, replicated=key != "repl-single"
            )
            for key, kind in KINDS.items()
        ),
        rows=tuple(
            RowFacts(
                key=row, title=f"row {row}", stage="local", in_megabytes=block_bytes > 16 << 10
            )
            for row in speeds
        ),
        cells=cells,
        checks=(CopyCheck(contender="repl", stage="local", repetition=0, difference_offset=None),),
        breakages=(),
        memory=Memory(volume_bytes=1 << 40, supervisor_bytes=40 << 20, worker_bytes=20 << 20),
    )

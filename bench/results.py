"""What a run leaves behind: the JSON file that reports and plots are made from.

Every sample is kept, so that a median can be questioned. Sizes are bytes, times as the names say.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from bench.contender import Kind

FORMAT = 1


class Record(BaseModel):
    """A part of the file: unknown fields are an error, since a report would pass over them."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Machine(Record):
    """Where it was measured."""

    cpu_model: str
    cpus: int
    memory_bytes: int
    kernel: str
    python: str
    fio: str
    filesystem: str
    #: Of the last minute, before the first sample: other work on the machine.
    load_average: float


class ContenderFacts(Record):
    """Who took part, or why not."""

    key: str
    title: str
    kind: Kind
    replicated: bool
    version: str = ""
    missing: str = ""


class RowFacts(Record):
    """One line of a comparison."""

    key: str
    title: str
    stage: str
    in_megabytes: bool
    missing: str = ""


class Sample(Record):
    """One run of fio."""

    repetition: int
    operations: int
    iops: float
    bytes_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    #: Of all server processes on both nodes together.
    cpu_us_per_op: float
    #: fio's own, as a share of one processor per connection: near 1, it is fio that is measured.
    fio_cpu_share: float
    #: Highest resident size of all server processes, summed.
    peak_bytes: int
    note: str = ""


class Cell(Record):
    """A row on a contender."""

    row: str
    contender: str
    samples: tuple[Sample, ...]


class CopyCheck(Record):
    """Both copies were compared after a repetition."""

    contender: str
    stage: str
    repetition: int
    #: Where they differ; None if they do not.
    difference_offset: int | None


class Breakage(Record):
    """A contender did not do what it is there for."""

    contender: str
    where: str
    repetition: int
    reason: str


class Memory(Record):
    """Proportional set sizes of our processes with a huge sparse volume and a clean map."""

    volume_bytes: int
    supervisor_bytes: int
    worker_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.supervisor_bytes + self.worker_bytes


class Run(Record):
    """Everything that one command measured."""

    format: int = FORMAT
    suite: str
    commit: str
    started: str
    repetitions: int
    runtime_s: int
    machine: Machine
    contenders: tuple[ContenderFacts, ...]
    rows: tuple[RowFacts, ...]
    cells: tuple[Cell, ...]
    checks: tuple[CopyCheck, ...]
    breakages: tuple[Breakage, ...]
    memory: Memory | None = None

    @property
    def sound(self) -> bool:
        """Whether all copies were equal and nobody broke."""
        return not self.breakages and all(each.difference_offset is None for each in self.checks)

    def cell(self, row: str, contender: str) -> Cell | None:
        for cell in self.cells:
            if (cell.row, cell.contender) == (row, contender):
                return cell
        return None


def load(path: Path) -> Run:
    """Read a results file. Raises pydantic's ValidationError for anything else."""
    return Run.model_validate_json(path.read_text())


def save(run: Run, path: Path) -> None:
    """Write a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(run.model_dump_json(indent=1) + "\n")

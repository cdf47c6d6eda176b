"""Runs a suite: brings contenders up, takes samples in rotating order, compares copies.

All contenders of a stage are up at the same time and idle but for the one that is measured; the
samples of one row follow each other at once, in an order that rotates, so that what else happens
on the machine hits all of them alike. Each repetition starts new processes on new files.

What breaks is recorded and left out; it never ends the run and never counts as a figure.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from bench import accounting, fio, resync
from bench.cells import (
    COLD_BYTES,
    LINK_DELAY_MS,
    LOCAL_BYTES,
    RESYNC_BYTES,
    Row,
    Stage,
    Suite,
)
from bench.contender import Contender, Place, Served
from bench.copies import first_difference
from bench.pages import populate
from bench.polling import Poller
from bench.processes import ContenderBroke
from bench.results import Breakage, Cell, CopyCheck, Sample
from tests.daemon import process_group_members

CLIENT_CPU, PRIMARY_CPU = 0, 1
VERIFY_BYTES = 16 << 20
SIZES = {
    Stage.LOCAL: LOCAL_BYTES,
    Stage.POURED: LOCAL_BYTES,
    Stage.DISTANT: LOCAL_BYTES,
    Stage.COLD: COLD_BYTES,
    Stage.RESYNC: RESYNC_BYTES,
}

_T = TypeVar("_T")


def rotated(sequence: Sequence[_T], by: int) -> list[_T]:
    """Return the sequence begun at another place."""
    start = by % len(sequence) if sequence else 0
    return [*sequence[start:], *sequence[:start]]


def cannot_measure(row: Row) -> str:
    """Return why nobody can be measured in this row here, or nothing."""
    if row.pinned and (os.cpu_count() or 1) < 2:
        return "one processor only: client and server cannot be apart"
    return row.missing


class Runner:
    """One run of a suite in `folder`, which must be empty and on the disk to be used."""

    def __init__(
        self,
        suite: Suite,
        contenders: Mapping[str, Contender],
        folder: Path,
        say: Callable[[str], None],
        sizes: Mapping[Stage, int] = SIZES,
    ) -> None:
        self._sizes = sizes
        self._suite = suite
        self._contenders = contenders
        self._folder = folder
        self._say = say
        self._samples: dict[tuple[str, str], list[Sample]] = {}
        self.checks: list[CopyCheck] = []
        self.breakages: list[Breakage] = []
        self.missing = {key: contender.missing() for key, contender in contenders.items()}
        self._rows = [row for row in suite.rows if not cannot_measure(row)]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """What was measured until now, in the suite's order."""
        return tuple(
            Cell(row=row.key, contender=key, samples=tuple(samples))
            for row in self._suite.rows
            for key in row.contenders
            if (samples := self._samples.get((row.key, key)))
        )

    def run(self) -> None:
        """Measure everything; results are in `cells`, `checks` and `breakages`."""
        for repetition in range(self._suite.repetitions):
            for stage in Stage:
                rows = [row for row in self._rows if row.stage is stage]
                if rows:
                    self._stage(stage, rows, repetition)

    def _stage(self, stage: Stage, rows: Sequence[Row], repetition: int) -> None:
        present = [
            key
            for key in self._contenders
            if not self.missing[key] and any(key in row.contenders for row in rows)
        ]
        with contextlib.ExitStack() as stack:
            up: dict[str, Served] = {}
            for key in rotated(present, repetition):
                with self._noting(key, f"starting, {stage.value}", repetition):
                    up[key] = self._start(stack, key, stage, repetition)
            for number, row in enumerate(rows):
                self._row(row, up, repetition, number)
            for key, served in up.items():
                with self._noting(key, f"comparing copies, {stage.value}", repetition):
                    self._check(key, served, stage, repetition)

    def _start(
        self, stack: contextlib.ExitStack, key: str, stage: Stage, repetition: int
    ) -> Served:
        folder = self._folder / f"{stage.value}-{repetition}-{key}"
        folder.mkdir()
        delay_ms = LINK_DELAY_MS if stage is Stage.DISTANT else 0.0
        place = Place(folder, self._sizes[stage], delay_ms)
        stack.callback(_empty, folder)
        served = stack.enter_context(self._contenders[key].serve(place))
        if stage is Stage.POURED:
            fio.run(fio.fill_arguments(served.uri, place.size_bytes))
        elif stage is not Stage.COLD:
            for copy in served.copies:
                populate(copy)
        return served

    def _row(self, row: Row, up: dict[str, Served], repetition: int, number: int) -> None:
        for key in rotated(row.contenders, repetition + number):
            if key not in up:
                continue
            sound = False
            with self._noting(key, row.key, repetition):
                sample = self._sample(row, up[key], repetition)
                if not alive(up[key]):
                    raise ContenderBroke("a server process is gone")
                self._samples.setdefault((row.key, key), []).append(sample)
                self._say(progress_line(self._suite, row, key, sample))
                sound = True
            if not sound:
                # The other rows of this repetition would only wait for it.
                del up[key]

    def _sample(self, row: Row, served: Served, repetition: int) -> Sample:
        size_bytes = self._sizes[row.stage]
        if row.stage is Stage.RESYNC:
            resync.begin(served, size_bytes)
        os.sync()
        command = fio.arguments(row.workload, served.uri, size_bytes, self._suite.runtime_s)
        deadline_s = self._suite.runtime_s + fio.DEADLINE_EXTRA_S
        accounting.reset_peaks(served.groups)
        peaks = [0]

        def watch() -> None:
            peaks.append(accounting.peak_bytes(served.groups))

        before_s = accounting.cpu_s(served.groups)
        with contextlib.ExitStack() as stack:
            if row.pinned:
                stack.enter_context(accounting.pinned(served.primary, PRIMARY_CPU))
                stack.enter_context(accounting.pinned(served.secondary, CLIENT_CPU))
            poller = stack.enter_context(Poller(served)) if row.polled else None
            printed = fio.run(command, deadline_s, CLIENT_CPU if row.pinned else None, watch)
        watch()
        used_s = accounting.cpu_s(served.groups) - before_s
        try:
            measured = fio.parse(printed)
        except ValueError as error:
            raise ContenderBroke(str(error)) from error
        note = f"{poller.answers} status and metrics answers" if poller is not None else ""
        if row.stage is Stage.RESYNC:
            note = resync.end(served)
        active_s = measured.runtime_s + fio.RAMP_MS / 1000
        return Sample(
            repetition=repetition,
            operations=measured.operations,
            iops=measured.iops,
            bytes_per_s=measured.bytes_per_s,
            p50_us=measured.p50_us,
            p99_us=measured.p99_us,
            p999_us=measured.p999_us,
            cpu_us_per_op=used_s / active_s / measured.iops * 1e6,
            fio_cpu_share=measured.fio_cpu_share,
            peak_bytes=max(peaks),
            note=note,
        )

    def _check(self, key: str, served: Served, stage: Stage, repetition: int) -> None:
        """Write and verify through the export, then compare the copies."""
        fio.run(fio.verify_arguments(served.uri, VERIFY_BYTES))
        if len(served.copies) < 2:
            return
        difference = first_difference(*served.copies)
        self.checks.append(
            CopyCheck(
                contender=key,
                stage=stage.value,
                repetition=repetition,
                difference_offset=difference,
            )
        )
        if difference is not None:
            self._say(f"{key}: THE COPIES DIFFER at {difference}")

    @contextlib.contextmanager
    def _noting(self, key: str, where: str, repetition: int) -> Iterator[None]:
        try:
            yield
        except ContenderBroke as broke:
            self._note(key, where, repetition, str(broke))

    def _note(self, key: str, where: str, repetition: int, reason: str) -> None:
        self.breakages.append(
            Breakage(contender=key, where=where, repetition=repetition, reason=reason)
        )
        self._say(f"{key} BROKE ({where}): {reason}")


def progress_line(suite: Suite, row: Row, key: str, sample: Sample) -> str:
    """Return what is said of a sample when it is taken."""
    return (
        f"{sample.repetition + 1}/{suite.repetitions}  {row.title:<42} {key:<12} "
        f"{sample.iops:>9,.0f} IOPS {sample.bytes_per_s / 1e6:>7,.0f} MB/s  {sample.note}"
    )


def alive(served: Served) -> bool:
    """Whether no server process group has died out."""
    return all(process_group_members(group) for group in served.groups)


def _empty(folder: Path) -> None:
    """Give back the space of a contender that is down; its logs stay until the run ends."""
    for image in folder.rglob("*.img"):
        image.unlink()


def estimate_s(suite: Suite) -> float:
    """Return roughly how long a suite takes: samples, and bringing everything up."""
    sample_s = suite.runtime_s + fio.RAMP_MS / 1000 + 0.8
    stages = {row.stage for row in suite.rows}
    starts = sum(
        len({key for row in suite.rows if row.stage is stage for key in row.contenders})
        for stage in stages
    )
    return suite.repetitions * (suite.cells * sample_s + starts * 2.5)


def now_text() -> str:
    """Return the time of day in ISO form, for a results file."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")

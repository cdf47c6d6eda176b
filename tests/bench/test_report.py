"""The report: nothing that makes a figure doubtful is left out."""

from __future__ import annotations

from bench import report
from bench.contender import Kind
from bench.results import Breakage, ContenderFacts, CopyCheck, Memory, RowFacts
from tests.bench.runs import run_of

RUN = run_of(
    {"write-4k-32": {"repl": [100, 110, 120], "limit": [200, 200, 200], "mirror-tcp": [10, 20, 30]}}
)


def test_row_shows_median_range_and_ratios() -> None:
    text = report.markdown(RUN)
    assert "| title of repl | 110 | 100 – 120 |" in text
    assert "repl: 0.55 of the C limit; 5.50 × the fastest other one, mirror-tcp (faster)." in text
    assert "| row write-4k-32 | repl | 0.55 | 5.50 | mirror-tcp | faster |" in text


def test_large_blocks_are_shown_in_megabytes() -> None:
    run = run_of({"write-128k": {"repl": [1000, 1000, 1000]}}, block_bytes=128 << 10)
    assert "| title of repl | 131 | 131 – 131 |" in report.markdown(run)


def test_missing_contender_is_named() -> None:
    absent = ContenderFacts(
        key="nbdkit", title="nbdkit", kind=Kind.PEER, replicated=False, missing="not installed"
    )
    run = RUN.model_copy(update={"contenders": (*RUN.contenders, absent)})
    assert "missing: nbdkit: not installed" in report.markdown(run)
    assert "missing: nbdkit: not installed" in report.brief(run)


def test_missing_row_is_named() -> None:
    absent = RowFacts(
        key="tls", title="over TLS", stage="local", in_megabytes=False, missing="not built"
    )
    run = RUN.model_copy(update={"rows": (*RUN.rows, absent)})
    assert "Missing: not built." in report.markdown(run)
    assert "missing: over TLS: not built" in report.brief(run)


def test_differing_copies_and_breakages_are_shouted_and_unsound() -> None:
    differs = CopyCheck(contender="repl", stage="local", repetition=1, difference_offset=4096)
    broke = Breakage(contender="limit", where="write-4k-32", repetition=0, reason="it fell over")
    assert RUN.sound
    for change, words in (
        ({"checks": (differs,)}, "COPIES DIFFER: repl (local, repetition 2) at offset 4096"),
        ({"breakages": (broke,)}, "BROKE: limit (write-4k-32, repetition 1): it fell over"),
    ):
        run = RUN.model_copy(update=change)
        assert not run.sound
        assert words in report.markdown(run)
        assert words in report.brief(run)


def test_busy_machine_makes_figures_unfit_to_quote() -> None:
    busy = RUN.machine.model_copy(update={"load_average": 3.2})
    assert "not to be quoted" in report.brief(RUN.model_copy(update={"machine": busy}))
    assert "not to be quoted" not in report.brief(RUN)


def test_memory_is_judged_by_its_limit() -> None:
    assert "= 60.0 MiB, wanted under 150 MiB: reached" in report.brief(RUN)
    large = Memory(volume_bytes=1 << 40, supervisor_bytes=100 << 20, worker_bytes=50 << 20)
    assert "NOT REACHED" in report.brief(RUN.model_copy(update={"memory": large}))
    assert "Memory: not measured" in report.brief(RUN.model_copy(update={"memory": None}))


def test_fio_at_its_own_ceiling_is_marked() -> None:
    (cell, *rest) = RUN.cells
    samples = tuple(s.model_copy(update={"fio_cpu_share": 0.95}) for s in cell.samples)
    run = RUN.model_copy(update={"cells": (cell.model_copy(update={"samples": samples}), *rest)})
    assert "95% (!)" in report.markdown(run)
    assert "(!)" not in report.markdown(RUN)

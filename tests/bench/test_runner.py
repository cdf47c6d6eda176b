"""The runner: who is measured when, and what becomes of one that breaks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import fio, runner
from bench.cells import QUICK, Row, Stage, Suite
from bench.contender import Contender, Kind, Place, Served
from bench.contenders.limit import Limit
from bench.copies import first_difference
from bench.fio import Workload
from bench.processes import ContenderBroke, running
from bench.runner import Runner

MIB = 1 << 20


class Broken(Contender):
    """Comes up never, or only to fall over."""

    key = "broken"
    title = "broken"
    kind = Kind.PEER
    replicated = True

    def __init__(self, *, starts: bool, absent: str = "") -> None:
        self._starts = starts
        self._absent = absent

    def missing(self) -> str:
        return self._absent

    def version(self) -> str:
        return "0"

    @contextlib.contextmanager
    def serve(self, place: Place) -> Iterator[Served]:
        if not self._starts:
            raise ContenderBroke("it does not start")
        socket = place.folder / "nobody.sock"
        with running(["sleep", "300"], place.folder / "log", lambda: True) as group:
            yield Served(f"nbd+unix:///?socket={socket}", (group,))


def suite_of(*contenders: str) -> Suite:
    row = Row("w", "a write", Workload("randwrite", 4096, 4), contenders)
    return Suite("tiny", (row,), repetitions=1, runtime_s=1)


def ran(suite: Suite, tmp_path: Path, **contenders: Contender) -> Runner:
    by_key = {key.replace("_", "-"): contender for key, contender in contenders.items()}
    one = Runner(suite, by_key, tmp_path, print, {Stage.LOCAL: 16 * MIB})
    one.run()
    return one


def test_order_rotates_and_nobody_is_left_out() -> None:
    assert [runner.rotated("abc", by) for by in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]
    assert runner.rotated([], 3) == []


def test_contender_that_does_not_start_is_recorded(tmp_path: Path) -> None:
    done = ran(suite_of("broken"), tmp_path, broken=Broken(starts=False))
    assert done.cells == ()
    assert [each.reason for each in done.breakages] == ["it does not start"]


def test_contender_that_nobody_can_use_is_recorded(tmp_path: Path) -> None:
    done = ran(suite_of("broken"), tmp_path, broken=Broken(starts=True))
    assert done.cells == ()
    (broke,) = done.breakages
    assert "fio failed" in broke.reason


def test_missing_contender_is_left_out_and_has_its_reason(tmp_path: Path) -> None:
    done = ran(suite_of("broken"), tmp_path, broken=Broken(starts=False, absent="not installed"))
    assert done.breakages == []
    assert done.missing == {"broken": "not installed"}


def test_row_that_waits_for_a_feature_is_not_run(tmp_path: Path) -> None:
    suite = suite_of("broken")
    waiting = replace(suite, rows=(replace(suite.rows[0], missing="not built"),))
    assert ran(waiting, tmp_path, broken=Broken(starts=False)).breakages == []


def test_limit_keeps_two_equal_copies_and_yields_figures(tmp_path: Path) -> None:
    done = ran(
        suite_of("limit", "limit-crc"),
        tmp_path,
        limit=Limit("limit", "C limit", replicated=True),
        limit_crc=Limit("limit-crc", "C limit with crc32c", replicated=True, crc=True),
    )
    assert done.breakages == []
    assert [(check.contender, check.difference_offset) for check in done.checks] == [
        ("limit", None),
        ("limit-crc", None),
    ]
    for cell in done.cells:
        (sample,) = cell.samples
        assert sample.operations > 0
        assert sample.peak_bytes > 0
    assert not list(tmp_path.rglob("*.img")), "backing files are given back"


def test_copy_that_was_not_written_is_found(tmp_path: Path) -> None:
    """A mirror that does not mirror must not win."""

    class Forgetful(Limit):
        @contextlib.contextmanager
        def serve(self, place: Place) -> Iterator[Served]:
            untouched = place.backing("untouched")
            with super().serve(place) as served:
                yield replace(served, copies=(served.copies[0], untouched))

    forgetful = Forgetful("limit", "C limit", replicated=False)
    done = ran(suite_of("limit"), tmp_path, limit=forgetful)
    (check,) = done.checks
    assert check.difference_offset is not None


def test_limit_answers_flushes_mixes_and_large_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started_in = tmp_path / "here"
    started_in.mkdir()
    monkeypatch.chdir(started_in)
    place = Place(tmp_path, 8 * MIB)
    loads = [
        Workload("randrw", 4096, 8, connections=2, read_percent=70, flush_every=4),
        Workload("read", MIB, 4),
    ]
    with Limit("limit", "C limit", replicated=True, crc=True).serve(place) as served:
        for load in loads:
            fio.parse(fio.run(fio.arguments(load, served.uri, place.size_bytes, 1)))
        fio.run(fio.verify_arguments(served.uri, place.size_bytes))
        assert first_difference(*served.copies) is None
        assert runner.alive(served)
    assert not runner.alive(served)
    assert not list(started_in.iterdir()), "fio leaves nothing where it was started"


def test_every_stage_has_a_size_in_whole_blocks() -> None:
    assert set(runner.SIZES) == set(Stage)
    assert all(size % MIB == 0 for size in runner.SIZES.values())
    assert runner.estimate_s(QUICK) > 0

"""A tally adds up what ran, and refuses what would make the sum untrue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import tests.sim.run
import tests.sim.tally
from tests.sim.run import main
from tests.sim.scenario import Outcome
from tests.sim.swarm import Totals, run_batch
from tests.sim.tally import Tally, TallyError, digest_of_sources


def test_two_sittings_are_one_swarm(tmp_path: Path) -> None:
    path = tmp_path / "swarm.json"
    whole = run_batch([4, 5, 6])
    for seeds in ([4, 5], [6]):
        tally = Tally.open(path)
        tally.begin(seeds[0])
        tally.add(run_batch(seeds), 60.0)
        tally.save()
    tally = Tally.open(path)
    assert (tally.ranges, tally.next_seed, tally.wall_s) == ([[4, 5], [6, 6]], 7, 120.0)
    assert tally.totals.coverage == whole.coverage
    assert tally.totals.visitors == whole.visitors
    assert tally.totals.acked_writes == whole.acked_writes
    assert f"3 seeds ({whole.counted} count), 0 failed" in tally.summary()


def test_runs_of_other_sources_are_not_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swarm.json"
    Tally.open(path).save()
    monkeypatch.setattr(tests.sim.tally, "digest_of_sources", lambda: "another")
    with pytest.raises(TallyError, match="other sources"):
        Tally.open(path)


def test_the_core_the_store_and_the_simulator_are_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    read_bytes = Path.read_bytes

    def noted(path: Path) -> bytes:
        read.append("/".join(path.parts[-3:]))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", noted)
    digest_of_sources()
    for each in ("core/writes.py", "store/metadata.py", "link/connection.py", "sim/cover.py"):
        assert any(path.endswith(each) for path in read), each
    assert not any(path.endswith("sim/run.py") for path in read)


def test_a_seed_is_not_counted_twice(tmp_path: Path) -> None:
    tally = Tally.open(tmp_path / "swarm.json")
    tally.begin(7)
    tally.add(Totals(seeds=3), 1.0)
    for first, last in ((9, 9), (5, 7), (1, 20), (8, None), (1, None)):
        with pytest.raises(TallyError, match="go on with 10"):
            tally.begin(first, last)
    assert tally.ranges == [[7, 9]]
    tally.begin(1, 6)
    tally.begin(10)


def test_the_seed_that_is_refused_is_one_that_ran(tmp_path: Path) -> None:
    tally = Tally.open(tmp_path / "swarm.json")
    tally.begin(7)
    tally.add(Totals(seeds=3), 1.0)
    with pytest.raises(TallyError, match="seed 7 is in"):
        tally.begin(1, 20)


def test_a_sitting_without_a_seed_takes_none(tmp_path: Path) -> None:
    path = tmp_path / "swarm.json"
    tally = Tally.open(path)
    tally.begin(7)
    assert tally.next_seed is None
    tally.begin(1, 20)
    tally.save()
    assert Tally.open(path).ranges == []


def test_a_range_that_reaches_into_a_known_one_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "swarm.json"
    tally = Tally.open(path)
    tally.begin(7)
    tally.add(Totals(seeds=3), 1.0)
    tally.save()
    with pytest.raises(SystemExit) as caught:
        main(["--tally", str(path), "--seeds", "5..8"])
    assert caught.value.code == 2
    assert Tally.open(path).ranges == [[7, 9]]


def test_new_seeds_are_those_after_all_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swarm.json"
    tally = Tally.open(path)
    for first in (100, 7):
        tally.begin(first, first + 2)
        tally.add(Totals(seeds=3), 1.0)
    tally.save()

    def one(seeds: Iterable[int], _jobs: int) -> Iterator[Totals]:
        assert next(iter(seeds)) == 103
        yield Totals(seeds=1)

    monkeypatch.setattr(tests.sim.run, "run_many", one)
    assert main(["--tally", str(path)]) == 0
    assert Tally.open(path).ranges == [[100, 102], [7, 9], [103, 103]]


def test_a_failure_stays_in_the_tally(tmp_path: Path) -> None:
    path = tmp_path / "swarm.json"
    tally = Tally.open(path)
    tally.begin(7)
    outcome = Outcome(seed=7, rule="promise", failure="a write is lost")
    tally.add(Totals(seeds=1, failures=[outcome]), 1.0)
    tally.save()
    again = Tally.open(path)
    again.begin(8)
    again.add(Totals(seeds=1), 1.0)
    again.save()
    assert "2 seeds (0 count), 1 failed" in Tally.open(path).summary()
    assert "seed 7 failed: a write is lost" in Tally.open(path).summary()


def test_what_is_no_tally_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a tally")
    with pytest.raises(SystemExit) as caught:
        main(["--tally", str(path), "--seeds", "1..1"])
    assert caught.value.code == 2
    assert path.read_text() == "not a tally"

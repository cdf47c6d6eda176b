"""A tally adds up what ran, and refuses what would make the sum untrue."""

from __future__ import annotations

import json
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import tests.sim.run
import tests.sim.tally
from tests.sim.run import main
from tests.sim.scenario import Outcome
from tests.sim.swarm import SUMMED, Totals, run_batch
from tests.sim.tally import Tally, TallyError, counted_sources, digest_of_sources

#: Where these modules come from: the sources, or a compiled tree that has them beside its modules.
ROOT = Path(__file__).resolve().parents[2]


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


def test_every_number_of_a_swarm_is_added_up_and_kept(tmp_path: Path) -> None:
    numbers = [each.name for each in fields(Totals) if isinstance(each.default, int | float)]
    assert sorted(numbers) == sorted(SUMMED)
    batch = Totals()
    for value, name in enumerate(numbers, 1):
        setattr(batch, name, value)
    path = tmp_path / "swarm.json"
    tally = Tally.open(path)
    tally.begin(1)
    for _ in range(2):
        tally.add(batch, 1.0)
    tally.save()
    kept = Tally.open(path).totals
    assert all(getattr(kept, name) == 2 * getattr(batch, name) > 0 for name in numbers)


def test_runs_of_other_sources_are_not_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swarm.json"
    Tally.open(path).save()
    monkeypatch.setattr(tests.sim.tally, "digest_of_sources", lambda: "another")
    with pytest.raises(TallyError, match="other sources"):
        Tally.open(path)


def test_the_core_the_store_and_the_simulator_are_the_sources() -> None:
    counted = {"/".join(path.parts[-3:]) for path in counted_sources().values()}
    for each in ("core/writes.py", "store/metadata.py", "link/connection.py", "core/__init__.py"):
        assert f"repl/{each}" in counted
    assert "tests/sim/cover.py" in counted
    assert not counted & {"tests/sim/run.py", "tests/sim/tally.py", "tests/sim/test_tally.py"}


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The sources of the product and the simulator, in a folder of their own, not compiled."""
    made = tmp_path / "copied"
    left_out = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "repl", made / "repl", ignore=left_out)
    shutil.copytree(ROOT / "tests" / "sim", made / "tests" / "sim", ignore=left_out)
    shutil.copy(ROOT / "tests" / "__init__.py", made / "tests")
    return made


def said_in(folder: Path, program: str) -> str:
    """What a fresh process prints that has its modules from the folder."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


SAY_DIGEST = "from tests.sim.tally import digest_of_sources; print(digest_of_sources())"


def test_the_digest_is_that_of_the_sources_whatever_is_loaded_or_compiled(copied: Path) -> None:
    assert said_in(copied, SAY_DIGEST) == digest_of_sources()


@pytest.mark.parametrize("changed", ["repl/core/__init__.py", "tests/sim/dice.py"])
def test_the_digest_changes_with_each_source(copied: Path, changed: str) -> None:
    path = copied / changed
    path.write_text(path.read_text() + "\nADDED = 1\n")
    assert said_in(copied, SAY_DIGEST) != digest_of_sources()


def test_a_module_without_a_source_is_no_gap_in_the_digest(copied: Path) -> None:
    source = copied / "repl" / "core" / "lineage.py"
    py_compile.compile(str(source), str(source.with_suffix(".pyc")))
    source.unlink()
    with pytest.raises(AssertionError, match=r"TallyError: repl\.core\.lineage has no source"):
        said_in(copied, SAY_DIGEST)


def test_all_that_a_seed_loads_is_counted(copied: Path) -> None:
    program = """
import sys
from pathlib import Path
from tests.sim.run import run_many
from tests.sim.tally import counted_sources

list(run_many([1, 9], 1))
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
ours = {name for name, file in files.items() if file and Path(file).is_relative_to(Path.cwd())}
assert len(ours) > 50
print(*sorted(ours - set(counted_sources())))
"""
    assert said_in(copied, program) == "tests.sim.run tests.sim.tally"


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


def batches(monkeypatch: pytest.MonkeyPatch, *sizes: int) -> list[Iterator[int]]:
    """Let the command line run batches of so many seeds that do nothing; return what it runs."""
    ran: list[Iterator[int]] = []

    def run(seeds: Iterable[int], _jobs: int) -> Iterator[Totals]:
        ran.append(iter(seeds))
        yield from (Totals(seeds=size) for size in sizes)

    monkeypatch.setattr(tests.sim.run, "run_many", run)
    return ran


def test_new_seeds_are_those_after_all_known_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swarm.json"
    tally = Tally.open(path)
    for first in (100, 7):
        tally.begin(first, first + 2)
        tally.add(Totals(seeds=3), 1.0)
    tally.save()
    ran = batches(monkeypatch, 1)
    assert main(["--tally", str(path)]) == 0
    assert next(ran[0]) == 103
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


@pytest.mark.parametrize("name", ["missing/swarm.json", ".", "file/swarm.json"])
def test_a_tally_that_cannot_be_kept_is_refused_before_a_seed_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    ran = batches(monkeypatch, 3)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        main(["--tally", str(tmp_path / name), "--seeds", "1..3"])
    assert (caught.value.code, ran) == (2, [])
    assert str(tmp_path / name) in capsys.readouterr().err


def test_a_sitting_that_ends_with_an_object_is_kept_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "swarm.json"
    batches(monkeypatch, 3)
    assert main(["--tally", str(path), "--seeds", "5..7", "--json"]) == 0
    assert Tally.open(path).ranges == [[5, 7]]
    assert json.loads(capsys.readouterr().out)["seeds"] == 3


def test_a_sitting_that_says_nothing_is_kept_while_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "swarm.json"

    def run(_seeds: Iterable[int], _jobs: int) -> Iterator[Totals]:
        yield Totals(seeds=3)
        assert Tally.open(path).ranges == [[5, 7]]
        yield Totals(seeds=1)

    monkeypatch.setattr(tests.sim.run, "run_many", run)
    monkeypatch.setattr(tests.sim.run, "SAYS_EVERY_S", -1.0)
    assert main(["--tally", str(path), "--seeds", "5..8", "--json"]) == 0
    assert Tally.open(path).ranges == [[5, 8]]


def test_what_is_no_tally_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a tally")
    with pytest.raises(SystemExit) as caught:
        main(["--tally", str(path), "--seeds", "1..1"])
    assert caught.value.code == 2
    assert path.read_text() == "not a tally"

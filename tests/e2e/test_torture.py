"""The torture run itself: some rounds of it always, a minute of it in `make test-all`.

`make torture DURATION=2h` goes on for as long as one likes.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest

from tests.daemon import DeadlineMissed
from tests.ledger import LedgerViolated
from tests.torture.plan import Kind, Load, RoundPlan, Strike
from tests.torture.run import Tally, main, play_round, torture
from tests.torture.scene import Scene, TortureFailed

ROUNDS = 10
LOAD = Load(16, 4, flush_every=20, fua_every=7, zero_every=0, overlapping=False)


def calm_round(*strikes: Strike) -> RoundPlan:
    return RoundPlan(1, (LOAD,), strikes, preferred=0)


@pytest.mark.timeout(900)
def test_ten_rounds_of_torture_keep_every_promise(tmp_path: Path) -> None:
    tally = torture(1, range(1, 1 + ROUNDS), float("inf"), tmp_path)
    assert tally.rounds == ROUNDS
    assert tally.acknowledged > 100 * ROUNDS
    assert tally.struck.total() >= ROUNDS
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_of_torture_keeps_every_promise(tmp_path: Path) -> None:
    tally = torture(60, itertools.count(1), time.monotonic() + 60, tmp_path)
    assert tally.rounds >= 1


def test_judge_finds_a_spoilt_block_and_a_bug_in_a_log() -> None:
    """The same bytes are spoilt in both copies, so that nothing but the book can know."""
    with Scene.make(1) as scene:
        play_round(scene, calm_round(), Tally())
        with scene.secondary.log_path.open("a") as log:
            log.write("Traceback (most recent call last):\n")
        with pytest.raises(TortureFailed, match=r"beta's log shows a bug"):
            scene.judge()
        block = max(scene.ledger.blocks_written_since(0))
        for node in scene.pair.nodes:
            with node.backing().open("r+b") as image:
                image.seek(block * scene.ledger.block_bytes)
                image.write(b"spoilt")
        with pytest.raises(LedgerViolated, match=f"block {block}: .*foreign bytes"):
            scene.judge()


def test_a_failed_round_says_how_to_repeat_it_and_keeps_the_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    strike = Strike(Kind.CUT, at_primary=True, at_s=0.0, lasts_s=0.1)

    def becomes_never_well(scene: Scene, preferred: object) -> None:
        raise DeadlineMissed("not within 0 s")

    monkeypatch.setattr("tests.torture.run.plan_round", lambda *_: calm_round(strike))
    monkeypatch.setattr(Scene, "become_well", becomes_never_well)
    with pytest.raises(DeadlineMissed):
        main(["--seed", "5", "--rounds", "1", "--keep", str(tmp_path)])
    said = capsys.readouterr().out
    assert "python -m tests.torture --seed 5 --first-round 1 --rounds 1" in said
    assert strike.kind.value in said
    kept = tmp_path / "seed-5-round-1"
    for name in ("alpha", "beta"):
        assert (kept / name / "repld.log").stat().st_size > 0
        assert list((kept / name).rglob("r0.img"))
        assert any(path.is_file() for path in (kept / name / "state").rglob("*"))

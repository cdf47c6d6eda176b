"""Every input that is kept in the repository is run again: what once failed must not fail again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.targets import CORPUS, HERE, REGRESSIONS, TARGETS

#: All of it together; it is meant to be read by people and by version control.
KEPT_BYTES_MAX = 500_000
KEPT = [(name, path) for name, target in TARGETS.items() for path in target.kept()]


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs_of_a_target_do_what_the_model_says(name: str) -> None:
    paths = TARGETS[name].kept()
    assert paths
    for path in paths:
        try:
            TARGETS[name].run(path.read_bytes())
        except Exception as error:
            error.add_note(
                f"replay it: python -m tests.fuzz --replay {path.relative_to(Path.cwd())}"
            )
            raise


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_of_a_target_do_what_the_model_says(name: str) -> None:
    seeds = TARGETS[name].seeds()
    assert seeds
    for data in seeds[:40]:
        TARGETS[name].run(data)


def test_kept_inputs_stay_small_and_belong_to_a_target() -> None:
    found = [
        path for folder in (CORPUS, REGRESSIONS) for path in folder.rglob("*") if path.is_file()
    ]
    assert sum(path.stat().st_size for path in found) <= KEPT_BYTES_MAX
    assert not {path.parent.name for path in found} - set(TARGETS), "inputs of no target"
    assert {path.suffix for path in found} <= {".bin"}, HERE

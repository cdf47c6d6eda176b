"""Every script of `tests/scripts` comes true on the core, line by line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.script import run_script

SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "scripts").glob("*.txt"))


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) > 20


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_comes_true(path: Path) -> None:
    run_script(path)

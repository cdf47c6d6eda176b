"""A live pair that other projects' clients use one after the other; copies compared after each."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon import Node
from tests.pair import Pair

TOOL_DEADLINE_S = 120.0


@pytest.fixture(scope="module")
def live_pair() -> Iterator[Pair]:
    with Pair.make() as pair:
        pair.start_in_sync(primary=pair.alpha)
        yield pair


@pytest.fixture
def export(live_pair: Pair) -> Iterator[Node]:
    """The serving node; after the test both copies must be equal and still in sync."""
    yield live_pair.alpha
    live_pair.wait_in_sync()
    live_pair.assert_copies_equal()


@pytest.fixture
def run_tool() -> Callable[..., str]:
    def run(*command: str | Path, cwd: Path | None = None) -> str:
        """Run another project's tool, which must succeed; return its standard output."""
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=TOOL_DEADLINE_S,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            check=False,
        )
        assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stderr}"
        return done.stdout

    return run

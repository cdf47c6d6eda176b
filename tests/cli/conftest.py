"""A fake daemon and a way to run `replctl` against it, for all tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from repl.cli.main import main
from tests.cli.fake_daemon import FakeDaemon


@dataclass(frozen=True)
class Result:
    """How one run of `replctl` ended."""

    exit_status: int
    out: str
    err: str

    def error(self) -> dict[str, Any]:
        """Return the error object of a `--json` run."""
        found = json.loads(self.out)["error"]
        assert isinstance(found, dict)
        return found


class Operator:
    """Runs `replctl` with the fake daemon's socket."""

    def __init__(self, socket_path: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.socket_path = socket_path
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Result:
        self._capsys.readouterr()
        exit_status = main(["--socket", self.socket_path, *arguments])
        out, err = self._capsys.readouterr()
        return Result(exit_status, out, err)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path) as opened:
        yield opened


@pytest.fixture
def replctl(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(daemon.socket_path, capsys)

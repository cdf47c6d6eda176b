"""Which build the tests meet: in `build/compiled`, all of the hot path is compiled."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from repl import build
from tests.daemon import ROOT
from tests.pair import Pair

LISTED = re.findall(r'"((?:repl|nbdserver)/[a-z_/]+)\.py"', (ROOT / "setup.py").read_text())


def expected_build() -> str:
    in_copy = ROOT.parts[-2:] == ("build", "compiled")
    return build.COMPILED if in_copy else build.INTERPRETED


def test_every_listed_module_is_of_the_expected_build() -> None:
    assert len(LISTED) > 20
    suffix = {build.COMPILED: ".so", build.INTERPRETED: ".py"}[expected_build()]
    for name in LISTED:
        spec = find_spec(name.replace("/", "."))
        assert spec is not None, f"setup.py lists {name}, which is not there"
        assert str(spec.origin).endswith(suffix), spec.origin
    assert build.kind() == expected_build()


def test_daemons_of_the_tests_run_the_expected_build() -> None:
    with Pair.make() as pair:
        pair.alpha.start()
        assert f"({expected_build()})" in pair.alpha.ctl_ok("version")


FAILS_AT_THE_LIBRARY = """#!/bin/sh
case "$*" in *__native*) echo "out of memory" >&2; exit 1;; esac
exec gcc "$@"
"""


@pytest.mark.parametrize(
    "compiler",
    ["#!/bin/sh\nexit 1\n", pytest.param(FAILS_AT_THE_LIBRARY, marks=pytest.mark.slow)],
    ids=["no compiler", "fails half way"],
)
def test_a_compiler_that_fails_leaves_an_interpreted_package(tmp_path: Path, compiler: str) -> None:
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("repl", "nbdserver"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    gcc = tmp_path / "compiler"
    gcc.write_text(compiler)
    gcc.chmod(0o755)
    environment = os.environ | {"CC": str(gcc), "REPL_COMPILE": "auto"}
    command = [sys.executable, "setup.py", "-q", "build"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "the hot path stays interpreted" in done.stderr + done.stdout
    assert list(tmp_path.rglob("*.so")) == []
    environment["REPL_COMPILE"] = "yes"
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0

"""The README's table of requirements names only tests that exist, and no row is without a proof."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nbdserver import limits
from tests.nbdserver.serving import ROOT

README = ROOT / "nbdserver" / "README.md"
FOLDERS = ("nbdserver", "interop", "node", "fuzz")
TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)`")


def rows() -> list[str]:
    """The rows of the tables whose last column is for tests."""
    found: list[str] = []
    in_table = False
    for line in README.read_text().splitlines():
        if re.fullmatch(r"\|.*\| test \|", line):
            in_table = True
        elif not line.startswith("|"):
            in_table = False
        elif in_table and not set(line) <= set("|-"):
            found.append(line)
    return found


def exists(file: str, test: str) -> bool:
    """Whether a file of that name, in one of the folders, has the test."""
    paths = [path for folder in FOLDERS if (path := ROOT / "tests" / folder / file).exists()]
    pattern = re.compile(rf"^(async )?def {test}\(", re.MULTILINE)
    return any(pattern.search(path.read_text()) for path in paths)


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.strip("| ")[:60])
def test_every_requirement_has_a_test_that_exists_or_an_honest_dash(row: str) -> None:
    _, _requirement, proof, _ = row.split("|")
    named = TEST.findall(proof)
    if proof.strip().startswith("–"):
        assert not named
        assert len(proof.split()) > 2, "a dash without its reason"
        return
    assert named, "neither a test nor a dash"
    # Nothing but tests is in the column, so that a misspelt one is noticed.
    assert not TEST.sub("", proof).strip(" ,")
    assert not [f"{file}::{test}" for file, test in named if not exists(file, test)]


def test_table_of_requirements_is_found_at_all() -> None:
    assert len(rows()) > 80


def test_every_source_file_is_in_the_list_of_files() -> None:
    text = README.read_text()
    sources = [path.name for path in (ROOT / "nbdserver").glob("*.py")]
    assert not [name for name in sources if f"`{name}`" not in text and name not in NOT_LISTED]


#: What needs no explanation beyond its own.
NOT_LISTED = {"__init__.py", "buffers.py", "errors.py"}


def test_limits_that_the_readme_names_exist() -> None:
    text = README.read_text()
    assert set(re.findall(r"`([a-z_]+_s)`", text)) <= set(limits.names())
    table = text.split("### Limits")[1].split("###")[0]
    named = set(
        re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (`.+?):", table, re.MULTILINE)))
    )
    assert named == set(limits.names()) - {"tls_proxies"}


def test_first_commands_of_the_readme_work_as_written(tmp_path: Path) -> None:
    block = README.read_text().split("```sh\n")[1].split("```")[0]
    make, serve, look = (line.split("#")[0].strip() for line in block.splitlines())
    here = look.replace("/tmp/", f"{tmp_path}/")
    subprocess.run(make, shell=True, cwd=tmp_path, check=True)
    command = serve.replace("/tmp/", f"{tmp_path}/").removeprefix("python ")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert "ready" in process.stderr.readline()
        shown = subprocess.run(here, shell=True, check=False, capture_output=True, text=True)
        process.terminate()
    assert "export-size: 1073741824 (1G)" in shown.stdout, shown.stderr
    assert process.returncode == 0

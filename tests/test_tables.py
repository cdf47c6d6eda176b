"""`scenarios.md` and `wounds.md` name only what exists, and count themselves rightly.

An id is a function or method (`core/test_writes.py::test_x`, `sim/laws.py::Laws.answered`) or a
script (`scripts/x.txt`), relative to `tests/`: a claim maps to an assertion, not to a file.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
TABLES = {"scenarios.md": 143, "wounds.md": 48}
ID = re.compile(r"`([\w./-]+\.py::[\w.]+|[\w./-]+\.txt)`")
QUOTED = re.compile(r"`([^`]*)`")
NOT_APPLICABLE, OPEN = "not applicable: ", "open: "


def rows(table: str) -> list[list[str]]:
    """Return the cells of each row below a table's head."""
    lines = [line for line in (TESTS / table).read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, and methods as Class.method, that a file defines."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{method.name}"
                for method in node.body
                if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return frozenset(names)


def exists(test_id: str) -> bool:
    path, _, name = test_id.partition("::")
    file = TESTS / path
    return file.is_file() and (not name or name in names_in(file))


@pytest.mark.parametrize("table", TABLES)
def test_every_id_that_a_table_names_exists(table: str) -> None:
    text = (TESTS / table).read_text()
    named = ID.findall(text)
    assert len(named) > TABLES[table]
    assert [test_id for test_id in named if not exists(test_id)] == []
    # What looks like an id is one: a spelling that the pattern misses would go unchecked.
    assert [word for word in QUOTED.findall(text) if "::" in word and word not in named] == []


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_its_proof_or_its_reason(table: str) -> None:
    found = rows(table)
    names = [row[0] for row in found]
    assert len(names) == len(set(names)) == TABLES[table]
    wrong = [
        row[0]
        for row in found
        if not row[1]
        or not (row[-1].startswith((NOT_APPLICABLE, OPEN)) or ID.sub("", row[-1]).strip(", ") == "")
        or not row[-1]
    ]
    assert wrong == []


@pytest.mark.parametrize("table", TABLES)
def test_a_table_counts_its_rows_rightly(table: str) -> None:
    last = [row[-1] for row in rows(table)]
    not_applicable = sum(cell.startswith(NOT_APPLICABLE) for cell in last)
    still_open = sum(cell.startswith(OPEN) for cell in last)
    covered = len(last) - not_applicable - still_open
    said = f"{covered} covered, {not_applicable} not applicable, {still_open} open."
    assert said in (TESTS / table).read_text()


def test_an_id_that_does_not_exist_is_noticed() -> None:
    assert exists("test_tables.py::exists")
    assert exists("sim/laws.py::Laws.answered")
    assert not exists("test_tables.py::test_that_was_renamed")
    assert not exists("sim/laws.py::Laws.renamed")
    assert not exists("scripts/no-such-script.txt")

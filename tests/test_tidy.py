"""The house rules that a machine can check: who imports whom, sizes, names, what is forbidden.

A rule that cannot be checked here belongs in a review; a rule that can must not need one.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from repl import errors
from tests.conftest import allowed_skips
from tests.probes import PROBES

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("repl", "nbdserver", "tests", "bench", "deploy")
PACKAGES = ("repl", "nbdserver")

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 80
TEST_NAME_WORDS_MIN = 3
FORBIDDEN_MODULE_NAMES = {"utils", "util", "helpers", "helper", "manager", "base", "common", "misc"}

#: What the pure core may import: nothing that does I/O, knows the time or draws a random number.
CORE_MAY_IMPORT = {
    "__future__",
    "bisect",
    "collections",
    "crc32c",
    "dataclasses",
    "enum",
    "itertools",
    "json",
    "struct",
    "typing",
}
#: What of `repl` itself the core may import.
CORE_MAY_IMPORT_OF_REPL = ("repl.core", "repl.errors", "repl.events")

#: package → the packages of ours that it must never import (design §3).
FORBIDDEN_ARROWS = {
    "nbdserver": ("repl",),
    "repl.cli": ("repl.node", "repl.core", "repl.store", "repl.link", "repl.control", "nbdserver"),
    "repl.store": ("repl.node", "repl.control", "repl.cli", "repl.link", "nbdserver"),
    "repl.link": ("repl.node", "repl.control", "repl.cli", "repl.store", "nbdserver"),
    "repl.control": ("repl.core", "repl.store", "repl.link", "repl.cli"),
    "repl.attach": (
        "repl.node",
        "repl.core",
        "repl.store",
        "repl.link",
        "repl.control",
        "repl.cli",
    ),
    "repl.core": ("repl.node", "repl.control", "repl.cli", "repl.store", "repl.link", "nbdserver"),
}


def python_files(*folders: str) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


ALL_FILES = python_files(*SOURCE_FOLDERS)


def shown(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of everything a file imports, inside functions too."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path.parent / "x")
    package = package.removesuffix(".x")
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            prefix = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                prefix = ".".join([*above, *([node.module] if node.module else [])])
            yield node.lineno, prefix
            # `from repl import core` imports a package through its parent.
            for alias in node.names:
                yield node.lineno, f"{prefix}.{alias.name}"


def is_under(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("package", sorted(FORBIDDEN_ARROWS))
def test_imports_follow_the_arrows_of_the_design(package: str) -> None:
    wrong = [
        f"{shown(path)}:{line} imports {name}"
        for path in python_files(package.replace(".", "/"))
        for line, name in imported_modules(path)
        for forbidden in FORBIDDEN_ARROWS[package]
        if is_under(name, forbidden)
    ]
    assert not wrong, "\n".join(wrong)


def core_may_import(name: str) -> bool:
    """Whether the core may import this name. A parent package of what it may import is harmless."""
    if not is_under(name, "repl"):
        return name.split(".")[0] in CORE_MAY_IMPORT
    return any(
        is_under(name, allowed) or is_under(allowed, name) for allowed in CORE_MAY_IMPORT_OF_REPL
    )


def test_core_imports_nothing_with_io_in_it() -> None:
    wrong = []
    for path in python_files("repl/core"):
        for line, name in imported_modules(path):
            if not core_may_import(name):
                wrong.append(f"{shown(path)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_package_folder_exists_and_is_checked() -> None:
    assert {path.name for path in (ROOT / "repl").iterdir() if (path / "__init__.py").exists()} >= {
        package.partition(".")[2] for package in FORBIDDEN_ARROWS if package.startswith("repl.")
    }
    assert len(ALL_FILES) > 20


def test_no_file_grows_beyond_the_limit() -> None:
    long = {
        shown(path): lines
        for path in ALL_FILES
        if (lines := len(path.read_text().splitlines())) > FILE_LINES_MAX
    }
    assert not long, long


def test_no_function_grows_beyond_the_limit() -> None:
    long = []
    for path in ALL_FILES:
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{shown(path)}:{node.lineno} {node.name} has {lines} lines")
    assert not long, "\n".join(long)


def test_no_module_has_a_name_that_says_nothing() -> None:
    wrong = [
        shown(path)
        for path in ALL_FILES
        if path.stem in FORBIDDEN_MODULE_NAMES or path.parent.name in FORBIDDEN_MODULE_NAMES
    ]
    assert not wrong, wrong


def test_every_source_file_says_what_it_owns() -> None:
    silent = [
        shown(path)
        for path in ALL_FILES
        if path.read_text().strip() and ast.get_docstring(ast.parse(path.read_text())) is None
    ]
    assert not silent, silent


def test_exceptions_are_never_swallowed_unexplained() -> None:
    wrong = []
    for path in ALL_FILES:
        text = path.read_text()
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text, str(path))):
            if not isinstance(node, ast.ExceptHandler):
                continue
            # The reason stands on the line itself or begins the block.
            reason = "#" in lines[node.lineno - 1] or lines[node.lineno].strip().startswith("#")
            names = (
                {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)}
                if (node.type)
                else set()
            )
            if node.type is None:
                wrong.append(f"{shown(path)}:{node.lineno} bare except")
            elif names & {"Exception", "BaseException"} and not reason:
                ends = node.body[-1]
                if not (isinstance(ends, ast.Raise) and ends.exc is None):
                    wrong.append(f"{shown(path)}:{node.lineno} a broad except without its reason")
    assert not wrong, "\n".join(wrong)


def test_every_test_is_named_as_a_claim() -> None:
    wrong = []
    for path in python_files("tests"):
        if not path.name.startswith("test_"):
            continue
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            words = node.name.split("_")
            if words[0] == "test" and len(words) - 1 < TEST_NAME_WORDS_MIN:
                wrong.append(f"{shown(path)}:{node.lineno} {node.name}")
    assert not wrong, "\n".join(wrong)


FAMILIES: list[type[errors.ReplError]] = [errors.ReplError, *errors.ReplError.__subclasses__()]


def test_every_error_code_raised_is_registered() -> None:
    unknown = []
    for path in python_files("repl"):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if not isinstance(node, ast.Call):
                continue
            for keyword in node.keywords:
                value = keyword.value
                if keyword.arg != "code" or not isinstance(value, ast.Constant):
                    continue
                if isinstance(value.value, str) and value.value not in errors.CODES:
                    unknown.append(f"{shown(path)}:{node.lineno} {value.value}")
    assert not unknown, "\n".join(unknown)


def test_every_registered_error_code_is_used() -> None:
    text = "\n".join(
        path.read_text() for path in python_files("repl") if path != ROOT / "repl/errors.py"
    )
    defaults = {family.default_code for family in FAMILIES}
    unused = [
        code
        for code in errors.CODES
        if code not in defaults and not re.search(rf"\b{code}\b", text)
    ]
    assert not unused, unused


def test_error_families_have_distinct_exit_statuses() -> None:
    statuses = [family.exit_status for family in FAMILIES]
    assert len(set(statuses)) == len(statuses)
    assert all(family.default_code in errors.CODES for family in FAMILIES)


def test_readme_shows_the_commands() -> None:
    readme = (ROOT / "README.md").read_text()
    for command in (
        "make demo",
        "make test",
        "repld --config",
        "replctl status",
        "replctl promote",
    ):
        assert command in readme, f"README.md does not show `{command}`"


def test_the_write_path_of_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    path = readme.split("**The write path in five minutes**", 1)[1].split("\n\n", 1)[0]
    stations = re.findall(r"`(\S+\.py)`(?:\s\(([^)]*)\))?", path)
    assert len(stations) >= 8
    for file, functions in stations:
        source = (ROOT / file).read_text()
        for function in re.findall(r"`(\w+)`", functions):
            assert re.search(rf"def {function}\(", source), f"{file} has no {function}"


def test_allowed_skips_name_tests_and_probes_that_exist() -> None:
    for node_id, probe in allowed_skips().items():
        path, _, name = node_id.partition("::")
        assert probe in PROBES, f"{node_id}: no probe {probe}"
        assert (ROOT / path).exists(), f"{path} does not exist"
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(), node_id


def test_nothing_generated_is_under_version_control() -> None:
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    generated = re.compile(r"(__pycache__|\.egg-info|\.pyc$|^\.venv/|^build/|\.(mypy|ruff)_cache)")
    assert not [name for name in done.stdout.splitlines() if generated.search(name)]

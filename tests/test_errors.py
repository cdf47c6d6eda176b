"""Errors keep their form: one exit status per class, registered codes, and JSON that reads back."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl import errors

REPL = Path(errors.__file__).parent
FAMILIES = [
    errors.ReplError,
    errors.UsageError,
    errors.DaemonUnreachable,
    errors.NoSuchThing,
    errors.Refused,
    errors.TimedOut,
    errors.NotConfirmed,
    errors.ConfigInvalid,
    errors.PermissionRefused,
]


def test_exit_statuses_are_those_of_the_design() -> None:
    assert [family.exit_status for family in FAMILIES] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_every_class_has_a_registered_default_code() -> None:
    assert all(family.default_code in errors.CODES for family in FAMILIES)


def test_codes_are_words_with_a_sentence() -> None:
    for code, sentence in errors.CODES.items():
        assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", code)
        assert sentence.endswith(".") and sentence[0].isupper()


def test_unregistered_code_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="NO_SUCH_CODE"):
        errors.ReplError("x", code="NO_SUCH_CODE")


def test_lines_leave_out_what_is_not_known() -> None:
    assert errors.Refused("No.", "because", "do this").lines() == (
        "No.  [PROMOTE_NO_EVIDENCE]\nWhy   because\nNext  do this"
    )
    assert errors.ReplError("No.").lines() == "No.  [UNEXPECTED]"


@given(
    st.sampled_from(FAMILIES),
    st.sampled_from(sorted(errors.CODES)),
    st.text(),
    st.text(),
    st.text(),
)
def test_json_reads_back_as_the_same_error(
    family: type[errors.ReplError], code: str, what: str, why: str, next_step: str
) -> None:
    error = family(what, why, next_step, code=code)
    read_back = errors.from_json(error.to_json())
    assert type(read_back) is family
    assert read_back.to_json() == error.to_json()


def test_unknown_code_and_status_become_unexpected() -> None:
    error = errors.from_json({"code": "FROM_THE_FUTURE", "exit_status": 77, "what": "x"})
    assert (type(error), error.code, error.what) == (errors.ReplError, "UNEXPECTED", "x")


def codes_in(tree: ast.AST) -> Iterator[str]:
    """Yield each constant that a call passes as `code=`, or first to `refused(...)`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        named = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        values += node.args[:1] if named == "refused" else []
        for value in values:
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


def test_no_source_names_an_unregistered_code() -> None:
    found = {
        (code, str(file.relative_to(REPL)))
        for file in REPL.rglob("*.py")
        for code in codes_in(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert ("CONFIG_UNREADABLE", "config_file.py") in found
    assert sorted(pair for pair in found if pair[0] and pair[0] not in errors.CODES) == []

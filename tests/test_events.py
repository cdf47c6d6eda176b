"""The registry of events: every code has its form, is told somewhere, and is documented."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from repl import events
from repl.events import EVENTS, SEVERITIES

REPL = Path(events.__file__).parent
README = REPL / "control" / "README.md"
#: Whose first argument is a code; `_gap` builds the one event that no ring ever holds.
TELLERS = {"tell", "_tell", "event"}


def codes_told(tree: ast.AST) -> Iterator[str]:
    """Yield each constant that is the first argument of a call that tells an event.

    A conditional expression or a name bound to constants nearby counts for all of them.
    """
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        named = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        if named in TELLERS:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value


def sources() -> Iterator[tuple[Path, str]]:
    for path in sorted(REPL.rglob("*.py")):
        if path != REPL / "events.py":
            yield path, path.read_text(encoding="utf-8")


def test_codes_are_words_with_a_severity_and_a_sentence() -> None:
    for code, (severity, meaning) in EVENTS.items():
        assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", code)
        assert severity in SEVERITIES
        assert meaning[0].isupper() and meaning.endswith(".")


def test_no_source_tells_an_unregistered_code() -> None:
    told = {(code, path.name) for path, text in sources() for code in codes_told(ast.parse(text))}
    assert ("PEER_SLOW", "chronicle.py") in told
    assert sorted(pair for pair in told if pair[0] not in EVENTS) == []


def test_every_registered_code_is_told_somewhere() -> None:
    text = "\n".join(text for _, text in sources())
    assert [code for code in EVENTS if f'"{code}"' not in text] == []


def test_an_unregistered_code_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="NO_SUCH_CODE"):
        events.event("NO_SUCH_CODE", "x", {})


def test_an_event_has_the_severity_of_its_code() -> None:
    note = events.event("PEER_SLOW", "beta is slow", {"peer": "beta"})
    assert note == ("warning", "beta is slow", "PEER_SLOW", {"peer": "beta"})


def test_the_table_of_the_readme_is_the_registry() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\w+) \| (.+) \|$", README.read_text(), re.MULTILINE)
    assert rows == [(code, severity, meaning) for code, (severity, meaning) in EVENTS.items()]

"""Which build of the hot path runs: compiled by mypyc (setup.py), or the interpreted sources."""

from __future__ import annotations

from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import find_spec

COMPILED = "compiled"
INTERPRETED = "interpreted"
#: All of the hot path is compiled, or nothing of it is.
_WITNESS = "repl.core.writes"


def kind() -> str:
    """Return `compiled` or `interpreted`."""
    spec = find_spec(_WITNESS)
    assert spec is not None, f"{_WITNESS} is not there"
    compiled = str(spec.origin).endswith(tuple(EXTENSION_SUFFIXES))
    return COMPILED if compiled else INTERPRETED

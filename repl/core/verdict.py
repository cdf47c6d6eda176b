"""The answer to "may this be done?": yes or no, the reason, and what to run next.

The sentence is worded once, here at the decision, and shown everywhere: log, status, JSON, error.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision with its reason. `code` is one of `repl.errors.CODES` when the answer is no."""

    ok: bool
    reason: str
    next_step: str = ""
    code: str = ""


def operator(by: str) -> str:
    """Return who gave an order, in words, from what the control API knows: "uid 0" or nothing."""
    return f"an operator ({by})" if by else "an operator"


def granted(reason: str) -> Verdict:
    """Return a yes with its reason."""
    return Verdict(True, reason)


def refused(code: str, reason: str, next_step: str = "") -> Verdict:
    """Return a no with its stable code, its reason and the way on."""
    return Verdict(False, reason, next_step, code)

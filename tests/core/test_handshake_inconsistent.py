"""Inconsistent copies in the handshake: who may bring whom up to date, and who needs a person."""

from __future__ import annotations

from dataclasses import replace

from repl.core.handshake import Action, decide
from tests.core.test_handshake import COMMON, HIGH, LOW, MINE_ID, hello, newer


def test_the_newer_copy_being_inconsistent_is_refused() -> None:
    low = replace(hello(LOW, HIGH, newer(MINE_ID, True, LOW)), inconsistent=True)
    decision = decide(low, hello(HIGH, LOW, COMMON))
    assert decision.rule == "newer-is-inconsistent"
    assert "--lose-data r0" in decision.next_step


def test_the_newer_copy_being_inconsistent_gives_way_if_it_answered_nobody() -> None:
    """Its disk failed right after its promotion: the other copy has all that was promised."""
    low = replace(hello(LOW, HIGH, newer(MINE_ID, False, LOW)), inconsistent=True)
    high = hello(HIGH, LOW, COMMON)
    assert decide(low, high).action is Action.YIELD
    assert decide(high, low).action is Action.AWAIT_YIELD


def test_two_inconsistent_copies_are_refused() -> None:
    low = replace(hello(LOW, HIGH, COMMON), inconsistent=True)
    high = replace(hello(HIGH, LOW, COMMON), inconsistent=True)
    assert decide(low, high).rule == "both-inconsistent"

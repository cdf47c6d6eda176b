"""The phase machine: its table, and the diagram that the README shows."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from repl.core import states
from repl.core.states import (
    MIRRORING,
    PHASE_TRANSITIONS,
    RECEIVING,
    ConnectionState,
    DiskState,
    Phase,
    ReplicationState,
    Role,
    check_transition,
    diagram,
)

README = Path(states.__file__).with_name("README.md")


def test_the_table_names_every_phase() -> None:
    assert set(PHASE_TRANSITIONS) == set(Phase)


def test_every_phase_but_down_ends_with_its_connection() -> None:
    assert all(Phase.DOWN in PHASE_TRANSITIONS[phase] for phase in Phase if phase is not Phase.DOWN)


def test_every_phase_is_reached_from_down() -> None:
    reached, todo = {Phase.DOWN}, [Phase.DOWN]
    while todo:
        new = PHASE_TRANSITIONS[todo.pop()] - reached
        reached |= new
        todo += new
    assert reached == set(Phase)


def test_a_copy_becomes_established_only_from_work_that_ended() -> None:
    before = {old for old, news in PHASE_TRANSITIONS.items() if Phase.ESTABLISHED in news}
    assert before <= {Phase.SOURCE, Phase.JOINING, Phase.TARGET}


@pytest.mark.parametrize(("old", "new"), list(product(Phase, Phase)))
def test_a_step_outside_the_table_is_loud(old: Phase, new: Phase) -> None:
    if new in PHASE_TRANSITIONS[old]:
        check_transition(old, new)
        return
    with pytest.raises(AssertionError):
        check_transition(old, new)


def test_no_phase_both_sends_a_copy_and_receives_one() -> None:
    assert {Phase.ESTABLISHED} == MIRRORING & RECEIVING


def test_the_public_spellings_are_those_of_the_interface() -> None:
    assert [role.value for role in Role] == ["primary", "secondary"]
    assert {state.value for state in DiskState} == {
        "diskless",
        "failed",
        "inconsistent",
        "outdated",
        "consistent",
        "up-to-date",
    }
    assert {state.value for state in ConnectionState} == {
        "disconnected",
        "connecting",
        "connected",
        "split-brain",
        "refused",
    }
    assert {state.value for state in ReplicationState} == {
        "off",
        "established",
        "settling",
        "sync-source",
        "sync-target",
        "paused",
        "verify-source",
        "verify-target",
    }


def test_the_diagram_shows_every_step_of_the_table() -> None:
    shown = set(re.findall(r"^    (\w+) --> (\w+)$", diagram(), re.MULTILINE))
    table = {
        (old.value.replace("-", "_"), new.value.replace("-", "_"))
        for old, news in PHASE_TRANSITIONS.items()
        for new in news
        if new is not Phase.DOWN
    }
    assert shown == table


def test_the_readme_shows_the_diagram_of_the_table() -> None:
    fences = re.findall(r"```mermaid\n(.*?)\n```", README.read_text(), re.DOTALL)
    assert diagram() in fences

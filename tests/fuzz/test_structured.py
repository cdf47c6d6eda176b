"""Hypothesis against the same targets and claims as `make fuzz`, a little of it in every run."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.grammar import mutated
from tests.fuzz.inputs import CHOICE_BYTES
from tests.fuzz.strategies import inputs
from tests.fuzz.targets import TARGETS

#: Each of these builds two cores; a failing example is short by its making.
SLOW = {"peer-session": 40}
ENOUGH = 200


@pytest.mark.parametrize("name", TARGETS)
def test_almost_good_streams_do_what_the_model_says(name: str) -> None:
    target = TARGETS[name]

    @settings(
        max_examples=SLOW.get(name, ENOUGH),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[each for each in Phase if name not in SLOW or each is not Phase.shrink],
    )
    @given(inputs(target.grammar()))
    def holds(data: bytes) -> None:
        target.run(data)

    holds()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(sorted(set(TARGETS) - set(SLOW))))
def test_mutations_follow_from_their_seed_and_break_no_claim(seed: int, name: str) -> None:
    target = TARGETS[name]
    seeds = target.seeds()
    begin = seeds[seed % len(seeds)]
    grammar = target.grammar()
    data = mutated(begin, grammar, random.Random(seed))
    assert data == mutated(begin, grammar, random.Random(seed))
    assert len(data) >= CHOICE_BYTES
    target.run(data)

"""Each deliberate bug of the catalogue is found by a checker, so the checkers have teeth (§9)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.mutants.catalogue import MUTANTS, SEEDS_MAX, Mutant
from tests.sim.mutants.hunt import ROOT, hunt


def _found(mutant: Mutant) -> None:
    kill = hunt(mutant)
    assert kill.rule, f"{mutant.name} got away from {kill.seeds} seeds"
    names = sorted(rule.value for rule in mutant.killed_by)
    # Anything else that breaks says nothing about the checkers.
    assert kill.rule in names, f"{mutant.name} died of {kill.rule}, not of {names}: {kill.failure}"
    assert kill.seeds <= SEEDS_MAX


@pytest.mark.parametrize(
    "mutant", [known for known in MUTANTS if known.quick], ids=lambda known: known.name
)
def test_a_deliberate_bug_is_found_quickly(mutant: Mutant) -> None:
    _found(mutant)


@pytest.mark.slow
@pytest.mark.timeout(1300)
@pytest.mark.parametrize(
    "mutant", [known for known in MUTANTS if not known.quick], ids=lambda known: known.name
)
def test_a_deliberate_bug_is_found(mutant: Mutant) -> None:
    _found(mutant)


def test_the_catalogue_is_long_enough_and_names_are_unique() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names) >= 20


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda known: known.name)
def test_a_deliberate_bug_applies_to_exactly_one_place(mutant: Mutant) -> None:
    text = Path(ROOT, mutant.file).read_text()
    mutated = mutant.apply(text)
    assert mutated != text
    compile(mutated, mutant.file, "exec")


def test_a_bug_that_does_not_apply_is_an_error() -> None:
    with pytest.raises(ValueError, match="has 0 times"):
        MUTANTS[0].apply("nothing of the kind\n")


def test_the_product_as_it_is_survives_the_hunt() -> None:
    """Without this, a checker that always cries would kill every mutant."""
    same = Mutant("none", "repl/core/volume.py", "class Volume:", "class Volume:", frozenset())
    assert not hunt(same, seeds=6).rule

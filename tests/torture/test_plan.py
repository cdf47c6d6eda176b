"""A seed means the same rounds everywhere, and every fault has its turn."""

from __future__ import annotations

from tests.torture.faults import FAULTS
from tests.torture.plan import (
    LASTS_MAX_S,
    LASTS_MIN_S,
    ONLY_FIRST,
    SPREAD_S,
    WEIGHTS,
    Kind,
    plan_round,
)

ROUNDS = range(1, 400)


def test_a_seed_and_a_number_give_one_plan() -> None:
    assert [plan_round(7, n) for n in ROUNDS] == [plan_round(7, n) for n in ROUNDS]
    assert plan_round(7, 1) != plan_round(8, 1)
    assert plan_round(7, 1) != plan_round(7, 2)


def test_every_kind_has_a_weight_and_a_fault_and_is_drawn() -> None:
    assert set(WEIGHTS) == set(FAULTS) == set(Kind)
    drawn = {strike.kind for number in ROUNDS for strike in plan_round(1, number).strikes}
    assert drawn == set(Kind)


def test_an_operator_vouches_only_as_the_first_fault_of_a_round() -> None:
    for number in ROUNDS:
        later = plan_round(3, number).strikes[1:]
        assert not [strike for strike in later if strike.kind in ONLY_FIRST]


def test_strikes_come_in_order_and_within_their_bounds() -> None:
    for number in ROUNDS:
        strikes = plan_round(5, number).strikes
        times = [strike.at_s for strike in strikes]
        assert times == sorted(times) and times[0] == 0.0 and times[-1] <= SPREAD_S
        assert all(LASTS_MIN_S <= strike.lasts_s <= LASTS_MAX_S for strike in strikes)


def test_a_fault_that_the_machine_cannot_make_is_never_planned() -> None:
    possible = frozenset(Kind) - {Kind.FILL_DISK}
    for number in ROUNDS:
        assert {strike.kind for strike in plan_round(1, number, possible).strikes} <= possible

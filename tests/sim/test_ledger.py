"""The ledger accepts what a client must accept and nothing else."""

from __future__ import annotations

import pytest

from tests.sim.ledger import Ledger, Op, OpKind, Violation, payload_of

BOTH = {"alpha", "beta"}


def _write(ledger: Ledger, number: int) -> Op:
    op = Op(number, OpKind.WRITE, 0, 512, False)
    ledger.submitted(op)
    return op


def _allows(ledger: Ledger, number: int) -> bool:
    found = payload_of(number, 0, 512) if number else bytes(512)
    try:
        ledger.check(found, "test")
    except Violation:
        return False
    return True


def test_acknowledged_write_must_be_read() -> None:
    ledger = Ledger(1024)
    ledger.answered(_write(ledger, 1), BOTH)
    assert _allows(ledger, 1) and not _allows(ledger, 0) and not _allows(ledger, 2)


def test_write_in_flight_may_be_read_or_not() -> None:
    ledger = Ledger(1024)
    ledger.answered(_write(ledger, 1), BOTH)
    _write(ledger, 2)
    assert _allows(ledger, 1) and _allows(ledger, 2) and not _allows(ledger, 0)


def test_abandoned_write_may_not_return_after_a_later_one() -> None:
    ledger = Ledger(1024)
    abandoned = _write(ledger, 1)
    ledger.given_up(abandoned)
    assert _allows(ledger, 0) and _allows(ledger, 1)
    ledger.answered(_write(ledger, 2), BOTH)
    assert _allows(ledger, 2) and not _allows(ledger, 1)


def test_one_power_loss_takes_no_acknowledged_write_from_two_nodes() -> None:
    ledger = Ledger(1024)
    ledger.answered(_write(ledger, 1), BOTH)
    ledger.power_lost("alpha")
    assert not _allows(ledger, 0)
    ledger.power_lost("beta")
    assert _allows(ledger, 0) and _allows(ledger, 1)


def test_flushed_write_survives_every_power_loss() -> None:
    ledger = Ledger(1024)
    ledger.answered(_write(ledger, 1), BOTH)
    flush = Op(2, OpKind.FLUSH, 0, 0, False)
    ledger.submitted(flush)
    ledger.answered(flush, BOTH)
    ledger.power_lost("alpha")
    ledger.power_lost("beta")
    assert not _allows(ledger, 0)


def test_second_answer_is_a_violation() -> None:
    ledger = Ledger(1024)
    op = _write(ledger, 1)
    ledger.answered(op, BOTH)
    with pytest.raises(Violation):
        ledger.answered(op, BOTH)

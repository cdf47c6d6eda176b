"""The ledger accepts what a client must accept and nothing else."""

from __future__ import annotations

import pytest

from tests.sim.ledger import Ledger, Op, OpKind, payload_of
from tests.sim.violation import Violation

BOTH = {"alpha", "beta"}
ALPHA = {"alpha"}
SIZE_BYTES = 1024


def _write(ledger: Ledger, number: int) -> Op:
    op = Op(number, OpKind.WRITE, 0, 512, False)
    ledger.submitted(op)
    return op


def _flush(ledger: Ledger, number: int, holders: set[str]) -> None:
    flush = Op(number, OpKind.FLUSH, 0, 0, False)
    ledger.submitted(flush)
    ledger.answered(flush, holders)


def _allows(ledger: Ledger, number: int, *, durable: bool = False) -> bool:
    found = payload_of(number, 0, 512) if number else bytes(512)
    try:
        ledger.check(found, "test", durable=durable)
    except Violation:
        return False
    return True


def _image(number: int) -> bytes:
    return payload_of(number, 0, 512) + bytes(512)


def test_acknowledged_write_must_be_read() -> None:
    ledger = Ledger(SIZE_BYTES)
    ledger.answered(_write(ledger, 1), BOTH)
    assert _allows(ledger, 1) and not _allows(ledger, 0) and not _allows(ledger, 2)


def test_write_in_flight_may_be_read_or_not() -> None:
    ledger = Ledger(SIZE_BYTES)
    ledger.answered(_write(ledger, 1), BOTH)
    _write(ledger, 2)
    assert _allows(ledger, 1) and _allows(ledger, 2) and not _allows(ledger, 0)


def test_abandoned_write_may_not_return_after_a_later_one() -> None:
    ledger = Ledger(SIZE_BYTES)
    abandoned = _write(ledger, 1)
    ledger.given_up(abandoned)
    assert _allows(ledger, 0) and _allows(ledger, 1)
    ledger.answered(_write(ledger, 2), BOTH)
    assert _allows(ledger, 2) and not _allows(ledger, 1)


def test_one_power_loss_takes_no_acknowledged_write_from_two_nodes() -> None:
    ledger = Ledger(SIZE_BYTES)
    ledger.answered(_write(ledger, 1), BOTH)
    ledger.power_lost("alpha")
    assert not _allows(ledger, 0)
    ledger.power_lost("beta")
    assert _allows(ledger, 0) and _allows(ledger, 1)


def test_flushed_write_survives_every_power_loss() -> None:
    ledger = Ledger(SIZE_BYTES)
    ledger.answered(_write(ledger, 1), BOTH)
    _flush(ledger, 2, BOTH)
    ledger.power_lost("alpha")
    ledger.power_lost("beta")
    assert not _allows(ledger, 0) and not _allows(ledger, 0, durable=True)


def test_what_only_one_node_made_durable_goes_with_its_copy() -> None:
    ledger = Ledger(SIZE_BYTES)
    ledger.answered(_write(ledger, 1), BOTH)
    ledger.went_alone("alpha")
    ledger.power_lost("alpha")
    ledger.power_lost("beta")
    assert not _allows(ledger, 0)
    ledger.copy_lost("alpha")
    assert _allows(ledger, 0)


def test_what_is_not_flushed_need_not_be_on_stable_storage() -> None:
    ledger = Ledger(SIZE_BYTES)
    ledger.answered(_write(ledger, 1), BOTH)
    assert not _allows(ledger, 0) and _allows(ledger, 0, durable=True)


def test_second_answer_is_a_violation() -> None:
    ledger = Ledger(SIZE_BYTES)
    op = _write(ledger, 1)
    ledger.answered(op, BOTH)
    with pytest.raises(Violation):
        ledger.answered(op, BOTH)


def test_a_quiet_moment_settles_what_every_sector_holds() -> None:
    ledger = Ledger(SIZE_BYTES)
    _write(ledger, 1).ended = 1
    ledger.narrow(_image(1))
    assert _allows(ledger, 1) and not _allows(ledger, 0)


# Lines of copies.


def test_a_line_that_acknowledged_nothing_apart_may_be_overwritten() -> None:
    ledger = Ledger(SIZE_BYTES)
    ledger.answered(_write(ledger, 1), BOTH)
    line = ledger.fork("beta", _image(1), lacks=False)
    assert ledger.gives_up(line) and line.gives_up(ledger)
    assert _allows(line, 1) and not _allows(line, 0)


def test_a_line_that_acknowledged_something_apart_must_be_kept() -> None:
    ledger = Ledger(SIZE_BYTES)
    line = ledger.fork("beta", _image(0), lacks=False)
    ledger.answered(_write(ledger, 1), ALPHA)
    line.answered(_write(line, 2), {"beta"})
    assert not ledger.gives_up(line) and not line.gives_up(ledger)
    older = line.fork("beta", _image(2), lacks=False)
    assert not older.gives_up(ledger)


def test_what_the_promoted_copy_holds_too_is_not_apart() -> None:
    ledger = Ledger(SIZE_BYTES)
    on_its_way = _write(ledger, 1)
    line = ledger.fork("beta", _image(1), lacks=False)
    ledger.answered(on_its_way, BOTH)
    assert ledger.gives_up(line)


def test_what_a_wrong_word_left_behind_must_be_kept() -> None:
    ledger = Ledger(SIZE_BYTES)
    ledger.answered(_write(ledger, 1), ALPHA)
    assert not ledger.gives_up(ledger.fork("beta", _image(0), lacks=True))
    assert ledger.gives_up(ledger.fork("beta", _image(0), lacks=False))

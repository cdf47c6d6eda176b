"""The judge itself is judged: what it must accept and what it must catch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ledger import INITIAL, Ledger, LedgerViolated


def accepts(ledger: Ledger, version: int) -> bool:
    """Whether every block may hold this version, without settling on it."""
    return not ledger.judge(lambda number: ledger.content(number, version), settle=False)


def book(blocks: int = 8) -> Ledger:
    return Ledger(blocks, seed=7)


def test_untouched_blocks_must_keep_their_first_content() -> None:
    ledger = book()
    assert ledger.judge(lambda number: bytes(4096)) == []
    (violation,) = ledger.judge(lambda number: b"\1" * 4096 if number == 3 else bytes(4096))
    assert violation.block == 3


def test_acknowledged_version_alone_is_legal() -> None:
    ledger = book(1)
    version = ledger.begin(0)
    ledger.acknowledge(version)
    assert ledger.judge(lambda number: ledger.content(number, version)) == []
    (violation,) = ledger.judge(lambda number: ledger.content(number, INITIAL))
    assert violation.found == "zeroes"


def test_open_write_is_legal_beside_the_acknowledged_one() -> None:
    ledger = book(1)
    first = ledger.begin(0)
    ledger.acknowledge(first)
    second = ledger.begin(0)
    ledger.leave_open(second)
    assert accepts(ledger, first)
    assert accepts(ledger, second)
    assert not accepts(ledger, INITIAL)


def test_open_write_may_not_appear_after_a_later_one_was_acknowledged() -> None:
    ledger = book(1)
    abandoned = ledger.begin(0)
    ledger.leave_open(abandoned)
    resent = ledger.begin(0)
    ledger.acknowledge(resent)
    (violation,) = ledger.judge(lambda number: ledger.content(number, abandoned))
    assert violation.found == f"version {abandoned}"
    assert violation.legal == (resent,)


def test_two_writes_in_flight_together_may_end_in_either_order() -> None:
    ledger = book(1)
    one, two = ledger.begin(0), ledger.begin(0)
    ledger.acknowledge(two)
    ledger.acknowledge(one)
    assert accepts(ledger, one)
    assert accepts(ledger, two)
    assert not accepts(ledger, INITIAL)


def test_what_was_read_once_may_not_change_without_a_write() -> None:
    ledger = book(1)
    version = ledger.begin(0)
    ledger.leave_open(version)
    assert ledger.judge(lambda number: ledger.content(number, version)) == []
    (violation,) = ledger.judge(lambda number: bytes(4096))
    assert violation.legal == (version,)


def test_misplaced_torn_and_foreign_blocks_are_named() -> None:
    ledger = book(4)
    version = ledger.begin(0, 4)
    payload = bytes(ledger.payload(version))
    ledger.acknowledge(version)
    good = [payload[at : at + 4096] for at in range(0, len(payload), 4096)]
    bad = [good[0], good[0], good[2][:512] + bytes(3584), b"\xee" * 4096]
    found = [violation.found for violation in ledger.judge(lambda number: bad[number])]
    assert found == [
        f"block 0's bytes, version {version}",
        f"a mixture that begins as version {version}",
        "foreign bytes that begin " + "ee" * 16,
    ]


def test_zeroes_are_a_version_like_any_other() -> None:
    ledger = book(1)
    written = ledger.begin(0)
    ledger.acknowledge(written)
    zeroed = ledger.begin(0, zeroes=True)
    assert bytes(ledger.payload(zeroed)) == bytes(4096)
    ledger.acknowledge(zeroed)
    assert ledger.judge(lambda number: bytes(4096), settle=False) == []
    with pytest.raises(LedgerViolated, match="holds version 1"):
        ledger.judge_or_raise(lambda number: ledger.content(number, written), "the copy")


def test_blocks_written_since_a_mark_bound_what_a_copy_lacks() -> None:
    ledger = book(8)
    ledger.acknowledge(ledger.begin(0, 2))
    mark = ledger.last_version
    ledger.acknowledge(ledger.begin(1, 2))
    ledger.leave_open(ledger.begin(5))
    assert ledger.blocks_written_since(mark) == {1, 2, 5}


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["ack", "open, done", "open, lost"]))),
)
def test_faithful_disk_is_never_accused(steps: list[tuple[int, str]]) -> None:
    ledger = book(4)
    disk = {number: bytes(4096) for number in range(4)}
    for number, end in steps:
        version = ledger.begin(number)
        if end != "open, lost":
            disk[number] = bytes(ledger.payload(version))
        if end == "ack":
            ledger.acknowledge(version)
        else:
            ledger.leave_open(version)
    assert ledger.judge(disk.__getitem__) == []


@given(st.data())
def test_disk_that_loses_the_last_acknowledged_write_is_caught(data: st.DataObject) -> None:
    ledger = book(4)
    disk = {number: bytes(4096) for number in range(4)}
    for number in data.draw(st.lists(st.integers(0, 3), max_size=10)):
        version = ledger.begin(number)
        disk[number] = bytes(ledger.payload(version))
        ledger.acknowledge(version)
    lost = data.draw(st.integers(0, 3))
    ledger.acknowledge(ledger.begin(lost))
    assert [violation.block for violation in ledger.judge(disk.__getitem__)] == [lost]


def test_a_twin_shares_the_past_and_tells_later_writes_apart() -> None:
    ledger = book(2)
    before = ledger.begin(0)
    ledger.acknowledge(before)
    twin = ledger.twin()
    mine, theirs = ledger.begin(1), twin.begin(1)
    ledger.acknowledge(mine)
    twin.acknowledge(theirs)
    assert ledger.content(0, before) == twin.content(0, before)
    assert ledger.content(1, mine) != twin.content(1, theirs)
    shown = {0: before, 1: theirs}
    assert twin.judge(lambda number: twin.content(number, shown[number])) == []
    (violation,) = ledger.judge(lambda number: ledger.content(number, shown[number]))
    assert violation.block == 1

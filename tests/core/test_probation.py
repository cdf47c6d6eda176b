"""A peer that drops right after joining waits before its next join, longer each time, then not."""

from __future__ import annotations

from repl.core.probation import JOIN_PROBATION_S, JOIN_WAIT_S_MAX, Probation


def test_a_peer_that_never_joined_waits_for_nothing() -> None:
    probation = Probation(5.0)
    assert probation.over(5.0)
    probation.dropped(6.0)
    assert probation.over(6.0)


def test_each_hasty_loss_doubles_the_wait_up_to_its_maximum() -> None:
    probation, now_s, waits = Probation(0.0), 0.0, []
    for _ in range(7):
        probation.joined(now_s)
        probation.dropped(now_s + 1)
        wait_s = 0.0
        while not probation.over(now_s + 1 + wait_s):
            wait_s += 0.5
        waits.append(wait_s)
        now_s += 1 + wait_s
    assert waits == [1.0, 2.0, 4.0, 8.0, JOIN_WAIT_S_MAX, JOIN_WAIT_S_MAX, JOIN_WAIT_S_MAX]


def test_a_peer_that_stayed_for_long_is_forgiven() -> None:
    probation = Probation(0.0)
    probation.joined(0.0)
    probation.dropped(1.0)
    probation.joined(2.0)
    probation.dropped(2.0 + JOIN_PROBATION_S)
    assert probation.over(2.0 + JOIN_PROBATION_S)

"""How much may wait for a link: what it takes in two seconds, within bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repl.link.drain import UNSENT_BYTES_MAX, UNSENT_BYTES_MIN, UNSENT_S_MAX, Drain

MIB = 1 << 20


def test_a_link_that_keeps_up_is_given_the_most_soon() -> None:
    drain = Drain()
    for tick in range(5):
        drain.look(tick * 0.2, tick * MIB, 0)
    assert drain.unsent_bytes_max == UNSENT_BYTES_MAX


def test_a_slow_link_is_given_the_least() -> None:
    drain = Drain()
    for tick in range(1, 4):
        drain.look(tick * 0.2, tick * 200_000, 3 * MIB)
    assert drain.unsent_bytes_max == UNSENT_BYTES_MIN


def test_what_waits_takes_two_seconds_on_a_link_between() -> None:
    drain = Drain()
    rate_bytes_per_s = 10 * MIB
    for tick in range(1, 4):
        drain.look(float(tick), tick * rate_bytes_per_s, MIB)
    assert drain.unsent_bytes_max == rate_bytes_per_s * UNSENT_S_MAX


def test_a_burst_right_after_a_rest_says_nothing_of_the_link() -> None:
    drain = Drain()
    for tick in range(5):
        drain.look(tick * 0.2, 0, 0)
    drain.look(1.2, 1000, MIB)
    assert drain.unsent_bytes_max == UNSENT_BYTES_MAX


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1 << 32), st.integers(0, 1 << 27))))
def test_the_bound_stays_within_its_limits(looks: list[tuple[float, int, int]]) -> None:
    drain, now_s, sent_bytes = Drain(), 0.0, 0
    for elapsed_s, more, unsent_bytes in looks:
        now_s, sent_bytes = now_s + elapsed_s, sent_bytes + more
        drain.look(now_s, sent_bytes, unsent_bytes)
        assert UNSENT_BYTES_MIN <= drain.unsent_bytes_max <= UNSENT_BYTES_MAX

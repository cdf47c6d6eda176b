"""The delaying link: order, delay, end."""

from __future__ import annotations

import socket
import threading

from hypothesis import given
from hypothesis import strategies as st

from bench.delay import DelayLine, pump


def test_bytes_arrive_after_the_delay_and_not_before() -> None:
    line = DelayLine(5.0)
    line.push(b"one", 100.0)
    line.push(b"two", 101.0)
    assert line.next_s == 105.0
    assert line.arrived(104.9) == b""
    assert line.arrived(105.0) == b"one"
    assert line.arrived(200.0) == b"two"
    assert line.next_s is None


def test_end_comes_after_everything_that_was_sent() -> None:
    line = DelayLine(5.0)
    line.push(b"last", 100.0)
    line.end(100.0)
    assert line.ended
    assert not line.over(105.0)
    assert line.arrived(105.0) == b"last"
    assert line.over(105.0)


@given(st.lists(st.tuples(st.binary(max_size=9), st.floats(0.0, 3.0)), max_size=20))
def test_nothing_is_lost_or_reordered(sent: list[tuple[bytes, float]]) -> None:
    line, now_s, got = DelayLine(1.0), 0.0, b""
    for data, pause_s in sent:
        now_s += pause_s
        got += line.arrived(now_s)
        line.push(data, now_s)
    assert got + line.arrived(now_s + 1.0) == b"".join(data for data, _ in sent)


def test_pump_carries_bytes_both_ways_until_one_side_closes() -> None:
    dialer, inner_dialer = socket.socketpair()
    target, inner_target = socket.socketpair()
    thread = threading.Thread(target=pump, args=(inner_dialer, inner_target, 0.001))
    with dialer, inner_dialer, target, inner_target:
        thread.start()
        dialer.sendall(b"there")
        assert target.recv(100) == b"there"
        target.sendall(b"back")
        assert dialer.recv(100) == b"back"
        dialer.close()
        thread.join(30.0)
        assert not thread.is_alive()

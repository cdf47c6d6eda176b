"""Who waits for a long operation, and in which order they go on."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from nbdserver.overlaps import Overlaps
from nbdserver.protocol import NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES
from nbdserver.requests import Request


def asked(offset: int, length: int, command: int = NBD_CMD_READ) -> Request:
    return Request(None, command, 0, bytes(8), offset, length)


def zeroing(offset: int, length: int) -> Request:
    return asked(offset, length, NBD_CMD_WRITE_ZEROES)


def test_only_what_touches_the_range_waits() -> None:
    overlaps = Overlaps()
    assert not overlaps.busy
    long = zeroing(100, 100)
    overlaps.begin(long)
    assert overlaps.busy
    for offset, length in ((0, 100), (200, 1), (100, 0)):
        assert not overlaps.must_wait(asked(offset, length))
    waiting = [asked(0, 101), asked(199, 1), asked(150, 1), asked(0, 1000)]
    assert all(overlaps.must_wait(each) for each in waiting)
    assert overlaps.end(long) == waiting
    assert not overlaps.busy


def test_what_touches_a_waiting_request_waits_behind_it() -> None:
    overlaps = Overlaps()
    long = zeroing(100, 100)
    overlaps.begin(long)
    first, second = asked(150, 100), asked(240, 10)
    assert overlaps.must_wait(first)
    assert overlaps.must_wait(second)
    assert overlaps.end(long) == [first, second]


def test_part_that_is_done_lets_only_its_requests_go() -> None:
    overlaps = Overlaps()
    long = zeroing(0, 1000)
    overlaps.begin(long)
    early, late, behind_late = asked(0, 10), asked(900, 200), asked(1050, 10)
    for each in (early, late, behind_late):
        assert overlaps.must_wait(each)
    assert overlaps.advance(long, 500) == [early]
    assert not overlaps.must_wait(asked(0, 10))
    assert overlaps.end(long) == [late, behind_late]


def test_zeroing_that_waited_works_from_the_moment_it_is_given_out() -> None:
    overlaps = Overlaps()
    long, next_one, behind_both = zeroing(0, 10), zeroing(5, 10), asked(0, 12)
    overlaps.begin(long)
    assert overlaps.must_wait(next_one)
    assert overlaps.must_wait(behind_both)
    assert overlaps.end(long) == [next_one]
    assert overlaps.busy
    assert overlaps.must_wait(asked(14, 1))
    overlaps.begin(next_one)
    assert overlaps.advance(next_one, 12) == [behind_both]
    assert len(overlaps.end(next_one)) == 1
    assert not overlaps.busy


def test_flush_never_waits() -> None:
    overlaps = Overlaps()
    overlaps.begin(zeroing(0, 1 << 40))
    assert not overlaps.must_wait(asked(0, 0))


class Plain:
    """The same rules, by looking at everything each time."""

    def __init__(self) -> None:
        self.working: dict[Request, int] = {}
        self.waiting: list[Request] = []

    def must_wait(self, request: Request) -> bool:
        if self._waits(request, self.waiting):
            self.waiting.append(request)
            return True
        return False

    def advance(self, request: Request, position: int) -> list[Request]:
        self.working[request] = position
        return self._given_out()

    def end(self, request: Request) -> list[Request]:
        del self.working[request]
        return self._given_out()

    def _given_out(self) -> list[Request]:
        given_out: list[Request] = []
        remaining: list[Request] = []
        for each in self.waiting:
            if self._waits(each, remaining):
                remaining.append(each)
                continue
            given_out.append(each)
            if each.command != NBD_CMD_READ:
                self.working[each] = each.offset
        self.waiting = remaining
        return given_out

    def _waits(self, request: Request, earlier: Sequence[Request]) -> bool:
        ranges = [(start, each.offset + each.length) for each, start in self.working.items()]
        ranges += [(each.offset, each.offset + each.length) for each in earlier]
        end = request.offset + request.length
        return any(
            start < end and request.offset < other_end and start < other_end
            for start, other_end in ranges
        )


COMMANDS = st.sampled_from((NBD_CMD_READ, NBD_CMD_WRITE_ZEROES, NBD_CMD_TRIM))
ARRIVALS = st.builds(asked, st.integers(0, 40), st.integers(1, 20), COMMANDS)
#: Which of those that work goes on, and by how much; so far that it is done if by nothing.
PROGRESS = st.tuples(st.integers(0, 50), st.integers(0, 12))


@given(st.lists(ARRIVALS | PROGRESS, max_size=60))
def test_any_history_is_that_of_the_plain_rules(history: list[Request | tuple[int, int]]) -> None:
    overlaps, plain = Overlaps(), Plain()
    endless = [(0, 0)] * len(history)
    for event in history + endless:
        assert overlaps.busy == bool(plain.working)
        if isinstance(event, Request):
            waits = plain.must_wait(event)
            assert (overlaps.busy and overlaps.must_wait(event)) == waits
            if not waits and event.command != NBD_CMD_READ:
                plain.working[event] = event.offset
                overlaps.begin(event)
        elif plain.working:
            which, step = event
            each = list(plain.working)[which % len(plain.working)]
            position = plain.working[each] + step
            if step and position <= each.offset + each.length:
                found, expected = overlaps.advance(each, position), plain.advance(each, position)
            else:
                found, expected = overlaps.end(each), plain.end(each)
            assert list(found) == expected
            for one in expected:
                if one.command != NBD_CMD_READ:
                    overlaps.begin(one)
    assert not plain.waiting and not overlaps.busy
    assert not overlaps.must_wait(asked(0, 1 << 20))

"""Who waits for a long operation, and in which order they go on."""

from __future__ import annotations

import random

from nbdserver.overlaps import Overlaps
from nbdserver.protocol import NBD_CMD_READ, NBD_CMD_WRITE_ZEROES
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


def test_part_that_is_done_lets_its_requests_go() -> None:
    overlaps = Overlaps()
    long = zeroing(0, 1000)
    overlaps.begin(long)
    early, late = asked(0, 10), asked(900, 10)
    assert overlaps.must_wait(early)
    assert overlaps.must_wait(late)
    assert overlaps.advance(long, 500) == [early, late]
    assert not overlaps.must_wait(early)
    assert overlaps.must_wait(late)
    assert overlaps.end(long) == [late]


def test_flush_never_waits() -> None:
    overlaps = Overlaps()
    overlaps.begin(zeroing(0, 1 << 40))
    assert not overlaps.must_wait(asked(0, 0))


def test_any_history_keeps_the_order_of_what_overlaps() -> None:
    chance = random.Random(5)
    for _ in range(300):
        overlaps = Overlaps()
        arrived: list[Request] = []
        done: list[Request] = []
        working: list[Request] = []
        pending: list[Request] = []

        def offer(
            requests: list[Request],
            overlaps: Overlaps = overlaps,
            done: list[Request] = done,
            working: list[Request] = working,
        ) -> None:
            for each in requests:
                if overlaps.busy and overlaps.must_wait(each):
                    continue
                if each.command == NBD_CMD_WRITE_ZEROES:
                    overlaps.begin(each)
                    working.append(each)
                else:
                    done.append(each)

        for _ in range(30):
            if working and chance.random() < 0.4:
                ended = working.pop(chance.randrange(len(working)))
                done.append(ended)
                offer(list(overlaps.end(ended)))
            else:
                command = chance.choice((NBD_CMD_READ, NBD_CMD_WRITE_ZEROES))
                request = asked(chance.randrange(20), chance.randrange(1, 8), command)
                arrived.append(request)
                offer([request])
        while working:
            ended = working.pop()
            done.append(ended)
            offer(list(overlaps.end(ended)))
        assert not pending
        assert len(done) == len(arrived)
        place = {id(each): number for number, each in enumerate(done)}
        for index, later in enumerate(arrived):
            for earlier in arrived[:index]:
                overlap = (
                    earlier.offset < later.offset + later.length
                    and later.offset < earlier.offset + earlier.length
                )
                if overlap and NBD_CMD_WRITE_ZEROES in (earlier.command, later.command):
                    waits = earlier.command == NBD_CMD_WRITE_ZEROES
                    # A read that came before a zeroing was done at once.
                    assert not waits or place[id(earlier)] < place[id(later)]

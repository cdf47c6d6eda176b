"""A new client begins only when nobody who left can act any more, and is never held up for long."""

from __future__ import annotations

import asyncio
import socket

import pytest

from nbdserver.connection import Connection, State
from nbdserver.limits import Limits
from nbdserver.succession import LOOK_S, Succession
from tests.nbdserver.conftest import Run
from tests.nbdserver.held_backend import MIB, Served
from tests.nbdserver.wire import eventually, read, write


class House:
    """Connections that enter one after the other."""

    def __init__(self, leave_s: float = 20.0) -> None:
        self.gone: list[Connection] = []
        self.succession = Succession(asyncio.get_running_loop(), leave_s, self.gone.append)

    def enters(self, limits: Limits | None = None, *, tcp: bool = False) -> Served:
        served = Served(limits, tcp=tcp, start=False)
        self.succession.begin(served.connection)
        return served

    def assert_empty(self, *everybody: Served) -> None:
        assert not self.succession.connections
        assert len(self.gone) == len(everybody)
        for each in everybody:
            each.client.close()


async def works(served: Served) -> None:
    await served.client.send(write(0, b"x", cookie=9))
    await served.held(1)
    served.backend.answer()
    assert await served.client.reply() == (0, 9)


def test_first_client_begins_at_once(run: Run) -> None:
    async def scenario() -> None:
        house = House()
        first, second = house.enters(), house.enters()
        await works(first)
        await works(second)
        first.connection.abandon()
        second.connection.abandon()
        house.assert_empty(first, second)

    run(scenario())


@pytest.mark.parametrize("how", ["abandoned", "closed", "half-closed", "reset"])
def test_new_client_waits_for_the_requests_of_one_who_left(run: Run, how: str) -> None:
    async def scenario() -> None:
        house = House()
        old = house.enters(tcp=how == "reset")
        await old.client.send(write(0, b"old") * 3)
        await old.held(3)
        if how == "abandoned":
            old.connection.abandon()
        elif how == "closed":
            old.client.close()
        elif how == "half-closed":
            old.client.sock.shutdown(socket.SHUT_WR)
        else:
            old.client.reset()
        new = house.enters()
        await new.client.send(write(0, b"new", cookie=1))
        cleared = asyncio.ensure_future(house.succession.clear())
        await eventually(lambda: old.connection.state is not State.OPEN, "its end is read")
        assert (new.backend.held, cleared.done()) == ([], False)
        old.backend.answer(2)
        assert new.backend.held == []
        old.backend.answer()
        await new.held(1)
        await cleared
        new.backend.answer()
        assert await new.client.reply() == (0, 1)
        new.connection.abandon()
        house.assert_empty(old, new)

    run(scenario())


def test_requests_that_are_not_read_yet_are_waited_for_too(run: Run) -> None:
    async def scenario() -> None:
        house = House()
        old = house.enters(Limits(in_flight_requests=1))
        await old.client.send(b"".join(write(0, b"old", cookie=i) for i in range(3)))
        await old.held(1)
        old.client.sock.shutdown(socket.SHUT_WR)
        new = house.enters()
        await new.client.send(write(0, b"new"))
        for _ in range(3):
            await old.held(1)
            assert new.backend.held == []
            old.backend.answer()
        await new.held(1)
        new.backend.answer()
        new.connection.abandon()
        house.assert_empty(old, new)

    run(scenario())


def test_client_who_stays_holds_nobody_up(run: Run) -> None:
    async def scenario() -> None:
        house = House()
        stays = house.enters()
        await stays.client.send(write(0, b"x"))
        await stays.held(1)
        new = house.enters()
        await works(new)
        stays.backend.answer()
        stays.connection.abandon()
        new.connection.abandon()
        house.assert_empty(stays, new)

    run(scenario())


def test_client_who_left_and_takes_nothing_is_not_waited_for_longer_than_allowed(run: Run) -> None:
    async def scenario() -> None:
        house = House(leave_s=0.1)
        limits = Limits(unsent_bytes=1)
        slow = house.enters(limits)
        slow.backend.answers_at_once = True
        await slow.client.send(read(0, 8 * MIB) * 20)
        await eventually(lambda: slow.connection.unsent_bytes > MIB, "it takes nothing")
        slow.client.sock.shutdown(socket.SHUT_WR)
        new = house.enters()
        assert slow.connection.may_still_act
        await works(new)
        assert slow.connection.state is State.CLOSED
        # What it asked for and had not been served was dropped, not done later.
        assert sum(slow.backend.batches) < 20
        new.connection.abandon()
        house.assert_empty(slow, new)

    run(scenario())


def test_leaving_client_with_nothing_but_answers_to_take_is_not_waited_for(run: Run) -> None:
    async def scenario() -> None:
        house = House()
        slow = house.enters()
        slow.backend.answers_at_once = True
        await slow.client.send(read(0, 8 * MIB))
        await eventually(lambda: slow.connection.unsent_bytes > MIB, "it takes nothing")
        slow.client.sock.shutdown(socket.SHUT_WR)
        await eventually(lambda: slow.connection.state is State.FINISHING, "its end is read")
        new = house.enters()
        await works(new)
        assert len(await slow.client.read_to_end()) == 8 * MIB + 16
        new.connection.abandon()
        house.assert_empty(slow, new)

    run(scenario())


def test_client_who_leaves_while_waiting_is_never_served(run: Run) -> None:
    async def scenario() -> None:
        house = House()
        old = house.enters()
        await old.client.send(write(0, b"old"))
        await old.held(1)
        old.connection.abandon()
        waiting = house.enters()
        waiting.connection.abandon("the volume is not served here any more")
        old.backend.answer()
        assert waiting.backend.batches == []
        house.assert_empty(old, waiting)

    run(scenario())


async def fill(served: Served) -> None:
    """Send writes until the sockets take no more."""
    sock, request, sent = served.client.sock, write(0, b"old" * 1024), 0
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    served.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
    sock.setblocking(False)
    full = 0
    while full < 10:
        try:
            sent += sock.send(request[sent % len(request) :])
            full = 0
        except BlockingIOError:
            full += 1
            await asyncio.sleep(0.01)


def test_goodbye_behind_a_full_window_is_waited_for(run: Run) -> None:
    async def scenario() -> None:
        house = House()
        old = house.enters(Limits(in_flight_requests=2), tcp=True)
        await fill(old)
        await old.held(2)
        old.client.close()
        new = house.enters()
        await new.client.send(write(0, b"new", cookie=1))
        await asyncio.sleep(4 * LOOK_S)
        assert not old.connection.client_has_left, "its goodbye cannot arrive"
        assert old.connection.may_still_act
        while old.connection in house.succession.connections:
            assert new.backend.held == []
            old.backend.answer()
            await asyncio.sleep(0.001)
        await new.held(1)
        new.backend.answer()
        new.connection.abandon()
        house.assert_empty(old, new)

    run(scenario())


def test_client_that_fills_its_window_and_lives_holds_nobody_up_for_long(run: Run) -> None:
    async def scenario() -> None:
        house = House(leave_s=0.2)
        lives = house.enters(Limits(in_flight_requests=2), tcp=True)
        await fill(lives)
        await lives.held(2)
        new = house.enters()
        await new.client.send(write(0, b"new", cookie=9))
        await asyncio.sleep(0.3)
        assert new.backend.held == [], "nothing of it was read meanwhile"
        answers = asyncio.ensure_future(lives.client.read_to_end())
        while not new.backend.held:
            assert lives.connection.state is State.OPEN
            lives.backend.answer()
            await asyncio.sleep(0.001)
        new.connection.abandon()
        lives.connection.abandon()
        new.backend.answer()
        lives.backend.answer()
        await answers
        house.assert_empty(lives, new)

    run(scenario())

"""How one client ends, why, and that nobody else notices: limits, silence, our own errors."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from nbdserver.buffers import ByteBudget
from nbdserver.connection import State
from nbdserver.counters import End, TransmissionCounters
from nbdserver.limits import Limits
from nbdserver.requests import Request
from nbdserver.transmission import RequestReader
from tests.nbdserver.conftest import Run
from tests.nbdserver.held_backend import MIB, Served, tcp_pair
from tests.nbdserver.wire import disc, eventually, read, request, write


@pytest.mark.interpreted
def test_error_of_ours_ends_the_client_that_met_it_and_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = RequestReader.take_requests

    def broken(reader: RequestReader, *limits: int) -> list[Request]:
        if reader is victim.connection._reader:
            raise ZeroDivisionError("our bug")
        return real(reader, *limits)

    victim: Served

    async def scenario() -> None:
        nonlocal victim
        loud: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda *seen: loud.append(seen))
        counters = TransmissionCounters()
        victim, other = Served(counters=counters), Served(counters=counters)
        other.backend.answers_at_once = True
        await victim.client.send(write(0, b"x"))
        assert await victim.client.read_to_end() == b""
        victim.assert_ended_once()
        await other.client.send(write(0, b"x", cookie=4))
        assert await other.client.reply() == (0, 4)
        # It is shown by the log; the loop, whose handler may end the process, never sees it.
        assert loud == []
        assert counters.bugs == 1
        other.connection.abandon()
        other.assert_ended_once()

    monkeypatch.setattr(RequestReader, "take_requests", broken)
    with caplog.at_level(logging.ERROR):
        run(scenario())
    (record,) = [each for each in caplog.records if each.name == "nbdserver"]
    assert record.exc_info is not None
    assert record.getMessage() == "the client: closed by an error of this server"


def test_wrong_answer_of_the_backend_is_counted_as_done(run: Run) -> None:
    async def scenario() -> None:
        served = Served()
        await served.client.send(read(0, 10) + read(0, 10))
        await served.held(2)
        first, second = served.backend.held
        with pytest.raises(Exception, match="3 bytes of data for a READ of 10"):
            served.connection.reply(first, data=b"abc")
        served.connection.fail(ZeroDivisionError("our bug"), [second])
        assert await served.client.read_to_end() == b""
        served.assert_ended_once()

    run(scenario())


def test_failed_client_is_idle_only_after_its_other_requests(run: Run) -> None:
    async def scenario() -> None:
        served = Served()
        await served.client.send(read(0, 10) + write(0, b"x"))
        await served.held(2)
        first, second = served.backend.held
        served.connection.fail(ZeroDivisionError("our bug"), [first])
        assert (served.idle, served.connection.state) == (0, State.CLOSED)
        served.connection.reply(second)
        served.assert_ended_once()

    run(scenario())


def test_idle_client_is_closed_and_a_busy_one_is_not(run: Run) -> None:
    async def scenario() -> None:
        counters = TransmissionCounters()
        limits = Limits(idle_s=0.05)
        idle, busy = Served(limits, counters=counters), Served(limits, counters=counters)
        await busy.client.send(write(0, b"x"))
        await busy.held(1)
        assert await idle.client.read_to_end() == b""
        assert counters.idle == 1
        # Its one request is in flight for longer than the limit.
        later = Served(limits)
        await later.closed()
        assert busy.connection.state is State.OPEN
        busy.connection.abandon()
        busy.backend.answer()
        for each in (idle, busy, later):
            each.assert_ended_once()

    run(scenario())


def test_idle_client_is_left_alone_by_default(run: Run) -> None:
    async def scenario() -> None:
        served, other = Served(), Served(Limits(idle_s=0.02))
        await other.closed()
        assert served.connection.state is State.OPEN
        served.connection.abandon()
        served.assert_ended_once()
        other.assert_ended_once()

    run(scenario())


def test_client_that_takes_nothing_is_closed_once_others_need_its_bytes(run: Run) -> None:
    async def scenario() -> None:
        budget, counters = ByteBudget(8 * MIB), TransmissionCounters()
        limits = Limits(reply_stall_s=0.05)
        hog = Served(limits, budget=budget, counters=counters)
        hog.backend.answers_at_once = True
        await hog.client.send(read(0, 8 * MIB))
        await eventually(lambda: hog.connection.unsent_bytes > 4 * MIB, "it takes nothing")
        watched = Served(Limits(idle_s=0.2))
        await watched.closed()
        # Four times its limit has passed, but nobody needed anything.
        assert hog.connection.state is State.OPEN
        other = Served(limits, budget=budget, counters=counters)
        other.backend.answers_at_once = True
        await other.client.send(read(0, 6 * MIB, cookie=1))
        assert await other.client.reply() == (0, 1)
        assert len(await other.client.receive(6 * MIB)) == 6 * MIB
        assert (hog.connection.state, counters.stalled) == (State.CLOSED, 1)
        other.connection.abandon()
        for each in (hog, watched, other):
            each.assert_ended_once()

    run(scenario())


@pytest.mark.parametrize(
    ("end", "data", "closes"),
    [
        (End.FINISHED, disc(), False),
        (End.FINISHED, b"", True),
        (End.VIOLATION, request(0, magic=1), False),
    ],
)
def test_every_end_is_counted_under_its_name(run: Run, end: End, data: bytes, closes: bool) -> None:
    async def scenario() -> None:
        counters = TransmissionCounters()
        served = Served(counters=counters)
        served.backend.answers_at_once = True
        await served.client.send(write(0, b"12345") + read(0, 7) + data)
        if closes:
            served.client.sock.shutdown(socket.SHUT_WR)
        await served.client.read_to_end()
        await served.closed()
        assert getattr(counters, end.value) == 1
        assert (counters.connections, counters.requests) == (1, 2)
        assert (counters.bytes_written, counters.bytes_read) == (5, 7)
        served.assert_ended_once()

    run(scenario())


def test_reset_is_counted_as_hanging_up(run: Run) -> None:
    async def scenario() -> None:
        counters = TransmissionCounters()
        served = Served(tcp=True, counters=counters)
        served.client.reset()
        await served.closed()
        assert counters.hung_up == 1
        served.assert_ended_once()

    run(scenario())


def test_totals_include_the_living(run: Run) -> None:
    async def scenario() -> None:
        counters = TransmissionCounters()
        served = Served(counters=counters)
        served.backend.answers_at_once = True
        await served.client.send(write(0, b"12345"))
        await served.client.reply()
        assert counters.requests == 0
        total = counters.with_living([served.connection])
        assert (total.connections, total.requests, total.bytes_written) == (1, 1, 5)
        served.connection.abandon()
        assert counters.abandoned == 1
        assert counters.with_living([]).requests == 1
        served.assert_ended_once()

    run(scenario())


def test_waits_for_the_limits_are_counted(run: Run) -> None:
    async def scenario() -> None:
        served = Served(Limits(in_flight_requests=2))
        await served.client.send(b"".join(write(i, b"x") for i in range(4)))
        await served.held(2)
        assert served.connection.limit_waits == 1
        served.backend.answer()
        await served.held(2)
        served.backend.answer()
        served.connection.abandon()
        served.assert_ended_once()

    run(scenario())


@pytest.mark.parametrize("tcp", [False, True])
def test_goodbye_that_is_not_read_yet_is_seen(run: Run, tcp: bool) -> None:
    async def scenario() -> None:
        served = Served(Limits(in_flight_requests=1), tcp=tcp)
        await served.client.send(write(0, b"x") * 3)
        await served.held(1)
        assert not served.connection.client_has_left
        assert served.connection.may_still_act
        served.client.close()
        await eventually(lambda: served.connection.client_has_left, "its end is seen")
        assert served.connection.state is State.OPEN
        served.connection.abandon()
        assert served.connection.may_still_act
        served.backend.answer()
        assert not served.connection.may_still_act
        served.assert_ended_once()

    run(scenario())


def test_goodbye_on_the_wire_is_seen_before_its_bytes_are_carried_here(run: Run) -> None:
    """Between a TLS client and its plaintext is a process that may not have got round to it."""

    async def scenario() -> None:
        wire, far = tcp_pair()
        served = Served(Limits(in_flight_requests=1), wire=wire)
        await served.client.send(write(0, b"x"))
        await served.held(1)
        assert not served.connection.client_has_left
        far.close()
        await eventually(lambda: served.connection.client_has_left, "its end is seen")
        await served.client.send(write(0, b"late"))
        served.client.sock.shutdown(socket.SHUT_WR)
        served.backend.answer()
        await served.held(1)
        assert served.connection.may_still_act, "what was on its way is waited for"
        served.backend.answer()
        await eventually(lambda: served.connection.closed, "it ends")
        assert wire.fileno() == -1
        served.assert_ended_once()

    run(scenario())

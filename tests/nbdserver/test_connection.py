"""One connection over a real socket pair, with a backend that answers when the test says so."""

from __future__ import annotations

import asyncio
import logging
import socket

import pytest

from nbdserver import protocol as nbd
from nbdserver.buffers import ByteBudget
from nbdserver.connection import State
from nbdserver.errors import LocalError
from nbdserver.limits import Limits
from nbdserver.terms import ReplyStyle, Terms
from tests.nbdserver.conftest import Run
from tests.nbdserver.held_backend import EXPORT, MIB, Served
from tests.nbdserver.wire import disc, eventually, read, request, write


def test_one_batch_is_one_turn_and_replies_come_in_answer_order(run: Run) -> None:
    async def scenario() -> None:
        served = Served()
        await served.client.send(read(0, 3, cookie=1) + write(9, b"x", cookie=2))
        await served.held(2)
        assert served.backend.batches == [2]
        served.backend.held.reverse()
        served.backend.answer()
        assert await served.client.reply() == (0, 2)
        assert await served.client.reply() == (0, 1)
        assert await served.client.receive(3) == b"RRR"
        served.connection.abandon()
        served.assert_ended_once()

    run(scenario())


def test_leftover_of_the_handshake_is_served_first(run: Run) -> None:
    async def scenario() -> None:
        big = write(0, bytes(2 * MIB), cookie=2)
        served = Served(leftover=read(0, 1, cookie=1) + big[:MIB])
        served.backend.answers_at_once = True
        await served.client.send(big[MIB:] + disc())
        assert await served.client.reply() == (0, 1)
        assert await served.client.receive(1) == b"R"
        assert await served.client.reply() == (0, 2)
        await served.closed()
        served.assert_ended_once()

    run(scenario())


def test_requests_in_flight_stop_at_the_limit_and_go_on_after(run: Run) -> None:
    async def scenario() -> None:
        served = Served(Limits(in_flight_requests=4))
        await served.client.send(b"".join(read(i, 1, cookie=i) for i in range(10)))
        await served.held(4)
        assert served.connection.requests_in_flight == 4
        for left in (4, 2, 0):
            served.backend.answer()
            await served.held(left)
        for cookie in range(10):
            assert await served.client.reply() == (0, cookie)
            await served.client.receive(1)
        await served.client.send(read(0, 1, cookie=10))
        await served.held(1)
        assert max(served.backend.batches) == 4
        served.backend.answer()
        served.client.close()
        await served.closed()
        served.assert_ended_once()

    run(scenario())


def test_bytes_in_flight_stop_at_the_limit_and_go_on_after(run: Run) -> None:
    async def scenario() -> None:
        served = Served(Limits(in_flight_bytes=32 * MIB))
        await served.client.send(b"".join(read(0, 12 * MIB, cookie=i) for i in range(5)))
        await served.held(2)
        assert served.connection.bytes_in_flight == 24 * MIB
        served.backend.answer(error=nbd.NBD_EIO)
        await served.held(2)
        served.backend.answer(error=nbd.NBD_EIO)
        await served.held(1)
        served.backend.answer(error=nbd.NBD_EIO)
        assert [await served.client.reply() for _ in range(5)] == [(5, i) for i in range(5)]
        served.connection.abandon()
        served.assert_ended_once()

    run(scenario())


def test_client_that_takes_no_replies_is_not_read_any_further(run: Run) -> None:
    async def scenario() -> None:
        limits = Limits(unsent_bytes=MIB, in_flight_bytes=32 * MIB)
        served = Served(limits)
        served.backend.answers_at_once = True
        count = 64
        await served.client.send(b"".join(read(0, MIB, cookie=i) for i in range(count)))
        await eventually(lambda: served.connection.unsent_bytes > MIB, "replies pile up")
        await served.client.send(read(0, 1, cookie=count))
        for _ in range(20):
            await asyncio.sleep(0)
        assert served.connection.requests == 32
        assert served.connection.unsent_bytes <= 32 * (MIB + 16)
        for cookie in range(count):
            assert await served.client.reply() == (0, cookie)
            assert len(await served.client.receive(MIB)) == MIB
        assert await served.client.reply() == (0, count)
        assert served.connection.bytes_read == count * MIB + 1
        served.connection.abandon()
        served.assert_ended_once()

    run(scenario())


def test_client_that_takes_no_replies_is_read_no_further_than_the_budget_of_all(run: Run) -> None:
    async def scenario() -> None:
        budget = ByteBudget(1 << 20)
        served = Served(budget=budget, terms=Terms(ReplyStyle.STRUCTURED))
        requests = 60_000
        flood = request(99, 0, 1) * requests + disc()
        sending = asyncio.create_task(served.client.send(flood))
        await eventually(lambda: budget.used_bytes > budget.limit_bytes, "the budget is spent")
        for _ in range(300):
            await asyncio.sleep(0)
        assert served.connection.unsent_bytes < budget.limit_bytes + 64 * 1024
        assert not served.connection.closed
        received = await served.client.read_to_end()
        assert received.count(b"command 99 is not") == requests, "who takes them is read on"
        await sending
        served.assert_ended_once()

    run(scenario())


def test_spent_budget_delays_large_reads_but_not_small_ones(run: Run) -> None:
    async def scenario() -> None:
        budget = ByteBudget(8 * MIB)
        hog = Served(budget=budget)
        other = Served(budget=budget)
        await hog.client.send(read(0, 8 * MIB))
        await hog.held(1)
        assert budget.used_bytes == 8 * MIB
        await other.client.send(read(0, 4096, cookie=1))
        await other.held(1)
        other.backend.answer()
        assert await other.client.reply() == (0, 1)
        await other.client.receive(4096)
        await other.client.send(read(0, 4 * MIB, cookie=2) + read(0, 1, cookie=3))
        await eventually(lambda: other.connection.bytes_received == 84, "the large read waits")
        assert other.backend.held == []
        hog.connection.abandon()
        hog.backend.answer()
        await other.held(2)
        other.backend.answer(error=nbd.NBD_EIO)
        assert await other.client.reply() == (nbd.NBD_EIO, 2)
        other.connection.abandon()
        hog.assert_ended_once()
        other.assert_ended_once()

    run(scenario())


def test_large_payload_waits_for_the_budget_and_then_arrives(run: Run) -> None:
    async def scenario() -> None:
        budget = ByteBudget(20 * MIB)
        first, second = Served(budget=budget), Served(budget=budget)
        payload = write(0, b"w" * (16 * MIB))
        await first.client.send(payload)
        await first.held(1)
        sending = asyncio.ensure_future(second.client.send(payload))
        await eventually(lambda: budget.contended, "the second payload waits")
        assert second.backend.held == []
        first.backend.answer()
        await sending
        await second.held(1)
        assert second.backend.held[0].payload is not None
        assert bytes(second.backend.held[0].payload) == b"w" * (16 * MIB)
        second.backend.answer()
        for each in (first, second):
            assert await each.client.reply() == (0, 0)
            each.connection.abandon()
            each.client.close()
        assert budget.used_bytes == 0

    run(scenario())


def test_stalled_large_payload_is_dropped(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        served = Served(Limits(payload_stall_s=0.05))
        await served.client.send(write(0, bytes(4 * MIB))[: 2 * MIB])
        await served.closed()
        served.assert_ended_once()

    run(scenario())
    assert "no byte of an announced payload" in caplog.text


def test_stalled_small_payload_may_take_its_time(run: Run) -> None:
    async def scenario() -> None:
        served = Served(Limits(payload_stall_s=0.01))
        data = write(0, bytes(4096), cookie=8)
        await served.client.send(data[:100])
        await eventually(lambda: served.connection.bytes_received == 100, "a part is there")
        await served.client.send(data[100:])
        await served.held(1)
        served.backend.answer()
        assert await served.client.reply() == (0, 8)
        served.connection.abandon()
        served.assert_ended_once()

    run(scenario())


@pytest.mark.parametrize("ending", ["disc", "half-close"])
def test_everything_received_is_answered_before_the_end(run: Run, ending: str) -> None:
    async def scenario() -> None:
        served = Served()
        await served.client.send(b"".join(write(i, b"x", cookie=i) for i in range(50)))
        if ending == "disc":
            await served.client.send(disc() + b"junk that nobody reads")
        else:
            served.client.sock.shutdown(socket.SHUT_WR)
        await served.held(50)
        await eventually(lambda: served.connection.state is State.FINISHING, "the end is seen")
        assert served.backend.disconnects == 0
        served.backend.answer(20)
        served.backend.answer()
        received = await served.client.read_to_end()
        assert len(received) == 50 * 16
        await served.closed()
        served.assert_ended_once()

    run(scenario())


def test_disconnect_at_the_request_limit_still_answers_all(run: Run) -> None:
    async def scenario() -> None:
        served = Served(Limits(in_flight_requests=3))
        served.backend.answers_at_once = True
        await served.client.send(
            b"".join(write(i, b"x", cookie=i) for i in range(20)) + disc() + write(0, b"late")
        )
        assert len(await served.client.read_to_end()) == 20 * 16
        await served.closed()
        assert served.connection.requests == 20
        served.assert_ended_once()

    run(scenario())


def test_half_received_write_is_not_applied_at_the_end(run: Run) -> None:
    async def scenario() -> None:
        served = Served()
        await served.client.send(write(0, bytes(8192))[:5000])
        served.client.sock.shutdown(socket.SHUT_WR)
        await served.closed()
        assert served.backend.batches == []
        served.assert_ended_once()

    run(scenario())


def test_finish_answers_what_was_received_and_closes(run: Run) -> None:
    async def scenario() -> None:
        served = Served()
        await served.client.send(write(0, b"x", cookie=4))
        await served.held(1)
        served.connection.finish()
        assert served.connection.state is State.FINISHING
        served.backend.answer()
        assert len(await served.client.read_to_end()) == 16
        served.assert_ended_once()

    run(scenario())


def test_finish_at_the_request_limit_still_answers_what_is_buffered(run: Run) -> None:
    async def scenario() -> None:
        served = Served(Limits(in_flight_requests=3))
        await served.client.send(b"".join(write(i, b"x", cookie=i) for i in range(20)))
        await served.held(3)
        served.connection.finish()
        served.backend.answers_at_once = True
        served.backend.answer()
        assert len(await served.client.read_to_end()) == 20 * 16
        await served.closed()
        served.assert_ended_once()

    run(scenario())


def test_abandon_is_silence_and_idle_comes_with_the_last_answer(run: Run) -> None:
    async def scenario() -> None:
        served = Served()
        await served.client.send(write(0, b"x") + read(0, 4))
        await served.held(2)
        served.connection.abandon()
        assert await served.client.read_to_end() == b""
        assert (served.backend.disconnects, served.idle) == (1, 0)
        assert served.connection.requests_in_flight == 2
        served.backend.answer(1)
        assert served.idle == 0
        served.backend.answer()
        served.assert_ended_once()

    run(scenario())


def test_reset_in_flight_disturbs_no_sibling(run: Run) -> None:
    async def scenario() -> None:
        victim, sibling = Served(tcp=True), Served(tcp=True)
        await victim.client.send(write(0, b"x") * 5)
        await victim.held(5)
        victim.client.reset()
        await victim.closed()
        victim.backend.answer()
        victim.assert_ended_once()
        await sibling.client.send(read(0, 2, cookie=1))
        await sibling.held(1)
        sibling.backend.answer()
        assert await sibling.client.reply() == (0, 1)
        sibling.connection.abandon()
        sibling.assert_ended_once()

    run(scenario())


def test_bad_magic_is_logged_once_and_ends_only_this_client(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        served = Served()
        await served.client.send(request(nbd.NBD_CMD_READ, 0, 1, magic=0xBAD))
        assert await served.client.read_to_end() == b""
        served.assert_ended_once()

    with caplog.at_level(logging.INFO):
        run(scenario())
    (record,) = [each for each in caplog.records if each.name == "nbdserver"]
    assert record.getMessage() == "the client: dropped: request magic 0x00000bad is wrong"


def test_bug_in_the_backend_ends_one_client_and_is_loud(run: Run) -> None:
    async def scenario() -> None:
        seen: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: seen.append(context["exception"])
        )
        served = Served()
        served.backend.bug = ZeroDivisionError("our bug")
        await served.client.send(write(0, b"x"))
        assert await served.client.read_to_end() == b""
        assert seen == [served.backend.bug]
        assert served.backend.disconnects == 1
        served.client.close()

    run(scenario())


def test_second_answer_to_a_request_is_our_own_error(run: Run) -> None:
    async def scenario() -> None:
        served = Served()
        await served.client.send(write(0, b"x"))
        await served.held(1)
        held = served.backend.held[0]
        served.backend.answer()
        with pytest.raises(LocalError):
            served.connection.reply(held)
        served.connection.abandon()
        served.assert_ended_once()

    run(scenario())


def test_answers_to_a_batch_stop_at_another_clients_request(run: Run) -> None:
    async def scenario() -> None:
        one, other = Served(), Served()
        await one.client.send(write(0, b"x", cookie=1) + write(1, b"y", cookie=2))
        await other.client.send(write(2, b"z", cookie=3))
        await one.held(2)
        await other.held(1)
        batch = one.backend.held + other.backend.held
        one.backend.held, other.backend.held = [], []
        assert one.connection.reply_done(batch) == 2
        with pytest.raises(LocalError):
            one.connection.reply_done(batch, 2)
        with pytest.raises(LocalError):
            one.connection.reply_done(batch)
        assert one.connection.requests_in_flight == one.connection.bytes_in_flight == 0
        one.connection.send_replies()
        assert [await one.client.reply(), await one.client.reply()] == [(0, 1), (0, 2)]
        other.connection.abandon()
        assert other.connection.reply_done(batch, 2) == 3
        one.connection.abandon()
        for served in (one, other):
            served.assert_ended_once()

    run(scenario())


def test_payload_outlives_the_answer_while_its_chunk_is_retained(run: Run) -> None:
    async def scenario() -> None:
        served = Served()
        await served.client.send(write(0, b"keep me"))
        await served.held(1)
        kept = served.backend.held[0]
        assert kept.chunk is not None
        assert kept.payload is not None
        kept.chunk.retain()
        served.backend.answer()
        served.backend.answers_at_once = True
        await served.client.send(write(0, b"other bytes") * 3000)
        await served.client.receive(16 * 3001)
        assert bytes(kept.payload) == b"keep me"
        kept.chunk.release()
        served.connection.abandon()
        served.assert_ended_once()

    run(scenario())


def test_counters_tell_requests_bytes_and_errors(run: Run) -> None:
    async def scenario() -> None:
        served = Served()
        served.backend.answers_at_once = True
        await served.client.send(read(0, 100) + write(0, b"12345") + read(EXPORT.size_bytes, 1))
        await served.client.receive(3 * 16 + 100)
        connection = served.connection
        assert (connection.requests, connection.errors) == (3, 1)
        assert (connection.bytes_read, connection.bytes_written) == (100, 5)
        connection.abandon()
        served.assert_ended_once()

    run(scenario())

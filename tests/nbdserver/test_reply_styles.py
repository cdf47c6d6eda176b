"""One turn over a real socket pair in each form of replies: batched, and never mixed up."""

from __future__ import annotations

import struct

import pytest

from nbdserver import protocol as nbd
from nbdserver.requests import StatusRequest
from nbdserver.terms import ReplyStyle, Terms
from tests.nbdserver.conftest import Run
from tests.nbdserver.held_backend import EXPORT, Served
from tests.nbdserver.wire import (
    chunks,
    disc,
    extended_request,
    read,
    request,
    simple_reply,
    write,
)

STRUCTURED = Terms(ReplyStyle.STRUCTURED, ("base:allocation", "x-a:b"))
EXTENDED = Terms(ReplyStyle.EXTENDED, ("base:allocation",))


@pytest.mark.parametrize("terms", [Terms(), STRUCTURED])
def test_reads_and_writes_of_a_turn_are_answered_in_one_call(run: Run, terms: Terms) -> None:
    async def scenario() -> None:
        served = Served(terms=terms)
        served.backend.answers_at_once = True
        batch = b"".join(read(i, 512, cookie=i) + write(i, b"x", cookie=i) for i in range(30))
        await served.client.send(batch)
        header = 16 if terms.style is ReplyStyle.SIMPLE else 28
        assert len(await served.client.receive(30 * (header + 512 + 16))) == 30 * (528 + header)
        assert served.sock.sends == len(served.backend.batches) == 1
        served.connection.abandon()
        served.assert_ended_once()

    run(scenario())


def test_refusals_of_a_turn_share_the_call_with_the_answers(run: Run) -> None:
    async def scenario() -> None:
        served = Served(terms=STRUCTURED)
        served.backend.answers_at_once = True
        await served.client.send(
            read(0, 4, cookie=1)
            + read(EXPORT.size_bytes - 2, 4, cookie=2)
            + request(99, cookie=3)
            + read(0, 0, cookie=4)
            + write(EXPORT.size_bytes, b"past", cookie=5)
            + disc()
        )
        found = {each.cookie: each for each in chunks(await served.client.read_to_end())}
        assert served.sock.sends == 1
        assert found[1].payload[8:] == b"RRRR"
        error, text, at = found[2].error()
        assert error == nbd.NBD_EINVAL
        assert text == (
            f"READ of 4 bytes at {EXPORT.size_bytes - 2}: the export ends at {EXPORT.size_bytes}"
        )
        assert at == struct.pack(">Q", EXPORT.size_bytes)
        assert found[3].error() == (
            nbd.NBD_EINVAL,
            "command 99 is not supported by this server",
            b"",
        )
        assert (found[4].type, found[4].payload) == (nbd.NBD_REPLY_TYPE_NONE, b"")
        assert found[5].error()[0] == nbd.NBD_ENOSPC
        assert all(each.done for each in found.values())
        assert (served.connection.requests, served.connection.errors) == (5, 3)
        served.assert_ended_once()

    run(scenario())


def test_error_of_the_backend_reaches_the_client_with_its_words(run: Run) -> None:
    async def scenario() -> None:
        served = Served(terms=STRUCTURED)
        await served.client.send(read(100, 50, cookie=1) + write(0, b"x", cookie=2))
        await served.held(2)
        first, second = served.backend.held
        served.connection.reply(first, 5, text="read: the disk", at=120)
        served.connection.reply(second, 28, text="write: full")
        served.connection.send_replies()
        served.connection.finish()
        broken, full = chunks(await served.client.read_to_end())
        assert broken.error() == (5, "read: the disk", struct.pack(">Q", 120))
        assert full.error() == (28, "write: full", b"")
        served.assert_ended_once()

    run(scenario())


def test_holes_and_statuses_go_out_as_chunks(run: Run) -> None:
    async def scenario() -> None:
        served = Served(terms=STRUCTURED)
        assert served.connection.tells_holes
        await served.client.send(
            read(0, 100, cookie=1)
            + request(nbd.NBD_CMD_BLOCK_STATUS, 512, 4096, cookie=2)
            + request(nbd.NBD_CMD_CACHE, 0, 4096, cookie=3)
        )
        await served.held(3)
        data, status, cache = served.backend.held
        assert isinstance(status, StatusRequest)
        assert status.contexts == {1: "base:allocation", 2: "x-a:b"}
        served.connection.reply_sparse(data, [60, b"y" * 40])
        served.connection.reply_status(status, {1: [(4096, 3)], 2: [(512, 0), (3584, 1)]})
        served.connection.reply(cache)
        served.connection.send_replies()
        served.connection.finish()
        received = await served.client.read_to_end()
        assert received.endswith(simple_reply(3))
        hole, rest, first, second = chunks(received[:-16])
        assert [(each.type, each.done) for each in (hole, rest)] == [(2, False), (1, True)]
        assert first.extents() == (1, [(4096, 3)])
        assert second.extents() == (2, [(512, 0), (3584, 1)])
        assert [(each.cookie, each.done) for each in (first, second)] == [(2, False), (2, True)]
        assert served.sock.sends == 1
        served.assert_ended_once()

    run(scenario())


def test_extended_headers_answer_all_in_one_form(run: Run) -> None:
    async def scenario() -> None:
        served = Served(terms=EXTENDED)
        served.backend.answers_at_once = True
        await served.client.send(
            extended_request(nbd.NBD_CMD_READ, 8, 4, cookie=1)
            + extended_request(nbd.NBD_CMD_WRITE, 16, 2, b"hi", cookie=2)
            + extended_request(nbd.NBD_CMD_TRIM, 0, EXPORT.size_bytes, cookie=3)
            + extended_request(nbd.NBD_CMD_TRIM, 0, EXPORT.size_bytes + 1, cookie=4)
            + extended_request(nbd.NBD_CMD_FLUSH, cookie=5)
            + extended_request(nbd.NBD_CMD_DISC)
        )
        found = sorted(chunks(await served.client.read_to_end()), key=lambda each: each.cookie)
        assert [(each.type, each.offset, each.done) for each in found] == [
            (nbd.NBD_REPLY_TYPE_OFFSET_DATA, 8, True),
            (nbd.NBD_REPLY_TYPE_NONE, 16, True),
            (nbd.NBD_REPLY_TYPE_NONE, 0, True),
            (nbd.NBD_REPLY_TYPE_ERROR_OFFSET, 0, True),
            (nbd.NBD_REPLY_TYPE_NONE, 0, True),
        ]
        assert found[0].payload == struct.pack(">Q", 8) + b"RRRR"
        assert (served.connection.bytes_read, served.connection.bytes_written) == (4, 2)
        served.assert_ended_once()

    run(scenario())


def test_closed_connection_counts_late_answers_of_every_kind(run: Run) -> None:
    async def scenario() -> None:
        served = Served(terms=STRUCTURED)
        status = request(nbd.NBD_CMD_BLOCK_STATUS, 0, 1)
        await served.client.send(read(0, 8) + read(0, 8) + status + read(0, 8))
        await served.held(4)
        served.connection.abandon()
        data, sparse, asked, failed = served.backend.held
        served.connection.reply(data, data=b"8 bytes!")
        served.connection.reply_sparse(sparse, [8])
        served.connection.reply_status(asked, {1: [(1, 0)], 2: [(1, 0)]})
        assert served.idle == 0
        served.connection.reply(failed, 5)
        served.assert_ended_once()

    run(scenario())

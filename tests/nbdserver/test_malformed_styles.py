"""Broken clients that negotiated structured replies or extended headers, against a real server.

As in `test_malformed.py`, an honest client is at work on the same server throughout.
"""

from __future__ import annotations

import random
import struct

import pytest

from nbdserver import protocol as nbd
from nbdserver.protocol import Option, Reply
from tests.nbdserver.honest import Honest
from tests.nbdserver.serving import ServerProcess
from tests.nbdserver.wire import (
    FIXED_NEWSTYLE_NO_ZEROES,
    RawClient,
    context_data,
    disc,
    extended_request,
    go,
    option,
    read,
    request,
    write,
)

MIB = 1 << 20
SR = option(Option.STRUCTURED_REPLY)
EXT = option(Option.EXTENDED_HEADERS)
ALLOCATION = option(Option.SET_META_CONTEXT, context_data(b"", b"base:allocation"))


@pytest.fixture
def server(one_server: ServerProcess) -> ServerProcess:
    """One server for all tests here: each must leave it as it was."""
    return one_server


def structured(server: ServerProcess) -> RawClient:
    client = RawClient.to_unix(server.socket)
    client.go(b"", SR, ALLOCATION)
    return client


def extended(server: ServerProcess) -> RawClient:
    client = RawClient.to_tcp(server.port)
    client.go(b"", EXT, ALLOCATION)
    return client


def error_of(client: RawClient, data: bytes) -> tuple[int, str]:
    """The error and the text that answer one request."""
    client.send(data)
    (chunk,) = client.chunks_of_one_reply()
    error, text, _ = chunk.error()
    return error, text


def test_refused_requests_have_words_and_keep_the_stream(
    server: ServerProcess, honest: Honest
) -> None:
    size = server.size_bytes
    with structured(server) as client:
        for offset in (size - 100, size, 2**63, 2**64 - 100):
            for data, error in (
                (read(offset, 200), nbd.NBD_EINVAL),
                (write(offset, b"z" * 200), nbd.NBD_ENOSPC),
                (request(nbd.NBD_CMD_TRIM, offset, 200), nbd.NBD_EINVAL),
                (request(nbd.NBD_CMD_WRITE_ZEROES, offset, 200), nbd.NBD_ENOSPC),
                (request(nbd.NBD_CMD_CACHE, offset, 200), nbd.NBD_EINVAL),
                (request(nbd.NBD_CMD_BLOCK_STATUS, offset, 200), nbd.NBD_EINVAL),
            ):
                found, text = error_of(client, data)
                assert found == error
                assert str(size) in text
        assert error_of(client, request(nbd.NBD_CMD_RESIZE, size * 2))[0] == nbd.NBD_EINVAL
        assert error_of(client, request(0xFFFF, 0, 2**32 - 1))[0] == nbd.NBD_EINVAL
        assert error_of(client, read(0, 512, flags=0x8000))[0] == nbd.NBD_EINVAL
        client.send(read(size - 200, 200))
        (hole,) = client.chunks_of_one_reply()
        assert hole.payload == struct.pack(">QI", size - 200, 200)


def test_requests_of_nothing_leave_the_connection_alone(
    server: ServerProcess, honest: Honest
) -> None:
    with structured(server) as client:
        client.send(read(0, 0, cookie=1))
        (none,) = client.chunks_of_one_reply()
        assert (none.type, none.payload) == (nbd.NBD_REPLY_TYPE_NONE, b"")
        for command in (nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES, nbd.NBD_CMD_CACHE):
            assert client.ask(request(command, 0, 0)) == 0
        assert client.ask(write(0, b"")) == 0
        assert error_of(client, request(nbd.NBD_CMD_BLOCK_STATUS, 0, 0))[0] == nbd.NBD_EINVAL


def test_status_without_a_selection_is_an_error(server: ServerProcess, honest: Honest) -> None:
    with RawClient.to_unix(server.socket) as client:
        client.go(b"", SR)
        assert error_of(client, request(nbd.NBD_CMD_BLOCK_STATUS, 0, 4096))[0] == nbd.NBD_EINVAL


def test_magic_of_the_other_form_loses_only_this_connection(
    server: ServerProcess, honest: Honest
) -> None:
    with extended(server) as client:
        client.send(read(0, 512) + bytes(8))
        assert client.is_closed_by_server()
    with structured(server) as client:
        client.send(extended_request(nbd.NBD_CMD_READ, 0, 512))
        assert client.is_closed_by_server()
    honest.works()


def test_extended_payloads_that_nobody_wants_are_passed_over(
    server: ServerProcess, honest: Honest
) -> None:
    junk = bytes(range(256)) * 40
    with extended(server) as client:
        for command in (0, 3, 4, 5, 6, 7, 8, 0xFFFF):
            data = extended_request(command, 0, len(junk), junk)
            assert error_of(client, data)[0] == nbd.NBD_EINVAL
        assert error_of(client, extended_request(nbd.NBD_CMD_WRITE, 0, 512))[0] == nbd.NBD_EINVAL
        client.send(extended_request(nbd.NBD_CMD_WRITE, 0, 5, b"works", cookie=3))
        (done,) = client.chunks_of_one_reply()
        assert (done.type, done.cookie, done.offset) == (nbd.NBD_REPLY_TYPE_NONE, 3, 0)
        client.send(extended_request(nbd.NBD_CMD_WRITE_ZEROES, 0, server.size_bytes - MIB))
        (done,) = client.chunks_of_one_reply()
        assert done.type == nbd.NBD_REPLY_TYPE_NONE
        client.send(extended_request(nbd.NBD_CMD_BLOCK_STATUS, 0, server.size_bytes - MIB))
        (status,) = client.chunks_of_one_reply()
        assert status.extents() == (1, [(server.size_bytes - MIB, 3)])


def test_extended_payload_without_end_loses_only_this_connection(
    server: ServerProcess, honest: Honest
) -> None:
    before = server.resident_bytes()
    with extended(server) as client:
        flags = nbd.NBD_CMD_FLAG_PAYLOAD_LEN
        client.send(extended_request(nbd.NBD_CMD_WRITE, 0, 2**64 - 1, flags=flags))
        assert client.is_closed_by_server()
    assert server.resident_bytes() - before < 16 * MIB


def test_largest_compact_payload_that_never_comes_costs_nothing(
    server: ServerProcess, honest: Honest
) -> None:
    before = server.resident_bytes()
    clients = []
    for _ in range(20):
        client = RawClient.to_unix(server.socket)
        client.go()
        client.send(request(nbd.NBD_CMD_WRITE, 0, 2**32 - 1))
        clients.append(client)
    honest.works()
    assert server.resident_bytes() - before < 24 * MIB
    for client in clients:
        client.close()


def test_fifty_idle_handshakes_delay_nobody(server: ServerProcess, honest: Honest) -> None:
    idle = [RawClient.to_tcp(server.port) for _ in range(50)]
    for number, client in enumerate(idle):
        client.send(FIXED_NEWSTYLE_NO_ZEROES[: number % 5])
    for _ in range(10):
        with RawClient.to_tcp(server.port) as client:
            client.go()
            assert client.ask_read(0, 512) == bytes(512)
        honest.works()
    for client in idle:
        client.close()


def test_flood_of_refused_requests_hurts_nobody(server: ServerProcess, honest: Honest) -> None:
    """Each error has words, six times as long as the request; the reading stops all the same."""
    before = server.resident_bytes()
    with structured(server) as client:
        client.sock.setblocking(False)
        flood = request(0xFFFF, 0, 0) * 40_000
        sent = 0
        try:
            for _ in range(100):
                sent += client.sock.send(flood)
        except BlockingIOError:
            pass  # The server stopped reading, as it should.
        for _ in range(10):
            honest.works()
        assert sent < 100 * len(flood)
        assert server.resident_bytes() - before < 160 * MIB


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0", context_data(b"", b"a:b")[:-1], b"\xff" * 60])
@pytest.mark.parametrize("number", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
def test_bad_context_query_is_refused_and_the_next_option_works(
    server: ServerProcess, honest: Honest, data: bytes, number: Option
) -> None:
    with RawClient.to_tcp(server.port) as client:
        client.greet()
        client.send(SR + option(number, data) + go())
        assert client.option_reply().type == Reply.ACK
        assert client.option_reply().type == Reply.ERR_INVALID
        while client.option_reply().type != Reply.ACK:
            pass
        client.send(read(0, 512) + disc())
        assert client.chunks_of_one_reply()[-1].done


@pytest.mark.parametrize("seed", range(3))
def test_seeded_garbage_never_reaches_another_client(
    server: ServerProcess, honest: Honest, seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(15):
        style = chance.choice((SR, EXT))
        with RawClient.to_unix(server.socket) as client:
            client.go(b"", style, ALLOCATION)
            make = request if style is SR else extended_request
            garbage = b"".join(
                make(
                    chance.choice((2, 3, 5, 7, 8, 0xFFFF)),
                    chance.getrandbits(64),
                    chance.getrandbits(32),
                    flags=chance.getrandbits(16) & ~nbd.NBD_CMD_FLAG_PAYLOAD_LEN,
                )
                for _ in range(5)
            )
            client.send(garbage + chance.randbytes(100) + disc())
            assert client.is_closed_by_server()
    honest.works()

"""Replies in chunks, byte for byte, in both forms of headers."""

from __future__ import annotations

import struct

import pytest

from nbdserver import protocol as nbd
from nbdserver.chunked_replies import ExtendedReplies, StructuredReplies
from nbdserver.errors import LocalError
from nbdserver.replies import Part, ReplyQueue
from nbdserver.requests import Request
from tests.nbdserver.test_replies import StingySocket, a_chunk, send
from tests.nbdserver.wire import Chunk, chunks, simple_reply

OFFSET = 0x1122334455667788
COOKIE = 0xA1A2A3A4A5A6A7A8


def asked(command: int = nbd.NBD_CMD_READ, length: int = 8, flags: int = 0) -> Request:
    return Request(None, command, flags, COOKIE.to_bytes(8, "big"), OFFSET, length)


def sent(queue: ReplyQueue) -> bytes:
    sock = StingySocket([1 << 30] * 2)
    unsent = queue.unsent_bytes
    send(queue, sock)
    assert (sock.calls, len(sock.taken)) == (1, unsent)
    return bytes(sock.taken)


def test_data_chunk_is_header_offset_and_data() -> None:
    queue = StructuredReplies()
    queue.add_data(asked(), b"8 bytes!", None)
    assert sent(queue) == (
        b"\x66\x8e\x33\xef\0\1\0\1" + b"\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8" + b"\0\0\0\x10"
        b"\x11\x22\x33\x44\x55\x66\x77\x88" + b"8 bytes!"
    )


def test_extended_data_chunk_repeats_the_offset_of_the_request() -> None:
    queue = ExtendedReplies()
    queue.add_data(asked(), b"8 bytes!", None)
    assert sent(queue) == (
        b"\x6e\x8a\x27\x8c\0\1\0\1" + b"\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8"
        b"\x11\x22\x33\x44\x55\x66\x77\x88" + b"\0\0\0\0\0\0\0\x10"
        b"\x11\x22\x33\x44\x55\x66\x77\x88" + b"8 bytes!"
    )


@pytest.mark.parametrize("queue", [StructuredReplies(), ExtendedReplies()])
def test_parts_cover_the_request_and_only_the_last_says_done(queue: StructuredReplies) -> None:
    queue.add_parts(asked(length=100), [10, b"x" * 20, 30, b"y" * 40], None)
    found = chunks(sent(queue))
    assert [(each.done, each.type) for each in found] == [
        (False, 2),
        (False, 1),
        (False, 2),
        (True, 1),
    ]
    assert found[0].payload == struct.pack(">QI", OFFSET, 10)
    assert found[1].payload == struct.pack(">Q", OFFSET + 10) + b"x" * 20
    assert found[2].payload == struct.pack(">QI", OFFSET + 30, 30)
    assert found[3].payload == struct.pack(">Q", OFFSET + 60) + b"y" * 40
    assert {each.cookie for each in found} == {COOKIE}
    expected = None if type(queue) is StructuredReplies else OFFSET
    assert {each.offset for each in found} == {expected}


def test_whole_hole_is_one_small_chunk() -> None:
    queue = StructuredReplies()
    queue.add_parts(asked(length=32 << 20), [32 << 20], None)
    assert sent(queue) == struct.pack(">IHHQIQI", 0x668E33EF, 1, 2, COOKIE, 12, OFFSET, 32 << 20)


def test_unfragmented_read_gets_its_zeroes_in_one_chunk() -> None:
    queue = StructuredReplies()
    queue.add_parts(asked(length=30, flags=nbd.NBD_CMD_FLAG_DF), [10, b"x" * 20], None)
    (chunk,) = chunks(sent(queue))
    assert chunk == Chunk(1, 1, COOKIE, struct.pack(">Q", OFFSET) + bytes(10) + b"x" * 20)


@pytest.mark.parametrize("parts", [[10], [b"x"], [4, b"x" * 5], [0, b"x" * 8], [8, b""], []])
def test_parts_that_do_not_cover_the_request_are_our_own_error(parts: list[Part]) -> None:
    queue = StructuredReplies()
    with pytest.raises(LocalError):
        queue.add_parts(asked(), parts, None)
    assert queue.pieces == []


def test_success_without_data_stays_simple_but_for_reads() -> None:
    queue = StructuredReplies()
    queue.add_success(asked(nbd.NBD_CMD_WRITE))
    queue.add_success(asked(nbd.NBD_CMD_READ, 0))
    assert sent(queue) == simple_reply(COOKIE) + struct.pack(">IHHQI", 0x668E33EF, 1, 0, COOKIE, 0)


def test_extended_success_is_never_simple() -> None:
    queue = ExtendedReplies()
    queue.add_success(asked(nbd.NBD_CMD_WRITE))
    assert sent(queue) == struct.pack(">IHHQQQ", 0x6E8A278C, 1, 0, COOKIE, OFFSET, 0)


@pytest.mark.parametrize("queue", [StructuredReplies(), ExtendedReplies()])
def test_error_tells_why_and_where(queue: StructuredReplies) -> None:
    queue.add_error(asked(), nbd.NBD_EIO, "read: gone", OFFSET + 7)
    (chunk,) = chunks(sent(queue))
    assert (chunk.done, chunk.type) == (True, nbd.NBD_REPLY_TYPE_ERROR_OFFSET)
    assert chunk.error() == (nbd.NBD_EIO, "read: gone", struct.pack(">Q", OFFSET + 7))


@pytest.mark.parametrize("at", [None, OFFSET - 1, OFFSET + 8])
def test_error_without_a_byte_of_the_request_has_no_offset(at: int | None) -> None:
    queue = StructuredReplies()
    queue.add_error(asked(), 116, "a text", at)
    (chunk,) = chunks(sent(queue))
    assert chunk.type == nbd.NBD_REPLY_TYPE_ERROR
    assert chunk.error() == (nbd.NBD_EIO, "a text", b"")


def test_error_text_is_cut_to_what_the_protocol_allows() -> None:
    queue = StructuredReplies()
    queue.add_error(asked(), 5, "…" * 3000, None)
    _, text, rest = chunks(sent(queue))[0].error()
    assert 4000 < len(text.encode()) <= 4096
    assert (set(text), rest) == ({"…"}, b"")


def test_status_has_one_chunk_for_each_context() -> None:
    queue = StructuredReplies()
    queue.add_status(asked(nbd.NBD_CMD_BLOCK_STATUS), {1: [(4096, 3), (512, 0)], 2: [(4608, 1)]})
    first, second = chunks(sent(queue))
    assert (first.type, first.done, first.extents()) == (5, False, (1, [(4096, 3), (512, 0)]))
    assert (second.type, second.done, second.extents()) == (5, True, (2, [(4608, 1)]))


def test_extended_status_has_64_bit_lengths_and_a_count() -> None:
    queue = ExtendedReplies()
    queue.add_status(asked(nbd.NBD_CMD_BLOCK_STATUS), {7: [(1 << 40, 0), (1, 3)]})
    (chunk,) = chunks(sent(queue))
    assert chunk.type == 6
    assert chunk.payload == struct.pack(">IIQQQQ", 7, 2, 1 << 40, 0, 1, 3)
    assert chunk.offset == OFFSET


def test_status_without_extents_is_our_own_error() -> None:
    with pytest.raises(LocalError):
        StructuredReplies().add_status(asked(nbd.NBD_CMD_BLOCK_STATUS), {1: []})


def test_chunk_that_holds_the_parts_is_released_with_the_last_byte() -> None:
    queue = StructuredReplies()
    pool, chunk = a_chunk()
    queue.add_parts(asked(length=110), [10, chunk.view[:100]], chunk)
    send(queue, StingySocket([32 + 28 + 99]))
    assert pool.out_bytes > 0
    send(queue, StingySocket([1]))
    assert pool.out_bytes == 0


def test_thirty_two_reads_are_one_call() -> None:
    queue, sock = StructuredReplies(), StingySocket([1 << 30])
    for _ in range(32):
        queue.add_data(asked(length=4096), bytes(4096), None)
    send(queue, sock)
    assert sock.calls == 1
    assert len(chunks(bytes(sock.taken))) == 32

"""What is queued goes out in order, whatever the socket takes at a time."""

from __future__ import annotations

import random
import socket
from typing import cast

import pytest

from nbdserver.buffers import ByteBudget, Chunk, ChunkPool
from nbdserver.errors import LocalError
from nbdserver.protocol import NBD_CMD_READ, NBD_CMD_WRITE, NBD_EIO, NBD_ENOSPC
from nbdserver.replies import IOVECS_MAX, Data, ReplyQueue
from nbdserver.requests import Request
from tests.nbdserver.wire import simple_reply

COOKIE = 0x3132333435363738


def asked(length: int = 0, cookie: int = COOKIE) -> Request:
    """A READ of `length` bytes, or a WRITE."""
    command = NBD_CMD_READ if length else NBD_CMD_WRITE
    return Request(None, command, 0, cookie.to_bytes(8, "big"), 0, length)


class StingySocket:
    """Takes a given number of bytes at each call, then blocks once."""

    def __init__(self, takes: list[int]) -> None:
        self.taken = bytearray()
        self.calls = 0
        self._takes = takes

    def send(self, data: bytes) -> int:
        return self.sendmsg([data])

    def sendmsg(self, pieces: list[Data]) -> int:
        assert len(pieces) <= IOVECS_MAX
        self.calls += 1
        if not self._takes:
            raise BlockingIOError
        data = b"".join(pieces)[: self._takes.pop(0)]
        self.taken += data
        return len(data)


def send(queue: ReplyQueue, sock: StingySocket) -> None:
    queue.send_to(cast(socket.socket, sock))


def a_chunk() -> tuple[ChunkPool, Chunk]:
    pool = ChunkPool(ByteBudget(), 64 << 20, 0)
    chunk = pool.take()
    assert chunk is not None
    return pool, chunk


def test_write_answers_go_out_in_one_call() -> None:
    queue, sock = ReplyQueue(), StingySocket([1 << 30])
    for cookie in range(40):
        queue.add_success(asked(cookie=cookie))
    assert queue.unsent_bytes == 640
    send(queue, sock)
    assert sock.taken == b"".join(simple_reply(cookie) for cookie in range(40))
    assert (sock.calls, queue.unsent_bytes, queue.pieces) == (1, 0, [])


def test_errors_unknown_to_the_wire_become_io_errors() -> None:
    queue, sock = ReplyQueue(), StingySocket([1 << 30])
    queue.add_error(asked(), NBD_ENOSPC, "full", None)
    queue.add_error(asked(), 116, "stale", 0)
    send(queue, sock)
    assert sock.taken == simple_reply(COOKIE, NBD_ENOSPC) + simple_reply(COOKIE, NBD_EIO)


def test_more_pieces_than_one_call_takes_are_all_sent() -> None:
    queue, sock = ReplyQueue(), StingySocket([1 << 30] * 3)
    for _ in range(IOVECS_MAX):
        queue.add_data(asked(4), b"data", None)
    send(queue, sock)
    assert sock.taken == (simple_reply(COOKIE) + b"data") * IOVECS_MAX
    assert sock.calls == 2


def test_any_partial_sends_keep_order_and_count() -> None:
    chance = random.Random(3)
    for _ in range(200):
        queue, expected, taken = ReplyQueue(), b"", b""
        for _ in range(chance.randrange(1, 30)):
            kind = chance.randrange(4)
            data = chance.randbytes(chance.randrange(1, 40))
            if kind == 0:
                queue.add_error(asked(), 5, "", None)
                expected += simple_reply(COOKIE, 5)
            elif kind == 1:
                queue.add_data(asked(len(data)), memoryview(data), None)
                expected += simple_reply(COOKIE) + data
            elif kind == 2:
                queue.add_data(asked(len(data)), [data[:3], data[3:]], None)
                expected += simple_reply(COOKIE) + data
            else:
                queue.add_parts(asked(len(data) + 7), [7, data], None)
                expected += simple_reply(COOKIE) + bytes(7) + data
            if chance.random() < 0.5:
                sock = StingySocket([chance.randrange(1, 50)])
                send(queue, sock)
                taken += sock.taken
                assert queue.unsent_bytes == len(expected) - len(taken)
        last = StingySocket([1 << 30] * 2)
        send(queue, last)
        assert taken + last.taken == expected


def test_data_of_another_length_is_our_own_error() -> None:
    queue = ReplyQueue()
    for data in (b"short", [b"a", b"b"], None):
        with pytest.raises(LocalError):
            queue.add_data(asked(6), data, None)
    assert queue.pieces == []


def test_long_hole_is_written_out_without_a_buffer_of_its_length() -> None:
    queue, sock = ReplyQueue(), StingySocket([1 << 30])
    hole = (3 << 20) + 5
    queue.add_parts(asked(hole + 4), [hole, b"data"], None)
    assert len({id(piece.obj) for piece in queue.pieces if isinstance(piece, memoryview)}) == 1
    send(queue, sock)
    assert sock.taken == simple_reply(COOKIE) + bytes(hole) + b"data"


def test_status_for_a_client_that_cannot_take_one_is_our_own_error() -> None:
    with pytest.raises(LocalError):
        ReplyQueue().add_status(asked(1), {1: [(1, 0)]})


def test_chunk_is_released_when_its_last_byte_is_sent() -> None:
    queue = ReplyQueue()
    pool, chunk = a_chunk()
    queue.add_success(asked())
    queue.add_data(asked(100), chunk.view[:100], chunk)
    queue.add_success(asked())
    send(queue, StingySocket([131]))
    assert pool.out_bytes > 0
    send(queue, StingySocket([1]))
    assert pool.out_bytes == 0
    assert queue.unsent_bytes == 16


def test_discarded_replies_release_their_chunks() -> None:
    queue = ReplyQueue()
    pool, chunk = a_chunk()
    queue.add_data(asked(100), chunk.view[:100], chunk)
    queue.discard()
    assert (pool.out_bytes, queue.unsent_bytes, queue.pieces) == (0, 0, [])

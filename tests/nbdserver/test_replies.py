"""What is queued goes out in order, whatever the socket takes at a time."""

from __future__ import annotations

import random
import socket
from typing import cast

import pytest

from nbdserver.buffers import ByteBudget, Chunk, ChunkPool
from nbdserver.errors import LocalError
from nbdserver.replies import IOVECS_MAX, Data, ReplyQueue
from nbdserver.transmission import error_reply, success_header

COOKIE = b"12345678"


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
    replies = [success_header(bytes([i]) * 8) for i in range(40)]
    queue.add_all(replies[:20])
    for reply in replies[20:]:
        queue.add(reply)
    assert queue.unsent_bytes == 640
    send(queue, sock)
    assert sock.taken == b"".join(replies)
    assert (sock.calls, queue.unsent_bytes, queue.pieces) == (1, 0, [])


def test_more_pieces_than_one_call_takes_are_all_sent() -> None:
    queue, sock = ReplyQueue(), StingySocket([1 << 30] * 3)
    for _ in range(IOVECS_MAX):
        queue.add_data(COOKIE, b"data", 4, None)
    send(queue, sock)
    assert sock.taken == (success_header(COOKIE) + b"data") * IOVECS_MAX
    assert sock.calls == 2


def test_any_partial_sends_keep_order_and_count() -> None:
    chance = random.Random(3)
    for _ in range(200):
        queue, expected, taken = ReplyQueue(), b"", b""
        for _ in range(chance.randrange(1, 30)):
            kind = chance.randrange(3)
            data = chance.randbytes(chance.randrange(1, 40))
            if kind == 0:
                queue.add(error_reply(5, COOKIE))
                expected += error_reply(5, COOKIE)
            elif kind == 1:
                queue.add_data(COOKIE, memoryview(data), len(data), None)
                expected += success_header(COOKIE) + data
            else:
                queue.add_data(COOKIE, [data[:3], data[3:]], len(data), None)
                expected += success_header(COOKIE) + data
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
            queue.add_data(COOKIE, data, 6, None)
    assert queue.pieces == []


def test_chunk_is_released_when_its_last_byte_is_sent() -> None:
    queue = ReplyQueue()
    pool, chunk = a_chunk()
    queue.add(success_header(COOKIE))
    queue.add_data(COOKIE, chunk.view[:100], 100, chunk)
    queue.add(success_header(COOKIE))
    send(queue, StingySocket([131]))
    assert pool.out_bytes > 0
    send(queue, StingySocket([1]))
    assert pool.out_bytes == 0
    assert queue.unsent_bytes == 16


def test_discarded_replies_release_their_chunks() -> None:
    queue = ReplyQueue()
    pool, chunk = a_chunk()
    queue.add_data(COOKIE, chunk.view[:100], 100, chunk)
    queue.discard()
    assert (pool.out_bytes, queue.unsent_bytes, queue.pieces) == (0, 0, [])

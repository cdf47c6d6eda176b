"""What the NBD server's Python costs between two system calls; run by `make bench-micro`.

One turn of a connection: 32 requests received, parsed, answered by a backend that does nothing, and
sent in one call. The socket pair's own cost is in every figure.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from nbdserver.connection import Connection
from nbdserver.export import ExportInfo
from nbdserver.protocol import (
    NBD_CMD_READ,
    NBD_CMD_WRITE,
    NBD_REQUEST_MAGIC,
    REQUEST,
    SIMPLE_REPLY_BYTES,
    STRUCTURED_CHUNK,
    U64,
)
from nbdserver.requests import Request
from nbdserver.terms import ReplyStyle, Terms

BATCH = 32
VOLUME_BYTES = 1 << 30
BLOCK = 4096


class IdleLoop:
    """Keeps the reader's callback, so that the benchmark is the loop."""

    def __init__(self) -> None:
        self.on_readable: Callable[[], None] = lambda: None

    def add_reader(self, _descriptor: int, callback: Callable[[], None]) -> None:
        self.on_readable = callback

    def remove_reader(self, _descriptor: int) -> None:
        """Nothing: a full reply always fits in the pair."""


class AnswersAtOnce:
    """A backend without a disk."""

    def __init__(self) -> None:
        self._data = bytearray(BLOCK)

    def submit(self, connection: Connection, requests: Sequence[Request]) -> None:
        for request in requests:
            data = self._data if request.command == NBD_CMD_READ else None
            connection.reply(request, 0, data)
        connection.send_replies()

    def disconnected(self, connection: Connection) -> None:
        """Nothing is kept."""


def request(command: int, number: int) -> bytes:
    cookie = number.to_bytes(8, "big")
    header = REQUEST.pack(NBD_REQUEST_MAGIC, 0, command, cookie, number * BLOCK, BLOCK)
    return header + (bytes(BLOCK) if command == NBD_CMD_WRITE else b"")


@pytest.mark.parametrize("style", [ReplyStyle.SIMPLE, ReplyStyle.STRUCTURED])
@pytest.mark.parametrize("command", [NBD_CMD_READ, NBD_CMD_WRITE], ids=["read", "write"])
def test_turn_of_32_requests(benchmark: Any, command: int, style: ReplyStyle) -> None:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    loop = IdleLoop()
    connection = Connection(
        cast(asyncio.AbstractEventLoop, loop),
        ours,
        ExportInfo("", VOLUME_BYTES),
        AnswersAtOnce(),
        terms=Terms(style),
    )
    connection.start()
    batch = b"".join(request(command, number) for number in range(BATCH))
    reply_bytes = SIMPLE_REPLY_BYTES
    if command == NBD_CMD_READ:
        chunked = style is ReplyStyle.STRUCTURED
        reply_bytes = BLOCK + (STRUCTURED_CHUNK.size + U64.size if chunked else reply_bytes)
    answer = bytearray(BATCH * reply_bytes)

    def turn() -> None:
        theirs.sendall(batch)
        loop.on_readable()
        assert theirs.recv_into(answer, len(answer), socket.MSG_WAITALL) == len(answer)

    benchmark(turn)
    connection.abandon()
    theirs.close()

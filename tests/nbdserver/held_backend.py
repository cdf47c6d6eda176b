"""A connection over a real socket pair, with a backend that answers when the test says so."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from nbdserver import protocol as nbd
from nbdserver.buffers import ByteBudget
from nbdserver.connection import Connection, State
from nbdserver.counters import TransmissionCounters
from nbdserver.export import ExportInfo
from nbdserver.limits import Limits
from nbdserver.requests import Request
from nbdserver.terms import Terms
from tests.nbdserver.wire import LoopClient, eventually

MIB = 1 << 20
EXPORT = ExportInfo("vol", 256 * MIB)


class HoldingBackend:
    """Keeps requests until `answer` is called; every data byte of a READ is `R`."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.held: list[Request] = []
        self.disconnects = 0
        self.answers_at_once = False
        self.bug: Exception | None = None

    def submit(self, connection: Connection, requests: Sequence[Request]) -> None:
        if self.bug is not None:
            raise self.bug
        self.batches.append(len(requests))
        self.held += requests
        if self.answers_at_once:
            self.answer()

    def disconnected(self, connection: Connection) -> None:
        self.disconnects += 1

    def answer(self, count: int | None = None, error: int = 0) -> None:
        answered, self.held = self.held[:count], self.held[len(self.held[:count]) :]
        connections = set()
        for each in answered:
            assert each.connection is not None
            connections.add(each.connection)
            data = b"R" * each.length if each.command == nbd.NBD_CMD_READ else None
            each.connection.reply(each, error, data)
        for connection in connections:
            connection.send_replies()


class CountingSocket(socket.socket):
    """Counts the calls that send."""

    sends = 0

    def send(self, *arguments: Any) -> int:
        self.sends += 1
        return super().send(*arguments)

    def sendmsg(self, *arguments: Any) -> int:
        self.sends += 1
        return super().sendmsg(*arguments)


class Served:
    """A connection, its backend and its client."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        leftover: bytes = b"",
        budget: ByteBudget | None = None,
        tcp: bool = False,
        terms: Terms | None = None,
        counters: TransmissionCounters | None = None,
        start: bool = True,
        wire: socket.socket | None = None,
    ) -> None:
        ours, theirs = tcp_pair() if tcp else socket.socketpair()
        self.sock = CountingSocket(fileno=ours.detach())
        self.backend = HoldingBackend()
        self.client = LoopClient(theirs)
        self.budget = budget or ByteBudget()
        self.idle = 0
        self.connection = Connection(
            asyncio.get_running_loop(),
            self.sock,
            EXPORT,
            self.backend,
            leftover,
            limits,
            "the client",
            self.budget,
            terms,
            counters,
            wire,
        )
        self.connection.on_idle = self._on_idle
        if start:
            self.connection.start()

    def _on_idle(self, connection: Connection) -> None:
        assert connection is self.connection
        self.idle += 1

    async def held(self, count: int) -> None:
        await eventually(lambda: len(self.backend.held) == count, f"{count} requests are held")

    async def closed(self) -> None:
        await eventually(lambda: self.connection.state is State.CLOSED, "the connection is closed")

    def assert_ended_once(self) -> None:
        assert self.backend.disconnects == 1
        assert self.idle == 1
        assert self.connection.requests_in_flight == 0
        assert self.connection.bytes_in_flight == 0
        assert self.budget.used_bytes == 0
        self.client.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    return ours, theirs

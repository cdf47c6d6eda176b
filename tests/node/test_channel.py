"""The channel between supervisor and worker: framing, back-pressure, descriptors, the end.

Every test runs on stock asyncio and on uvloop.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from repl.node.channel import (
    MESSAGE_BYTES_MAX,
    OUTGOING_MESSAGES_MAX,
    Channel,
    Message,
    MessageTooBig,
    channel_pair,
)

DEADLINE_S = 20.0
Loop = Callable[[], asyncio.AbstractEventLoop]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def loop_factory(request: pytest.FixtureRequest) -> Loop:
    return request.param  # type: ignore[no-any-return]


def run(loop_factory: Loop, scenario: Callable[[], Awaitable[None]]) -> None:
    async def within_deadline() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(within_deadline())


class Inbox:
    """Collects what one end gets, and lets a test wait for a count of messages or the end."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.fds: list[int] = []
        self.closed = ""
        self._news = asyncio.Event()

    def take(self, message: Message, fds: list[int]) -> None:
        self.messages.append(message)
        self.fds += fds
        fds.clear()
        self._news.set()

    def leave_fds(self, message: Message, fds: list[int]) -> None:
        self.messages.append(message)
        self.fds += fds
        self._news.set()

    def end(self, reason: str) -> None:
        self.closed = reason
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()


@asynccontextmanager
async def ends() -> AsyncIterator[tuple[Channel, Channel, Inbox]]:
    loop = asyncio.get_running_loop()
    inbox = Inbox()
    one, other = channel_pair()
    left, right = Channel(one, loop), Channel(other, loop, inbox.take, inbox.end)
    try:
        yield left, right, inbox
    finally:
        left.close()
        right.close()


def test_many_messages_and_big_ones_arrive_whole_and_in_order(loop_factory: Loop) -> None:
    async def scenario() -> None:
        async with ends() as (left, _, inbox):
            sent = [{"n": n, "text": "é" * (50_000 if n % 10 == 0 else n)} for n in range(1000)]
            assert all(left.send(message) for message in sent)
            assert left.queued > 0
            await inbox.until(lambda: len(inbox.messages) == len(sent))
            assert inbox.messages == sent
            await left.drained()
            assert left.queued == 0

    run(loop_factory, scenario)


def test_message_of_the_largest_size_arrives_and_a_larger_one_raises(loop_factory: Loop) -> None:
    async def scenario() -> None:
        async with ends() as (left, _, inbox):
            overhead = len(json.dumps({"t": ""}, separators=(",", ":")))
            largest = {"t": "x" * (MESSAGE_BYTES_MAX - overhead)}
            assert left.send(largest)
            with pytest.raises(MessageTooBig):
                left.send({"t": largest["t"] + "x"})
            await inbox.until(lambda: bool(inbox.messages))
            assert inbox.messages == [largest]

    run(loop_factory, scenario)


def test_passed_descriptor_is_the_same_socket_and_close_on_exec(loop_factory: Loop) -> None:
    async def scenario() -> None:
        async with ends() as (left, _, inbox):
            near, far = socket.socketpair()
            with near, far:
                left.send({"kind": "client"}, far.fileno())
                await inbox.until(lambda: bool(inbox.fds))
                assert not os.get_inheritable(inbox.fds[0])
                with socket.socket(fileno=inbox.fds[0]) as received:
                    received.sendall(b"through")
                    assert near.recv(16) == b"through"

    run(loop_factory, scenario)


def test_queued_descriptor_survives_the_close_of_its_original(loop_factory: Loop) -> None:
    async def scenario() -> None:
        async with ends() as (left, _, inbox):
            while not left.queued:
                left.send({"t": "x" * 100_000})
            near, far = socket.socketpair()
            left.send({"kind": "client"}, far.fileno())
            far.close()
            await inbox.until(lambda: bool(inbox.fds))
            with near, socket.socket(fileno=inbox.fds[0]) as received:
                received.sendall(b"still open")
                assert near.recv(16) == b"still open"

    run(loop_factory, scenario)


@pytest.mark.parametrize("queued", [False, True])
def test_several_descriptors_arrive_with_one_message_in_order(
    loop_factory: Loop, queued: bool
) -> None:
    async def scenario() -> None:
        async with ends() as (left, _, inbox):
            while queued and not left.queued:
                left.send({"t": "x" * 100_000})
            pairs = [socket.socketpair() for _ in range(2)]
            left.send({"kind": "client"}, *(far.fileno() for _, far in pairs))
            for _, far in pairs:
                far.close()
            await inbox.until(lambda: bool(inbox.fds))
            for number, (near, _) in enumerate(pairs):
                with near, socket.socket(fileno=inbox.fds[number]) as received:
                    received.sendall(b"through")
                    assert near.recv(16) == b"through"

    run(loop_factory, scenario)


def test_descriptor_that_nobody_takes_is_closed(loop_factory: Loop) -> None:
    async def scenario() -> None:
        async with ends() as (left, right, inbox):
            right.on_message = inbox.leave_fds
            near, far = socket.socketpair()
            with near:
                left.send({"kind": "client"}, far.fileno())
                far.close()
                await inbox.until(lambda: bool(inbox.messages))
                assert near.recv(1) == b"", "its last copy was closed"

    run(loop_factory, scenario)


def test_close_drops_queued_descriptors(loop_factory: Loop) -> None:
    async def scenario() -> None:
        async with ends() as (left, _, _inbox):
            while not left.queued:
                left.send({"t": "x" * 100_000})
            near, far = socket.socketpair()
            with near:
                left.send({"kind": "client"}, far.fileno())
                far.close()
                left.close()
                assert near.recv(1) == b""
                assert not left.send({"kind": "too late"})

    run(loop_factory, scenario)


def test_end_that_does_not_read_never_blocks_and_is_refused_at_the_limit(
    loop_factory: Loop,
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        one, other = channel_pair()
        left = Channel(one, loop)
        with other:
            sent = 0
            while left.send({"n": sent}):
                sent += 1
            assert left.queued == OUTGOING_MESSAGES_MAX
            left.close()

    run(loop_factory, scenario)


def test_close_of_one_end_is_told_once_to_the_other_after_all_messages(loop_factory: Loop) -> None:
    async def scenario() -> None:
        async with ends() as (left, right, inbox):
            left.send({"n": 1})
            left.close()
            await inbox.until(lambda: bool(inbox.closed))
            assert inbox.messages == [{"n": 1}]
            assert right.closed
            assert "closed" in inbox.closed

    run(loop_factory, scenario)


@pytest.mark.parametrize("datagram", [b"{", b"[1]", b"\xff", b"x" * (MESSAGE_BYTES_MAX + 1)])
def test_datagram_that_is_no_message_closes_the_channel(
    loop_factory: Loop, datagram: bytes
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        inbox = Inbox()
        one, other = channel_pair()
        with one:
            right = Channel(other, loop, inbox.take, inbox.end)
            one.send(datagram)
            await inbox.until(lambda: bool(inbox.closed))
            assert inbox.messages == []
            assert right.closed

    run(loop_factory, scenario)


def test_closed_descriptor_is_the_senders_bug_and_costs_nothing_else(loop_factory: Loop) -> None:
    async def scenario() -> None:
        async with ends() as (left, _, inbox):
            near, far = socket.socketpair()
            fd = far.fileno()
            near.close()
            far.close()
            with pytest.raises(OSError, match="descriptor"):
                left.send({"kind": "client"}, fd)
            left.send({"n": 2})
            await inbox.until(lambda: bool(inbox.messages))
            assert inbox.messages == [{"n": 2}]

    run(loop_factory, scenario)

"""`GET /v1/events`: what is kept, what comes, gaps that show, and readers that hold nobody up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from repl.control import events as streams
from repl.control.server import ControlServer
from repl.node.event_ring import EventRing
from repl.node.listeners import listen_unix
from tests.control.test_server import RecordingBackend

DEADLINE_S = 60.0


class Served:
    """A control server with a small ring of events."""

    def __init__(self, folder: Path, ring: EventRing) -> None:
        self.path = str(folder / "control.sock")
        self.ring = ring
        self.listener = listen_unix(self.path, 0o600, "[node] control")
        self.server = ControlServer(self.listener.sock, RecordingBackend(), ring)
        self._count = 0

    def add(self, count: int = 1, volume: str = "r0", text: str = "text") -> None:
        for _ in range(count):
            self._count += 1
            # Different codes, so that none of them is one of too many.
            self.ring.add(f"CODE_{self._count}", "info", text, {}, volume=volume)

    @property
    def streams(self) -> streams.EventStreams:
        assert self.server.streams is not None
        return self.server.streams

    @asynccontextmanager
    async def get(self, query: str = "") -> AsyncIterator[aiohttp.ClientResponse]:
        connector = aiohttp.UnixConnector(self.path)
        async with (
            aiohttp.ClientSession("http://repld", connector=connector) as session,
            session.get(f"/v1/events{query}") as answer,
        ):
            yield answer

    async def numbers(self, query: str = "") -> list[int]:
        async with self.get(query) as answer:
            assert answer.status == 200, await answer.text()
            return [event["number"] for event in parsed(await answer.text())]


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


async def next_event(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    while True:
        line = await answer.content.readline()
        assert line, "the stream ended"
        if line.strip():
            event: dict[str, Any] = json.loads(line)
            return event


def run(scenario: Callable[[], Awaitable[None]], loop: Any = uvloop.new_event_loop) -> None:
    async def within_deadline() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(within_deadline())


@asynccontextmanager
async def serving(folder: Path, events_max: int = 1000) -> AsyncIterator[Served]:
    served = Served(folder, EventRing(events_max=events_max))
    await served.server.start()
    try:
        yield served
    finally:
        await served.server.close()
        served.listener.close()


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_kept_is_one_object_a_line(tmp_path: Path, loop: Any) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:
            assert await served.numbers() == []
            served.add(300)
            assert await served.numbers() == list(range(1, 301))
            assert await served.numbers("?after=298") == [299, 300]
            assert await served.numbers("?after=300") == []

    run(scenario, loop)


def test_one_volumes_events_are_asked_for_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:
            served.add(2)
            served.add(2, volume="r1")
            assert await served.numbers("?volume=r0") == [1, 2]
            async with served.get("?volume=r9") as answer:
                assert answer.status == 404
                assert (await answer.json())["error"]["code"] == "NO_SUCH_VOLUME"

    run(scenario)


@pytest.mark.parametrize("odd", ["x", "-1", "1.5", "9" * 30, "¹"])
def test_a_number_of_no_meaning_is_a_usage_error(tmp_path: Path, odd: str) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served, served.get(f"?after={odd}") as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["code"] == "USAGE"

    run(scenario)


def test_a_follower_gets_each_event_as_it_comes(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served:
            served.add(2)
            async with served.get("?follow=1&after=1") as answer:
                assert (await next_event(answer))["number"] == 2
                assert served.streams.followers == 1
                for number in range(3, 30):
                    served.add()
                    assert (await next_event(answer))["number"] == number

    run(scenario)


def test_older_events_that_are_gone_show_as_a_gap(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, events_max=5) as served:
            served.add(20)
            async with served.get("?after=7") as answer:
                gap, *rest = parsed(await answer.text())
            assert gap["code"] == "EVENTS_LOST"
            assert gap["fields"] == {"after": 7, "up_to": 15}
            assert [event["number"] for event in rest] == [16, 17, 18, 19, 20]
            assert await served.numbers() == [16, 17, 18, 19, 20], "who asks for all gets all"
            async with served.get("?after=5000") as answer:
                gap, *rest = parsed(await answer.text())
            assert "was never given here" in gap["text"] and len(rest) == 5

    run(scenario)


def test_a_slow_follower_gets_the_gap_and_is_dropped(tmp_path: Path) -> None:
    """It reads nothing while the ring passes it; nobody else waits for it."""

    async def scenario() -> None:
        async with serving(tmp_path, events_max=200) as served:
            reader, writer = await asyncio.open_unix_connection(served.path)
            writer.write(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            await writer.drain()
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(200):
                served.add(20, text="x" * 2000)
                await asyncio.sleep(0)
            assert len(await served.numbers()) == 200
            text = (await reader.read(64 << 20)).decode()
            while not text.endswith("0\r\n\r\n"):
                more = (await reader.read(64 << 20)).decode()
                assert more, "it ended without its last chunk"
                text += more
            writer.close()
            assert '"code": "EVENTS_LOST"' in text.splitlines()[-5] or "EVENTS_LOST" in text
            assert served.streams.dropped == 1
            assert served.streams.followers == 0

    run(scenario)


def test_a_follower_that_never_reads_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "STUCK_S", 0.2)

    async def scenario() -> None:
        async with serving(tmp_path, events_max=10_000) as served:
            stuck = socket.socket(socket.AF_UNIX)
            stuck.connect(served.path)
            stuck.sendall(b"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
            while not served.streams.followers:
                await asyncio.sleep(0.01)
            while served.streams.followers:
                served.add(50, text="x" * 2000)
                await asyncio.sleep(0.01)
            assert served.streams.dropped == 1
            stuck.close()

    run(scenario)


def test_a_follower_that_went_away_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "ALIVE_S", 0.05)

    async def scenario() -> None:
        async with serving(tmp_path) as served:
            async with served.get("?follow=1"):
                assert served.streams.followers == 1
            while served.streams.followers:
                await asyncio.sleep(0.01)
            assert served.streams.dropped == 0

    run(scenario)


def test_an_idle_stream_shows_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "ALIVE_S", 0.02)

    async def scenario() -> None:
        async with serving(tmp_path) as served, served.get("?follow=1") as answer:
            for _ in range(3):
                assert await answer.content.readline() == b"\n"

    run(scenario)


def test_so_many_followers_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FOLLOWERS_MAX", 1)

    async def scenario() -> None:
        async with serving(tmp_path) as served, served.get("?follow=1"):
            async with served.get("?follow=1") as answer:
                assert answer.status == 409
                assert (await answer.json())["error"]["code"] == "EVENTS_FOLLOWERS"
            assert await served.numbers() == [], "a question is no following"

    run(scenario)


def test_a_server_that_closes_ends_its_streams(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path) as served, served.get("?follow=1") as answer:
            served.add()
            assert (await next_event(answer))["number"] == 1
            closing = asyncio.create_task(served.server.close())
            assert await answer.content.read() == b""
            await closing

    run(scenario)

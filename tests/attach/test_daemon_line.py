"""The guardian's connection: lost, refused, held, gone, taken over; and its requests meanwhile."""

from __future__ import annotations

import asyncio
import socket
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nbdserver import protocol as nbd
from nbdserver.export import ExportInfo, Refusal
from repl.attach import daemon_line
from repl.attach.carrier import Carrier, negotiate
from repl.attach.daemon_line import DaemonLine
from repl.attach.history import Generation
from repl.attach.lifeline import Lifeline
from repl.attach.negotiation import Cause, NotAgreed, ask_for
from repl.errors import ReplError
from tests.attach.fake_nbd import ME, OTHER, SIZE_BYTES, FakeDaemon, FakeNbd
from tests.nbdserver.wire import read, write

DEADLINE_S = 20.0
DEAD_AFTER_S = 0.5
SECONDARY = Refusal(nbd.Reply.ERR_POLICY, "r0 is secondary on alpha")


@dataclass
class Scene:
    """A line that is open, the client of its relay, and whom it talks to."""

    server: FakeNbd
    daemon: FakeDaemon
    carrier: Carrier
    line: DaemonLine
    lifeline: Lifeline
    client: socket.socket

    async def ask(self, request: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.client, request)

    async def answer(self, payload_bytes: int = 0) -> bytes:
        """Return the payload of the next reply, which must be no error."""
        loop, wanted = asyncio.get_running_loop(), nbd.SIMPLE_REPLY_BYTES + payload_bytes
        received = b""
        while len(received) < wanted:
            more = await loop.sock_recv(self.client, wanted - len(received))
            assert more, "the relay hung up"
            received += more
        _, error, _ = nbd.SIMPLE_REPLY.unpack_from(received)
        assert error == 0
        return received[nbd.SIMPLE_REPLY_BYTES :]


async def until(seen: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not seen():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    with tempfile.TemporaryDirectory() as folder:
        server, daemon, carrier = FakeNbd(Path(folder) / "nbd"), FakeDaemon(), Carrier()
        lifeline = Lifeline(DEAD_AFTER_S)
        address = str(server.path)
        line = DaemonLine(address, "r0", daemon, carrier, lifeline, lambda: None)
        await server.start()
        export = await line.open()
        listener = socket.socket(socket.AF_UNIX)
        client = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(Path(folder) / "relay"))
            listener.listen()
            listener.setblocking(False)
            client.setblocking(False)
            client.connect(str(Path(folder) / "relay"))
            taking = asyncio.create_task(carrier.take_client(listener, export))
            agreed = await negotiate(client, ask_for("any"))
            await taking
            assert agreed.size_bytes == SIZE_BYTES
            yield Scene(server, daemon, carrier, line, lifeline, client)
        finally:
            carrier.drop_server()
            carrier.drop_client()
            listener.close()
            client.close()
            server.drop()
            await asyncio.sleep(0)


def play(story: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    """Run one test's story, with the line being kept; a line that fails fails the test."""

    async def run() -> None:
        async with scene() as on:
            keeping = asyncio.create_task(on.line.keep())
            telling = asyncio.create_task(story(on))
            try:
                await asyncio.wait({keeping, telling}, return_when=asyncio.FIRST_COMPLETED)
                if keeping.done():
                    keeping.result()
                await telling
            finally:
                keeping.cancel()
                telling.cancel()
                await asyncio.gather(keeping, telling, return_exceptions=True)

    asyncio.run(asyncio.wait_for(run(), DEADLINE_S))


def test_request_of_a_lost_connection_is_answered_by_the_next() -> None:
    async def story(on: Scene) -> None:
        await on.ask(write(512, b"before", cookie=1))
        await on.answer()
        on.server.mute = True
        await on.ask(write(512, b"during", cookie=2) + read(512, 6, cookie=3))
        await until(lambda: len(on.server.commands) == 3)
        on.server.mute = False
        on.server.drop()
        await on.answer()
        assert await on.answer(6) == b"during"
        assert on.server.connections == 2
        await until(lambda: on.lifeline.connected)

    play(story)


def test_reply_that_was_broken_off_is_given_once_and_whole() -> None:
    async def story(on: Scene) -> None:
        on.server.content[:1000] = b"x" * 1000
        on.server.cut_reply = True
        await on.ask(read(0, 1000, cookie=1))
        assert await on.answer(1000) == b"x" * 1000
        assert on.server.connections == 2

    play(story)


def test_daemon_that_is_gone_for_long_ends_the_line() -> None:
    async def story(on: Scene) -> None:
        await on.server.stop()
        await until(lambda: on.lifeline.is_dead(asyncio.get_running_loop().time()))
        assert "nothing answers on" in on.lifeline.reason

    play(story)


def test_daemon_that_comes_back_in_time_is_only_a_pause() -> None:
    async def story(on: Scene) -> None:
        await on.server.stop()
        await until(lambda: on.lifeline.reason.startswith("nothing answers"))
        await on.ask(read(0, 4, cookie=1))
        await on.server.start()
        assert await on.answer(4) == bytes(4)

    play(story)


def test_refused_line_waits_for_as_long_as_it_is_refused() -> None:
    async def story(on: Scene) -> None:
        on.server.answer = SECONDARY
        on.server.drop()
        await on.ask(read(0, 4, cookie=1))
        await until(lambda: on.lifeline.reason == SECONDARY.message)
        await asyncio.sleep(2 * DEAD_AFTER_S)
        assert on.lifeline.reason == SECONDARY.message
        on.server.answer = ExportInfo("r0", SIZE_BYTES)
        assert await on.answer(4) == bytes(4)

    play(story)


def test_held_line_waits_without_an_end() -> None:
    async def story(on: Scene) -> None:
        on.server.answer = None
        on.server.drop()
        await until(lambda: on.server.connections == 2)
        await asyncio.sleep(2 * DEAD_AFTER_S)
        assert not on.lifeline.is_dead(asyncio.get_running_loop().time())
        on.server.answer = ExportInfo("r0", SIZE_BYTES)
        await until(lambda: on.lifeline.connected)

    play(story)


def dies_of(change: Callable[[Scene], Awaitable[None] | None], reason: str) -> None:
    """Check that after `change` the line ends, and that nothing was sent over a new connection."""

    async def run() -> None:
        async with scene() as on:
            on.server.mute = True
            await on.ask(write(0, b"stale", cookie=1))
            await until(lambda: len(on.server.commands) == 1)
            on.server.mute = False
            changing = change(on)
            if changing is not None:
                await changing
            on.server.drop()
            await on.line.keep()
            assert reason in on.lifeline.reason
            assert len(on.server.commands) == 1 and not any(on.server.content)

    asyncio.run(asyncio.wait_for(run(), DEADLINE_S))


def test_volume_that_another_node_had_is_never_written_to_again() -> None:
    def other_was_primary(on: Scene) -> None:
        on.daemon.entries = [Generation(3, ME), Generation(2, OTHER), Generation(1, ME)]

    dies_of(other_was_primary, "another node has been primary")


def test_volume_that_another_node_has_ends_the_line_while_it_is_refused() -> None:
    def other_is_primary(on: Scene) -> None:
        on.daemon.entries = [Generation(2, OTHER), Generation(1, ME)]
        on.server.answer = SECONDARY

    dies_of(other_is_primary, "another node has been primary")


def test_volume_that_another_node_has_ends_a_line_that_is_held() -> None:
    def other_is_primary(on: Scene) -> None:
        on.daemon.entries = [Generation(2, OTHER), Generation(1, ME)]
        on.server.answer = None

    dies_of(other_is_primary, "another node has been primary")


def test_volume_that_shrank_ends_the_line() -> None:
    def shrink(on: Scene) -> None:
        on.server.answer = ExportInfo("r0", SIZE_BYTES - 4096)

    dies_of(shrink, "smaller")


def test_volume_that_is_no_longer_configured_ends_the_line() -> None:
    def remove(on: Scene) -> None:
        on.server.answer = Refusal(nbd.Reply.ERR_UNKNOWN, "alpha has no volume r0")

    dies_of(remove, "alpha has no volume r0")


def test_own_generations_made_meanwhile_do_not_matter() -> None:
    async def story(on: Scene) -> None:
        on.daemon.entries = [Generation(3, ME), Generation(2, ME), Generation(1, ME)]
        on.server.drop()
        await on.ask(read(0, 4, cookie=1))
        await on.answer(4)
        # What was seen once need not be kept for ever: the lineage forgets old entries.
        on.daemon.entries = [Generation(4, ME), Generation(3, ME)]
        on.server.drop()
        await on.ask(read(0, 4, cookie=2))
        await on.answer(4)

    play(story)


def test_line_waits_while_the_history_cannot_be_read() -> None:
    async def story(on: Scene) -> None:
        on.daemon.reachable = False
        on.server.drop()
        await on.ask(read(0, 4, cookie=1))
        await until(lambda: on.lifeline.reason == "No repld answers.")
        on.daemon.reachable = True
        await on.answer(4)

    play(story)


def test_long_lived_line_keeps_up_with_the_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_line, "GENERATION_LOOK_S", 0.01)

    async def story(on: Scene) -> None:
        on.daemon.entries = [Generation(2, ME), Generation(1, ME)]
        looks = on.daemon.looks
        await until(lambda: on.daemon.looks > looks + 1)
        # The one it was opened under has aged out.
        on.daemon.entries = [Generation(3, ME), Generation(2, ME)]
        on.server.drop()
        await on.ask(read(0, 4, cookie=1))
        await on.answer(4)

    play(story)


def test_first_connection_says_why_it_was_refused() -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            server, daemon = FakeNbd(Path(folder) / "nbd"), FakeDaemon()
            line = DaemonLine(
                str(server.path), "r0", daemon, Carrier(), Lifeline(1.0), lambda: None
            )
            with pytest.raises(FileNotFoundError):
                await line.open()
            await server.start()
            server.answer = SECONDARY
            with pytest.raises(NotAgreed, match="secondary on alpha") as refused:
                await line.open()
            assert refused.value.cause is Cause.REFUSED
            server.answer = ExportInfo("r0", SIZE_BYTES)
            daemon.reachable = False
            with pytest.raises(ReplError, match="No repld"):
                await line.open()
            await server.stop()

    asyncio.run(asyncio.wait_for(run(), DEADLINE_S))


def test_client_that_does_not_read_stops_the_server_from_being_read() -> None:
    async def story(on: Scene) -> None:
        count = 400
        on.client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        asked = b"".join(read(0, SIZE_BYTES, cookie=n) for n in range(count))
        await on.ask(asked)
        await until(lambda: on.carrier._server is not None and not on.carrier._server.reading)
        seen = set()
        for _ in range(count):
            loop, wanted = asyncio.get_running_loop(), nbd.SIMPLE_REPLY_BYTES + SIZE_BYTES
            received = bytearray()
            while len(received) < wanted:
                received += await loop.sock_recv(on.client, wanted - len(received))
            seen.add(struct.unpack_from(">Q", received, 8)[0])
        assert seen == set(range(count))

    play(story)


def test_client_that_breaks_the_rules_is_dropped_and_the_line_stays() -> None:
    async def story(on: Scene) -> None:
        await on.ask(b"\0" * 28)
        assert await asyncio.get_running_loop().sock_recv(on.client, 1) == b""
        await until(on.carrier.client_gone.is_set)
        assert on.lifeline.connected

    play(story)

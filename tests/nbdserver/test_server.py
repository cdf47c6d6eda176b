"""The front: deadlines, caps, held exports, and that no byte is lost when a socket is handed on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from nbdserver.admission import Credentials
from nbdserver.crowd import SHELTER_S
from nbdserver.errors import ListenError
from nbdserver.export import ExportInfo, Refusal
from nbdserver.handshake import Agreed
from nbdserver.limits import Limits
from nbdserver.protocol import Option, Reply
from nbdserver.server import Server
from tests.nbdserver.conftest import Run
from tests.nbdserver.wire import (
    FIXED_NEWSTYLE_NO_ZEROES,
    GREETING_BYTES,
    LoopClient,
    eventually,
    go,
    option,
    option_replies,
    read,
)

EXPORT = ExportInfo("vol", 1 << 20)
GO_REPLY_BYTES = (20 + 12) + (20 + 14) + 20


class OneExport:
    """A lookup whose answer to `find` may be kept back."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.released.set()
        self.asked: list[str] = []
        self.cancelled = 0
        self.bug: Exception | None = None

    async def find(self, name: str, option: Option, client: Credentials) -> ExportInfo | Refusal:
        self.asked.append(name)
        if self.bug is not None:
            raise self.bug
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return EXPORT if name == "vol" else Refusal(Reply.ERR_UNKNOWN, "no such export")

    async def list(self, client: Credentials) -> Sequence[tuple[str, str]]:
        return [("vol", "")]


class Front:
    """A server on a Unix socket that keeps what it was agreed on."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.lookup = OneExport()
        self.path = folder / "front.sock"
        self.agreed: list[tuple[socket.socket, Agreed, str, socket.socket | None]] = []
        self.server = Server(self.lookup, lambda *agreed: self.agreed.append(agreed), limits)
        self.server.listen_unix(self.path)

    async def client(self, data: bytes = b"") -> LoopClient:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        client = LoopClient(sock)
        await client.send(data)
        return client

    async def stop(self) -> None:
        await self.server.stop()
        for sock, *_ in self.agreed:
            sock.close()
        assert self.server.handshakes == self.server.held == 0
        assert not self.path.exists()


def limits(deadline_s: float = 10.0, **counts: int) -> Limits:
    return Limits(handshake_deadline_s=deadline_s, **counts)


def test_agreed_socket_is_handed_on_with_every_later_byte(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path)
        early = read(0, 1, cookie=1) + read(0, 2, cookie=2)[:5]
        client = await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol") + early)
        await eventually(lambda: bool(front.agreed), "they agree")
        sock, agreed, peer_name, wire = front.agreed[0]
        assert wire is None
        leftover = agreed.leftover
        late = read(0, 2, cookie=2)[5:]
        await client.send(late)
        rest = early[len(leftover) :] + late
        received = leftover
        while len(received) < len(early + late):
            received += await asyncio.get_running_loop().sock_recv(sock, 1000)
        assert received == early + late
        assert rest.endswith(late)
        assert agreed.export is EXPORT
        assert peer_name.startswith("unix pid ")
        assert len(await client.receive(GREETING_BYTES + GO_REPLY_BYTES)) == 18 + GO_REPLY_BYTES
        assert (front.server.clients, front.server.counters.agreed) == (1, 1)
        front.server.client_gone()
        assert front.server.clients == 0
        client.close()
        await front.stop()

    run(scenario())


def test_byte_at_a_time_client_gets_the_same(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path)
        client = await front.client()
        for byte in FIXED_NEWSTYLE_NO_ZEROES + option(Option.LIST) + go(b"nope") + go(b"vol"):
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        await eventually(lambda: bool(front.agreed), "they agree")
        assert front.lookup.asked == ["nope", "vol"]
        assert front.agreed[0][1].leftover == b""
        client.close()
        await front.stop()

    run(scenario())


def test_silent_client_is_dropped_at_the_deadline(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        front = Front(tmp_path, limits(deadline_s=0.1))
        client = await front.client(FIXED_NEWSTYLE_NO_ZEROES)
        assert len(await client.read_to_end()) == GREETING_BYTES
        assert front.server.counters.timed_out == 1
        client.close()
        await front.stop()

    run(scenario())
    assert "the handshake took too long" in caplog.text


def test_dripping_client_has_one_deadline_for_the_whole_handshake(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path, limits(deadline_s=0.2))
        client = await front.client(FIXED_NEWSTYLE_NO_ZEROES)
        try:
            while not front.server.counters.timed_out:
                await client.send(option(Option.LIST))
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass  # Closed between the check and the next option.
        await eventually(lambda: front.server.counters.timed_out == 1, "it is dropped")
        client.close()
        await front.stop()

    run(scenario())


def test_held_export_outlives_the_deadline_and_is_then_agreed(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path, limits(deadline_s=0.15))
        front.lookup.released.clear()
        client = await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
        await client.receive(GREETING_BYTES)
        begun_s = asyncio.get_running_loop().time()
        await eventually(
            lambda: asyncio.get_running_loop().time() > begun_s + 0.3, "twice the deadline passes"
        )
        assert front.server.held == 1
        front.lookup.released.set()
        await eventually(lambda: bool(front.agreed), "they agree")
        assert len(await client.receive(GO_REPLY_BYTES)) == GO_REPLY_BYTES
        client.close()
        await front.stop()

    run(scenario())


def test_client_that_hangs_up_while_held_cancels_its_question(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path)
        front.lookup.released.clear()
        client = await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
        # A question that has not begun would be cancelled without a trace.
        await eventually(lambda: front.lookup.asked == ["vol"], "it is held")
        client.close()
        await eventually(lambda: front.lookup.cancelled == 1, "the question is cancelled")
        await eventually(lambda: front.server.handshakes == 0, "its place is free")
        await front.stop()

    run(scenario())


def test_flood_of_a_held_client_ends_only_that_client(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path)
        front.lookup.released.clear()
        patient = await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
        flooding = await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
        await eventually(lambda: front.server.held == 2, "both are held")
        # It may be dropped while it is still sending.
        with contextlib.suppress(ConnectionError):
            await flooding.send(bytes(1 << 20))
        await eventually(lambda: front.server.counters.dropped == 1, "the flood is dropped")
        front.lookup.released.set()
        await eventually(lambda: len(front.agreed) == 1, "the other one is served")
        patient.close()
        flooding.close()
        await front.stop()

    run(scenario())


def test_held_clients_do_not_use_up_the_handshakes(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path, limits(handshakes=1, held=2))
        front.lookup.released.clear()
        held = []
        for count in (1, 2):
            held.append(await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol")))
            await eventually(lambda count=count: front.server.held == count, "it is held")  # type: ignore[misc]
        third = await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
        received = await third.receive(GREETING_BYTES + 20)
        assert received[GREETING_BYTES + 12 :][:4] == Reply.ERR_POLICY.to_bytes(4, "big")
        fourth = await front.client()
        assert await fourth.read_to_end() == b""
        assert front.server.counters.over_limit == 2
        met = front.server.counters.limits
        assert (met["held"], met["handshakes"]) == (1, 1)
        for client in (*held, third, fourth):
            client.close()
        await front.stop()

    run(scenario())


def test_silent_handshakes_make_way_once_they_had_their_time(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path, limits(handshakes=3))
        silent = [await front.client() for _ in range(3)]
        for client in silent:
            await client.receive(GREETING_BYTES)
        early = await front.client()
        assert await early.read_to_end() == b"", "all of them had no time yet"
        loop = asyncio.get_running_loop()
        later_s = loop.time() + SHELTER_S
        await eventually(lambda: loop.time() > later_s, "their time passes")
        honest = await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
        await eventually(lambda: bool(front.agreed), "who comes then is served")
        assert await silent[0].read_to_end() == b"", "in the place of the oldest"
        assert front.server.handshakes == 2
        assert front.server.counters.limits["handshakes"] == 2
        for client in (*silent, early, honest):
            client.close()
        await front.stop()

    run(scenario())


def test_agreement_is_not_taken_away_by_a_newcomer(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path, limits(handshakes=1, held=20))
        front.lookup.released.clear()
        held = []
        for count in range(1, 11):
            held.append(await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol")))
            await eventually(lambda count=count: front.server.held == count, "it is held")  # type: ignore[misc]
        front.lookup.released.set()
        newcomers = [await front.client() for _ in range(10)]
        await eventually(lambda: len(front.agreed) == 10, "all that were held are served")
        for client in (*held, *newcomers):
            client.close()
        await front.stop()

    run(scenario())


def test_clients_beyond_the_limit_are_refused_with_a_reason(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path, limits(clients=1))
        clients = [await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))]
        await eventually(lambda: len(front.agreed) == 1, "the first is served")
        clients.append(await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol")))
        await eventually(lambda: front.server.counters.over_limit == 1, "the second is refused")
        front.server.client_gone()
        await clients[1].send(go(b"vol"))
        await eventually(lambda: len(front.agreed) == 2, "now it is served")
        for client in clients:
            client.close()
        await front.stop()

    run(scenario())


@pytest.mark.parametrize(
    "noise", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"\xff" * 99]
)
def test_noise_is_dropped_with_one_line_and_others_go_on(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, noise: bytes
) -> None:
    async def scenario() -> None:
        front = Front(tmp_path)
        noisy = await front.client(noise)
        assert len(await noisy.read_to_end()) == GREETING_BYTES
        quiet = await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
        await eventually(lambda: bool(front.agreed), "the other one is served")
        assert front.server.counters.dropped == 1
        noisy.close()
        quiet.close()
        await front.stop()

    with caplog.at_level(logging.INFO):
        run(scenario())
    assert len([each for each in caplog.records if each.name == "nbdserver"]) == 1


def test_want_of_descriptors_is_said_once_and_ridden_over(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbdserver.server.ACCEPT_RETRY_S", 0.01)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        front = Front(tmp_path)
        await asyncio.sleep(0)
        early = await front.client()
        await early.receive(GREETING_BYTES)
        used = len(os.listdir("/proc/self/fd"))
        kept = resource.getrlimit(resource.RLIMIT_NOFILE)
        client = socket.socket(socket.AF_UNIX)
        client.setblocking(False)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(used, client.fileno()), kept[1]))
        try:
            await loop.sock_connect(client, str(front.path))
            await eventually(lambda: "cannot accept" in caplog.text, "there is none for it")
            later_s = loop.time() + 0.1
            await eventually(lambda: loop.time() > later_s, "it is tried again and again")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, kept)
        waiting = LoopClient(client)
        assert len(await waiting.receive(GREETING_BYTES)) == GREETING_BYTES
        for each in (early, waiting):
            each.close()
        await front.stop()

    run(scenario())
    assert caplog.text.count("cannot accept a client: Too many open files") == 1


def test_bug_in_the_lookup_ends_one_client_and_is_loud(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        seen: list[object] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: seen.append(context["exception"])
        )
        front = Front(tmp_path)
        front.lookup.bug = ZeroDivisionError("our bug")
        client = await front.client(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
        assert len(await client.read_to_end()) == GREETING_BYTES
        await eventually(lambda: seen == [front.lookup.bug], "the bug is shown")
        client.close()
        await front.stop()

    run(scenario())


def test_a_thousand_quick_connections_leave_nothing_behind(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path)
        for number in range(1000):
            client = await front.client(FIXED_NEWSTYLE_NO_ZEROES[: number % 5])
            client.close()
            if number % 50 == 49:
                # More than the backlog would make the test wait for its own server.
                due = number + 1
                await eventually(
                    lambda due=due: front.server.counters.accepted == due,  # type: ignore[misc]
                    "the server keeps up",
                )
        await eventually(lambda: front.server.handshakes == 0, "all are gone")
        last = await front.client(FIXED_NEWSTYLE_NO_ZEROES + option(Option.ABORT))
        replies = option_replies((await last.read_to_end())[GREETING_BYTES:])
        assert [(each.option, each.type) for each in replies] == [(Option.ABORT, Reply.ACK)]
        last.close()
        await front.stop()

    run(scenario())


def test_busy_address_is_refused_before_anything_is_served(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path)
        other = Server(front.lookup, lambda *_: None)
        with pytest.raises(ListenError, match="another program"):
            other.listen_unix(front.path)
        port = front.server.listen_tcp("127.0.0.1", 0)
        with pytest.raises(ListenError, match="another program"):
            other.listen_tcp("127.0.0.1", port)
        await other.stop()
        await front.stop()

    run(scenario())


def test_stop_leaves_a_socket_file_of_somebody_else(run: Run, tmp_path: Path) -> None:
    async def scenario() -> None:
        front = Front(tmp_path)
        front.path.unlink()
        with socket.socket(socket.AF_UNIX) as somebody:
            somebody.bind(str(front.path))
            await front.server.stop()
            assert front.path.exists()

    run(scenario())

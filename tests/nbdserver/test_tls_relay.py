"""One client's TLS in a proxy process: ends, stalls and damage, with both sides under control."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nbdserver.tls import TlsServerFiles, server_context
from nbdserver.tls_relay import Relay
from tests.certificates import make_certificates
from tests.key_updates import KeyUpdates
from tests.nbdserver.tls_client import TlsEnd, client_context
from tests.nbdserver.wire import DEADLINE_S, eventually


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"), "server")


def play(script: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await script()

    asyncio.run(run())


class Relayed:
    """A relay, its client's end, and the server's end of what is plaintext."""

    def __init__(self, folder: Path) -> None:
        self._context = client_context(folder / "ca.crt")
        files = TlsServerFiles(str(folder / "server.crt"), str(folder / "server.key"))
        self.near, far = socket.socketpair()
        self.ended = 0
        self.failures: list[str] = []
        loop = asyncio.get_running_loop()
        self.relay = Relay(loop, far, server_context(files), self._shaken, self._ended)

    def _shaken(self, relay: Relay, failure: str) -> None:
        self.failures.append(failure)
        if not failure:
            self.server, side = socket.socketpair()
            self.server.setblocking(False)
            relay.join(side)

    def _ended(self, _relay: Relay) -> None:
        self.ended += 1

    async def begin(self) -> TlsEnd:
        """Shake hands in a thread, because the client blocks."""
        self.near.settimeout(DEADLINE_S)
        end = await asyncio.to_thread(TlsEnd, self.near, self._context)
        await eventually(lambda: self.failures == [""], "both are through")
        return end

    def close(self) -> None:
        self.near.close()
        self.server.close()


def test_client_that_takes_nothing_of_a_server_that_is_gone_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbdserver.tls_relay.LOOK_S", 0.05)

    async def script() -> None:
        relayed = Relayed(folder)
        await relayed.begin()
        loop = asyncio.get_running_loop()
        looks: list[bool] = []

        def look(is_gone: Callable[[], bool] = relayed.relay._server_is_gone) -> bool:
            looks.append(is_gone())
            return looks[-1]

        monkeypatch.setattr(relayed.relay, "_server_is_gone", look)
        sending = asyncio.create_task(loop.sock_sendall(relayed.server, bytes(32 << 20)))
        await eventually(lambda: len(looks) == 3, "the client is full, and looked after")
        assert (looks, relayed.ended) == ([False] * 3, 0), "a server that is there decides itself"
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        relayed.server.close()
        await eventually(lambda: relayed.ended == 1, "it is given up")
        relayed.close()

    play(script)


def test_bytes_changed_on_the_way_end_the_connection_and_are_not_passed_on(folder: Path) -> None:
    async def script() -> None:
        relayed = Relayed(folder)
        end = await relayed.begin()
        end.sendall(b"whole")
        assert await asyncio.get_running_loop().sock_recv(relayed.server, 100) == b"whole"
        end.session.write(b"damaged")
        record = bytearray(end._outgoing.read())
        record[-1] ^= 1
        relayed.near.sendall(record)
        await eventually(lambda: relayed.ended == 1, "it ends")
        assert await asyncio.get_running_loop().sock_recv(relayed.server, 100) == b""
        relayed.close()

    play(script)


def test_client_that_asks_for_new_keys_without_end_and_reads_nothing_is_not_read_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbdserver.tls_relay.UNSENT_BYTES_MAX", 4096)

    async def script() -> None:
        loop = asyncio.get_running_loop()
        relayed = Relayed(folder)
        relayed._context.keylog_filename = str(tmp_path / "keys")
        end = await relayed.begin()
        cipher = end.session.cipher()
        assert cipher is not None
        updates = KeyUpdates(tmp_path / "keys", cipher[0])
        relayed.near.setblocking(False)
        for side in (relayed.near, relayed.relay._client):
            side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        flood = b"".join(updates.record() for _ in range(3000))
        sending = asyncio.create_task(loop.sock_sendall(relayed.near, flood))
        await eventually(lambda: len(relayed.relay._to_client) > 4096, "its answers pile up")
        for _ in range(500):
            await asyncio.sleep(0)
        # What one receive asked for may come on top.
        assert len(relayed.relay._to_client) < len(flood) / 2
        assert not sending.done()
        answers = asyncio.create_task(_read_all(relayed.near))
        await sending
        assert relayed.ended == 0, "who reads his answers may ask on"
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)
        relayed.relay.close()
        relayed.close()

    play(script)


async def _read_all(sock: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
        pass


def test_error_of_ours_ends_one_client_and_is_loud(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def script() -> None:
        relayed, other = Relayed(folder), Relayed(folder)
        end = await relayed.begin()
        honest = await other.begin()

        def broken(_data: memoryview) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(relayed.relay, "_send_to_server", broken)
        end.sendall(b"x")
        await eventually(lambda: relayed.ended == 1, "it ends")
        assert "ZeroDivisionError: a bug" in capsys.readouterr().err
        honest.sendall(b"goes on")
        assert await asyncio.get_running_loop().sock_recv(other.server, 100) == b"goes on"
        relayed.close()
        other.relay.close()
        other.close()

    play(script)


def test_client_that_has_said_goodbye_still_gets_answers(folder: Path) -> None:
    async def script() -> None:
        loop = asyncio.get_running_loop()
        relayed = Relayed(folder)
        end = await relayed.begin()
        end.sendall(b"last question")
        end.say_goodbye()
        assert await loop.sock_recv(relayed.server, 100) == b"last question"
        assert await loop.sock_recv(relayed.server, 100) == b""
        await loop.sock_sendall(relayed.server, b"last answer")
        assert await asyncio.to_thread(end.recv, 100) == b"last answer"
        relayed.server.close()
        assert await asyncio.to_thread(end.recv, 100) == b""
        assert end.server_said_goodbye
        await eventually(lambda: relayed.ended == 1, "it ends")
        relayed.close()

    play(script)


def test_client_that_leaves_in_its_handshake_is_reported_once(folder: Path) -> None:
    async def script() -> None:
        relayed = Relayed(folder)
        relayed.near.sendall(b"\x16\x03\x01")
        relayed.near.close()
        await eventually(lambda: relayed.ended == 1, "it ends")
        (failure,) = relayed.failures
        assert failure

    play(script)


def test_old_protocol_is_refused_with_an_alert_that_the_client_sees(folder: Path) -> None:
    async def script() -> None:
        relayed = Relayed(folder)
        relayed._context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            await relayed.begin()
        await eventually(lambda: bool(relayed.failures), "it is reported")
        relayed.near.close()
        await eventually(lambda: relayed.ended == 1, "it ends")
        assert relayed.failures == ["unsupported protocol"]

    play(script)

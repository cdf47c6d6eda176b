"""A proxy process gives a client's plaintext and identity, or the reason why there is none."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from nbdserver.admission import Credentials
from nbdserver.tls import TlsRefused, TlsServerFiles
from nbdserver.tls_proxies import TlsProxies
from nbdserver.tls_proxy import Proxy
from tests.certificates import make_certificates, make_client
from tests.nbdserver.tls_client import TlsEnd, client_context

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_certificates(tmp_path_factory.mktemp("tls"), "server")
    make_client(folder, "client")
    return folder


def play(script: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await script()

    asyncio.run(run())


@contextlib.asynccontextmanager
async def proxies(
    folder: Path, *, asks: bool = False, handshake_s: float = 10.0
) -> AsyncIterator[tuple[TlsProxies, list[str]]]:
    """One proxy, and what is said of lost ones. Afterwards no process is left."""
    authority = str(folder / "ca.crt") if asks else ""
    files = TlsServerFiles(str(folder / "server.crt"), str(folder / "server.key"), authority)
    lost: list[str] = []
    made = TlsProxies(files, handshake_s, 1, lost.append)
    made.start()
    pids = made.pids
    yield made, lost
    pids += made.pids
    await made.close()
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


class Call:
    """A client's end and the server's, which has the plaintext and the client's connection."""

    def __init__(self, folder: Path, *, certified: bool = False) -> None:
        self.context = client_context(folder / "ca.crt", folder / "client" if certified else None)
        self.near, self.wire = socket.socketpair()
        self.writer: asyncio.StreamWriter | None = None

    async def __aenter__(self) -> Call:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.wire.close()
        if self.writer is not None:
            # The loop's transport has the socket, and may not find another one at its number.
            self.writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await self.writer.wait_closed()
        self.near.close()

    async def secure(self, proxies: TlsProxies) -> Credentials:
        opening = asyncio.create_task(
            asyncio.open_connection(sock=self.near, ssl=self.context, server_hostname="server")
        )
        try:
            self.plain, credentials = await proxies.secure(self.wire)
        except TlsRefused:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
            raise
        self.reader, self.writer = await opening
        return credentials

    def close(self) -> None:
        """As the server does."""
        self.plain.close()
        self.wire.close()


async def works(folder: Path, proxies: TlsProxies, *, certified: bool = False) -> None:
    """An honest client gets through."""
    async with Call(folder, certified=certified) as call:
        await call.secure(proxies)
        assert call.writer is not None
        call.writer.write(b"honest")
        assert await asyncio.get_running_loop().sock_recv(call.plain, 100) == b"honest"
        call.close()


@pytest.mark.parametrize("asks", [True, False])
def test_bytes_pass_both_ways_and_the_client_is_named(folder: Path, asks: bool) -> None:
    async def script() -> None:
        loop = asyncio.get_running_loop()
        async with proxies(folder, asks=asks) as (one, _), Call(folder, certified=asks) as call:
            credentials = await call.secure(one)
            assert credentials.encrypted
            assert credentials.names == (("client",) if asks else ())
            assert bool(credentials.fingerprint) == asks
            sent, received = os.urandom(3 << 20), bytearray()
            assert call.writer is not None
            call.writer.write(sent)
            answering = asyncio.create_task(loop.sock_sendall(call.plain, sent[::-1]))
            while len(received) < len(sent):
                received += await loop.sock_recv(call.plain, 1 << 20)
            assert received == sent
            assert await call.reader.readexactly(len(sent)) == sent[::-1]
            await answering
            call.plain.close()
            assert await call.reader.read() == b""
            call.close()

    play(script)


def test_client_without_a_certificate_is_refused_where_one_is_asked_for(folder: Path) -> None:
    async def script() -> None:
        async with proxies(folder, asks=True) as (one, _):
            async with Call(folder) as call:
                with pytest.raises(TlsRefused, match="certificate"):
                    await call.secure(one)
            await works(folder, one, certified=True)

    play(script)


@pytest.mark.parametrize("noise", [b"NBDMAGIC" * 40, b"\x16\x03\x01\xff\xff" + bytes(70000)])
def test_client_that_speaks_no_tls_is_refused_and_hurts_nobody(folder: Path, noise: bytes) -> None:
    async def script() -> None:
        async with proxies(folder) as (one, lost):
            async with Call(folder) as call:
                call.near.sendall(noise)
                with pytest.raises(TlsRefused):
                    await one.secure(call.wire)
            await works(folder, one)
            assert lost == []

    play(script)


def test_client_of_an_older_tls_is_refused(folder: Path) -> None:
    async def script() -> None:
        async with proxies(folder) as (one, _), Call(folder) as call:
            call.context.maximum_version = ssl.TLSVersion.TLSv1_2
            with pytest.raises(TlsRefused, match="unsupported protocol"):
                await call.secure(one)

    play(script)


def test_silent_client_is_given_up_after_the_deadline(folder: Path) -> None:
    async def script() -> None:
        async with proxies(folder, handshake_s=0.5) as (one, lost), Call(folder) as call:
            with pytest.raises(TlsRefused, match="too long"):
                await one.secure(call.wire)
            assert lost == []

    play(script)


def test_missing_certificate_is_the_reason_and_a_new_one_is_used_at_once(
    folder: Path, tmp_path: Path
) -> None:
    async def script() -> None:
        copied = make_certificates(tmp_path / "own", "server")
        kept = (copied / "server.crt").read_bytes()
        async with proxies(copied) as (one, _):
            await works(copied, one)
            (copied / "server.crt").unlink()
            async with Call(copied) as call:
                with pytest.raises(TlsRefused, match="no certificate: No such file"):
                    await call.secure(one)
            (copied / "server.crt").write_bytes(kept)
            await works(copied, one)

    play(script)


def test_dead_proxy_is_replaced_for_the_next_client(folder: Path) -> None:
    async def script() -> None:
        async with proxies(folder) as (one, lost):
            async with Call(folder) as call:
                await call.secure(one)
                (pid,) = one.pids
                os.kill(pid, 9)
                assert await asyncio.get_running_loop().sock_recv(call.plain, 1) == b""
                call.wire.close()
                with contextlib.suppress(ConnectionError, ssl.SSLError):
                    assert await call.reader.read() == b"", "its clients end with it"
                call.close()
            while one.pids:
                await asyncio.sleep(0.01)
            assert lost == [f"TLS proxy process {pid} ended; its clients are disconnected"]
            await works(folder, one)
            assert one.pids != [pid]

    play(script)


def test_client_that_comes_before_the_death_is_noticed_is_served_all_the_same(
    folder: Path,
) -> None:
    async def script() -> None:
        async with proxies(folder) as (one, lost):
            await works(folder, one)
            (pid,) = one.pids
            os.kill(pid, 9)
            # Without a turn of the loop in between: only sending to it can show it.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            await works(folder, one)
            assert len(lost) == 1

    play(script)


def test_proxy_that_hangs_is_given_up_and_replaced(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbdserver.tls_proxies.ANSWER_S", 0.2)

    async def script() -> None:
        async with proxies(folder, handshake_s=0.3) as (one, lost):
            (pid,) = one.pids
            os.kill(pid, 19)
            async with Call(folder) as call:
                with pytest.raises(TlsRefused, match="ended"):
                    await call.secure(one)
            assert lost == [
                f"TLS proxy process {pid} does not answer; its clients are disconnected"
            ]

    play(script)


@pytest.mark.parametrize(
    "failure", [OSError(errno.EMFILE, "no more"), ZeroDivisionError("no more")]
)
def test_client_that_finds_no_place_in_the_proxy_gets_an_answer(
    folder: Path, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one the server would give the whole process up, with all of its clients."""

    def none_left() -> None:
        raise failure

    async def script() -> None:
        loop = asyncio.get_running_loop()
        files = TlsServerFiles(str(folder / "server.crt"), str(folder / "server.key"))
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near, wire = socket.socketpair()
        with ours, its, near, wire:
            proxy = Proxy(loop, its, json.dumps(asdict(files) | {"handshake_s": 10.0}))
            monkeypatch.setattr("nbdserver.tls_proxy.socket.socketpair", none_left)
            ours.setblocking(False)
            socket.send_fds(ours, [b"7"], [wire.fileno()])
            wire.close()
            near.settimeout(DEADLINE_S)
            await asyncio.to_thread(TlsEnd, near, client_context(folder / "ca.crt"))
            answer = json.loads(await loop.sock_recv(ours, 1000))
            assert answer["number"] == 7
            assert "no more" in answer["error"]
            assert await asyncio.to_thread(near.recv, 1) == b"", "and it is closed"
            assert not proxy._relays
            loop.remove_reader(its.fileno())

    play(script)


def test_plaintext_is_not_inherited_by_a_process_that_is_started_later(folder: Path) -> None:
    async def script() -> None:
        async with proxies(folder) as (one, lost), Call(folder) as call:
            await call.secure(one)
            assert not call.plain.get_inheritable()
            # As when another proxy died: its successor must not keep this client's connection.
            with subprocess.Popen(["sleep", "60"], close_fds=False) as later:
                call.close()
                try:
                    assert await call.reader.read() == b""
                finally:
                    later.kill()
            assert lost == []

    play(script)


def test_closed_proxies_have_delivered_what_was_sent(folder: Path) -> None:
    async def script() -> None:
        loop = asyncio.get_running_loop()
        async with Call(folder) as call:
            async with proxies(folder) as (one, _):
                await call.secure(one)
                sent = os.urandom(1 << 20)
                sending = asyncio.create_task(loop.sock_sendall(call.plain, sent))
                await sending
                call.plain.close()
                call.wire.close()
                receiving = asyncio.create_task(call.reader.read(-1))
            assert await receiving == sent

    play(script)

"""A proxy process gives a client's plaintext and identity, or the reason why there is none."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from nbdserver.tls import ClientIdentity, TlsProxies, TlsRefused, TlsServerFiles
from tests.certificates import make_certificates

DEADLINE_S = 30.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"), "server", "client")


def play(script: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await script()

    asyncio.run(run())


def client_context(folder: Path, *, certified: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.check_hostname = False
    if certified:
        context.load_cert_chain(folder / "client.crt", folder / "client.key")
    return context


def server_files(folder: Path, *, asks: bool) -> TlsServerFiles:
    authority = str(folder / "ca.crt") if asks else ""
    return TlsServerFiles(str(folder / "server.crt"), str(folder / "server.key"), authority)


async def call(
    proxies: TlsProxies, context: ssl.SSLContext
) -> tuple[socket.socket, ClientIdentity, asyncio.StreamReader, asyncio.StreamWriter]:
    near, far = socket.socketpair()
    opening = asyncio.create_task(
        asyncio.open_connection(sock=near, ssl=context, server_hostname="server")
    )
    try:
        plain, identity = await proxies.secure(far)
    except TlsRefused:
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        near.close()
        raise
    reader, writer = await opening
    return plain, identity, reader, writer


@pytest.mark.parametrize("asks", [True, False])
def test_bytes_pass_both_ways_and_the_client_is_named(folder: Path, asks: bool) -> None:
    async def script() -> None:
        loop = asyncio.get_running_loop()
        proxies = TlsProxies(server_files(folder, asks=asks), 10.0, 1)
        context = client_context(folder, certified=asks)
        plain, identity, reader, writer = await call(proxies, context)
        assert identity.names == (("client",) if asks else ())
        assert bool(identity.fingerprint) == asks
        sent, received = os.urandom(3 << 20), bytearray()
        writer.write(sent)
        answering = asyncio.create_task(loop.sock_sendall(plain, sent[::-1]))
        while len(received) < len(sent):
            received += await loop.sock_recv(plain, 1 << 20)
        assert received == sent
        assert await reader.readexactly(len(sent)) == sent[::-1]
        await answering
        plain.close()
        assert await reader.read() == b""
        writer.close()
        await proxies.close()

    play(script)


def test_client_without_a_certificate_is_refused_where_one_is_asked_for(folder: Path) -> None:
    async def script() -> None:
        proxies = TlsProxies(server_files(folder, asks=True), 10.0, 1)
        with pytest.raises(TlsRefused, match="certificate"):
            await call(proxies, client_context(folder, certified=False))
        plain, _, _, writer = await call(proxies, client_context(folder, certified=True))
        plain.close()
        writer.close()
        await proxies.close()

    play(script)


def test_client_that_speaks_no_tls_is_refused_and_hurts_nobody(folder: Path) -> None:
    async def script() -> None:
        proxies = TlsProxies(server_files(folder, asks=False), 10.0, 1)
        near, far = socket.socketpair()
        near.sendall(b"NBDMAGIC" * 40)
        with pytest.raises(TlsRefused):
            await proxies.secure(far)
        near.close()
        plain, _, _, writer = await call(proxies, client_context(folder, certified=False))
        plain.close()
        writer.close()
        await proxies.close()

    play(script)


def test_silent_client_is_given_up_after_the_deadline(folder: Path) -> None:
    async def script() -> None:
        proxies = TlsProxies(server_files(folder, asks=False), 0.5, 1)
        near, far = socket.socketpair()
        with pytest.raises(TlsRefused):
            await proxies.secure(far)
        near.close()
        await proxies.close()

    play(script)


def test_dead_proxy_is_replaced_for_the_next_client(folder: Path) -> None:
    async def script() -> None:
        proxies = TlsProxies(server_files(folder, asks=False), 10.0, 1)
        plain, _, reader, writer = await call(proxies, client_context(folder, certified=False))
        (proxy,) = proxies._proxies
        assert proxy is not None
        os.kill(proxy._pid, 9)
        assert await reader.read() == b"", "its clients end with it"
        plain.close()
        writer.close()
        while proxy.alive:
            await asyncio.sleep(0.01)
        plain, _, _, writer = await call(proxies, client_context(folder, certified=False))
        plain.close()
        writer.close()
        await proxies.close()

    play(script)

"""Two nodes know each other by certificate, and nothing but TLS passes between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from repl.cli.main import main
from repl.core.wire import Frame, Type, encode_header
from repl.link.connection import PeerConnection
from repl.link.preamble import encode_refusal
from repl.link.tls import TlsFailure, TlsSocket, secure
from repl.tls_files import TlsFiles, fingerprint_of, make_context
from tests.key_updates import KeyUpdates

DEADLINE_S = 20.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of alpha and beta, and in "other" those of another authority."""
    folder = tmp_path_factory.mktemp("tls")
    assert main(["tls", "init", str(folder), "alpha", "beta"]) == 0
    assert main(["tls", "init", str(folder / "other"), "alpha", "beta"]) == 0
    return folder


def files(folder: Path, node: str) -> TlsFiles:
    crt, key = folder / f"{node}.crt", folder / f"{node}.key"
    return TlsFiles(str(crt), str(key), str(folder / "ca.crt"))


def play(script: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await script()

    asyncio.run(run())


async def shake(
    client: TlsFiles, server: TlsFiles, expected: str = "alpha", fingerprint: str = ""
) -> tuple[TlsSocket | BaseException, TlsSocket | BaseException]:
    """Return what each side got: alpha dials, beta accepts and expects `expected`."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)

    async def one(
        sock: socket.socket, of: TlsFiles, name: str, pin: str, is_server: bool
    ) -> TlsSocket:
        try:
            return await secure(loop, sock, of, name, pin, server=is_server)
        except (TlsFailure, OSError):
            sock.close()
            raise

    found = await asyncio.gather(
        one(near, client, "beta", "", False),
        one(far, server, expected, fingerprint, True),
        return_exceptions=True,
    )
    return found[0], found[1]


def close(*ends: TlsSocket | BaseException) -> None:
    for end in ends:
        if isinstance(end, TlsSocket):
            end.close()


def test_certificate_of_an_nbd_client_is_no_node_whatever_its_name(
    tmp_path: Path,
) -> None:
    """One authority signs both: a client that is called alpha must not pass for the node alpha."""
    assert main(["tls", "init", str(tmp_path), "beta"]) == 0
    assert main(["tls", "client", str(tmp_path), "alpha"]) == 0
    own = tmp_path / "alpha"
    client = TlsFiles(
        str(own / "client-cert.pem"), str(own / "client-key.pem"), str(own / "ca-cert.pem")
    )

    async def script() -> None:
        near, far = await shake(client, files(tmp_path, "beta"))
        assert isinstance(far, TlsFailure)
        assert "is of nobody, not of alpha" in str(far)
        close(near, far)

    play(script)


def test_frames_pass_both_ways_whatever_their_size(folder: Path) -> None:
    async def script() -> None:
        near, far = await shake(files(folder, "alpha"), files(folder, "beta"))
        assert isinstance(near, TlsSocket) and isinstance(far, TlsSocket)
        loop = asyncio.get_running_loop()
        got: list[list[tuple[Type, int, bytes]]] = [[], []]
        lost: list[str] = []

        def receiver(
            into: list[tuple[Type, int, bytes]],
        ) -> Callable[[PeerConnection, list[Frame]], None]:
            def take(_peer: PeerConnection, frames: list[Frame]) -> None:
                into.extend((kind, seq, bytes(data)) for kind, seq, *_, data in frames)  # type: ignore[call-overload]

            return take

        ends = [
            PeerConnection(loop, sock, receiver(into), lambda _peer, why: lost.append(why), 5.0)
            for sock, into in zip((near, far), got, strict=True)
        ]
        for end in ends:
            end.start()
        payloads = [os.urandom(size) for size in (0, 1, 4096, 16384, 65537, 256 << 10)] * 24
        for end in ends:
            pieces: list[bytes | memoryview] = []
            for seq, payload in enumerate(payloads):
                pieces.append(encode_header(Type.WRITE, payload, seq, length=len(payload)))
                if payload:
                    pieces.append(memoryview(payload))
            end.send(pieces)
        while not all(len(into) == len(payloads) for into in got):
            assert not lost
            await asyncio.sleep(0.01)
        expected = [(Type.WRITE, seq, payload) for seq, payload in enumerate(payloads)]
        assert got == [expected, expected]
        ends[0].close()
        while not lost:
            await asyncio.sleep(0.01)
        assert lost == ["the peer closed the connection"]
        ends[1].close()

    play(script)


@pytest.mark.parametrize(
    ("client", "server", "expected", "sentence"),
    [
        ("alpha", "beta", "gamma", "certificate is of alpha, not of gamma"),
        ("beta", "beta", "alpha", "certificate is of beta, not of alpha"),
        ("other/alpha", "beta", "alpha", "not accepted"),
    ],
)
def test_a_server_refuses_whoever_is_not_its_peer(
    folder: Path, client: str, server: str, expected: str, sentence: str
) -> None:
    async def script() -> None:
        place = folder / Path(client).parent
        mine = files(place, Path(client).name)
        near, far = await shake(
            TlsFiles(mine.certificate, mine.key, str(folder / "ca.crt")),
            files(folder, server),
            expected,
        )
        assert isinstance(far, TlsFailure) and sentence in str(far), far
        close(near)

    play(script)


def test_a_client_refuses_a_server_that_is_not_its_peer(folder: Path) -> None:
    async def script() -> None:
        near, far = await shake(files(folder, "alpha"), files(folder, "alpha"))
        assert isinstance(near, TlsFailure)
        assert "certificate is of alpha, not of beta" in str(near)
        close(far)

    play(script)


def test_a_pinned_fingerprint_is_one_certificate(folder: Path) -> None:
    async def script() -> None:
        context = make_context(files(folder, "alpha"), server=False)
        (der,) = [der for der in context.get_ca_certs(binary_form=True) if fingerprint_of(der)]
        near, far = await shake(
            files(folder, "alpha"), files(folder, "beta"), fingerprint=fingerprint_of(der)
        )
        assert isinstance(far, TlsFailure) and "fingerprint" in str(far)
        close(near)

    play(script)


def test_a_clear_refusal_is_understood_before_any_tls(folder: Path) -> None:
    async def script() -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        for sock in (near, far):
            sock.setblocking(False)
        await loop.sock_sendall(far, encode_refusal("unknown-volume", "beta has no volume r0."))
        with pytest.raises(TlsFailure, match="beta has no volume r0"):
            await secure(loop, near, files(folder, "alpha"), "beta", "", server=False)
        near.close()
        far.close()

    play(script)


@pytest.mark.parametrize("size", [2, 47, 48, 60])
def test_a_refusal_that_is_cut_short_is_a_failure_like_any(folder: Path, size: int) -> None:
    """Whoever answers at the peer's address decides what comes first: the dialer goes on."""

    async def script() -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        for sock in (near, far):
            sock.setblocking(False)
        refusal = encode_refusal("unknown-volume", "beta has no volume r0.")
        await loop.sock_sendall(far, refusal[:size])
        with pytest.raises(TlsFailure, match="does not speak TLS"):
            await secure(loop, near, files(folder, "alpha"), "beta", "", server=False)
        near.close()
        far.close()

    play(script)


def test_a_server_that_gets_anything_but_tls_says_so(folder: Path) -> None:
    async def script() -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        for sock in (near, far):
            sock.setblocking(False)
        await loop.sock_sendall(near, b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(TlsFailure):
            await secure(loop, far, files(folder, "beta"), "alpha", "", server=True)
        near.close()
        with pytest.raises(TlsFailure, match="closed the connection"):
            await secure(loop, far, files(folder, "beta"), "alpha", "", server=True)
        far.close()

    play(script)


def test_peer_that_asks_for_new_keys_without_end_is_dropped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repl.link.tls.OWN_BYTES_MAX", 2000)

    def logging_context(of: TlsFiles, *, server: bool) -> ssl.SSLContext:
        context = make_context(of, server=server)
        if not server:
            context.keylog_filename = str(tmp_path / "keys")
        return context

    monkeypatch.setattr("repl.link.tls.make_context", logging_context)

    async def script() -> None:
        near, far = await shake(files(folder, "alpha"), files(folder, "beta"))
        assert isinstance(near, TlsSocket)
        assert isinstance(far, TlsSocket)
        cipher = near._session.cipher()
        assert cipher is not None
        updates = KeyUpdates(tmp_path / "keys", cipher[0])
        room = memoryview(bytearray(1000))

        def flood() -> None:
            for _ in range(200):
                near._sock.sendall(updates.record())
                with contextlib.suppress(BlockingIOError):
                    far.recv_into(room)

        with pytest.raises(OSError, match="new keys without end"):
            flood()
        for end in (near, far):
            end.close()

    play(script)

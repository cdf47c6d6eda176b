"""The listener for peers: whose connection it is, what is refused and how, and what costs what."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from repl.link import preamble
from repl.link.preamble import PREAMBLE_BYTES, Preamble
from repl.node import peer_front
from repl.node.peer_front import PeerFront, is_loopback
from repl.node.supervisor import Supervisor
from tests.node.daemon_parts import configuration, run, running, until

WELCOME = Preamble(volume="r0", sender="beta", expected="alpha")


async def dial(supervisor: Supervisor) -> socket.socket:
    listen = supervisor._config.node.listen
    assert listen is not None
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (listen.host, listen.port))
    return sock


async def received_until_closed(sock: socket.socket) -> bytes:
    received = b""
    while part := await asyncio.get_running_loop().sock_recv(sock, 4096):
        received += part
    return received


async def received(sock: socket.socket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        part = await asyncio.get_running_loop().sock_recv(sock, size_bytes - len(data))
        assert part, f"closed after {data!r}"
        data += part
    return data


async def answer_to(supervisor: Supervisor, data: bytes) -> bytes:
    """Dial, send `data`, and return everything until the front closes."""
    with await dial(supervisor) as sock:
        await asyncio.get_running_loop().sock_sendall(sock, data)
        return await received_until_closed(sock)


async def welcomed(supervisor: Supervisor, *, extra: bytes = b"") -> None:
    """Dial as the peer that is expected and talk with the worker behind the front."""
    loop = asyncio.get_running_loop()
    with await dial(supervisor) as sock:
        await loop.sock_sendall(sock, preamble.encode(WELCOME) + extra)
        greeting = b"beta|" + extra
        assert await received(sock, len(greeting)) == greeting
        await loop.sock_sendall(sock, b"frames")
        assert await received(sock, 6) == b"frames"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_verified_connection_reaches_the_worker_with_every_byte_behind_the_preamble(
    tmp_path: Path, loop: str
) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            await welcomed(supervisor)
            await welcomed(supervisor, extra=b"the hello, sent along")

    run(scenario, loop)


def test_preamble_may_come_byte_by_byte(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            with await dial(supervisor) as sock:
                for byte in preamble.encode(WELCOME):
                    await asyncio.get_running_loop().sock_sendall(sock, bytes([byte]))
                    await asyncio.sleep(0)
                assert await received(sock, 5) == b"beta|"

    run(scenario)


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (Preamble("r9", "beta", "alpha"), "unknown-volume", "no volume r9"),
        (Preamble("r0", "gamma", "alpha"), "unknown-sender", "gamma is no peer"),
        (Preamble("r0", "beta", "gamma"), "wrong-node", "this is alpha"),
        (Preamble("r0", "alpha", "beta"), "own-address", "named alpha as well"),
    ],
)
def test_refused_preamble_gets_one_frame_and_one_log_line(
    tmp_path: Path, asked: Preamble, code: str, words: str
) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            with capture_logs() as lines:
                answer = await answer_to(supervisor, preamble.encode(asked) + b"x" * 5000)
                again = await answer_to(supervisor, preamble.encode(asked))
            said = [line for line in lines if line.get("code") == code]
            assert len(said) == 1, "the repetition is held back"
            assert words in said[0]["event"]
            assert answer == again
            sentence = said[0]["event"].removeprefix("Refused a peer's connection: ")
            assert answer == preamble.encode_refusal(code, sentence)
            await welcomed(supervisor)

    run(scenario)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(PREAMBLE_BYTES),
        bytes(PREAMBLE_BYTES),
        preamble.encode(WELCOME)[:-1] + b"\0",
        preamble.encode(WELCOME)[:8] + b"\0\x63" + preamble.encode(WELCOME)[10:],
    ],
    ids=["another protocol", "zeroes", "checksum", "version"],
)
def test_malformed_preamble_is_closed_without_an_answer_and_hurts_nobody(
    tmp_path: Path, data: bytes
) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            # A reset where it had sent more than 256 bytes: those were never read.
            with capture_logs() as lines, contextlib.suppress(ConnectionResetError):
                assert await answer_to(supervisor, data) == b""
            assert [line["log_level"] for line in lines] == ["warning"]
            await welcomed(supervisor)
            assert supervisor.workers["r0"].starts == 1

    run(scenario)


def test_hang_up_in_the_preamble_is_dropped_quietly(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            for size_bytes in (0, 1, 255):
                with await dial(supervisor) as sock:
                    await asyncio.get_running_loop().sock_sendall(
                        sock, preamble.encode(WELCOME)[:size_bytes]
                    )
            await welcomed(supervisor)

    run(scenario)


def test_silent_connections_end_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(peer_front, "PREAMBLE_TIMEOUT_S", 0.2)
        async with running(configuration(tmp_path)) as supervisor:
            with await dial(supervisor) as sock:
                assert await received_until_closed(sock) == b""

    run(scenario)


def test_crowd_of_silent_connections_keeps_no_peer_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(peer_front, "PREAMBLE_TIMEOUT_S", 600.0)
        monkeypatch.setattr(peer_front, "UNVERIFIED_CONNECTIONS_MAX", 4)
        async with running(configuration(tmp_path)) as supervisor:
            crowd = [await dial(supervisor) for _ in range(10)]
            await welcomed(supervisor)
            for sock in crowd[:6]:
                assert await received_until_closed(sock) == b"", "the oldest were closed"
            for sock in crowd:
                sock.close()

    run(scenario)


def test_connection_waits_for_a_worker_that_is_being_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            worker = supervisor.workers["r0"]
            exits = asyncio.create_task(worker.request("exit", {}, 30.0))
            await until(worker, lambda: not worker.answers)
            await welcomed(supervisor)
            assert worker.starts == 2
            assert isinstance((await asyncio.gather(exits, return_exceptions=True))[0], Exception)

    run(scenario)


def test_stop_closes_connections_that_are_not_verified(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            with await dial(supervisor) as sock:
                await welcomed(supervisor)
                await supervisor.stop()
                assert await received_until_closed(sock) == b""

    run(scenario)


def test_plaintext_from_beyond_loopback_needs_insecure(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            for insecure, code in ((False, "plaintext"), (True, None)):
                # The decision itself: no test may open a listener to the outside.
                front = PeerFront(
                    None,  # type: ignore[arg-type]
                    "alpha",
                    insecure,
                    False,
                    {"r0": ("beta",)},
                    supervisor.workers,
                )
                refusal = front._refusal(WELCOME, "192.0.2.7")
                assert (refusal[0] if refusal else None) == code
                assert front._refusal(WELCOME, "127.0.0.1") is None

    run(scenario)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:192.0.2.1", False),
        ("192.0.2.1", False),
        ("fe80::1%eth0", False),
    ],
)
def test_loopback_is_recognised_in_every_notation(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected

"""The dialer: keeps trying, says who calls, hands the socket over, stops when told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from repl.link.dialer import BACKOFF_S_MIN, Dialer
from repl.link.preamble import PREAMBLE_BYTES, Preamble, decode
from repl.link.tls import TlsSocket

DEADLINE_S = 15.0
HELLO = Preamble("r0", "alpha", "beta")


class Caller:
    """A dialer and all that it reported."""

    def __init__(self, *addresses: tuple[str, int], timeout_s: float = 2.0) -> None:
        self.sockets: list[socket.socket | TlsSocket] = []
        self.failures: list[str] = []
        self.failed_at_s: list[float] = []
        self.dialer = Dialer(
            asyncio.get_running_loop(),
            HELLO,
            list(addresses),
            self.sockets.append,
            self._failed,
            connect_timeout_s=timeout_s,
            backoff_max_s=4 * BACKOFF_S_MIN,
        )

    def _failed(self, reason: str) -> None:
        self.failures.append(reason)
        self.failed_at_s.append(asyncio.get_running_loop().time())

    def close(self) -> None:
        self.dialer.stop()
        for sock in self.sockets:
            sock.close()


@contextlib.contextmanager
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def address(sock: socket.socket) -> tuple[str, int]:
    host, port = sock.getsockname()[:2]
    return host, port


def closed_address() -> tuple[str, int]:
    """An address on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return address(server)


def play(script: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await script()

    asyncio.run(run())


async def until(holds: Callable[[], Any]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


async def accept(server: socket.socket) -> bytes:
    """Take one call and return its preamble."""
    loop = asyncio.get_running_loop()
    sock, _ = await loop.sock_accept(server)
    with sock:
        sock.setblocking(False)
        data = b""
        while len(data) < PREAMBLE_BYTES:
            part = await loop.sock_recv(sock, PREAMBLE_BYTES - len(data))
            assert part
            data += part
    return data


def test_a_call_opens_with_the_preamble_and_hands_the_socket_over() -> None:
    async def script() -> None:
        with listener() as server:
            caller = Caller(address(server))
            caller.dialer.start()
            assert decode(await accept(server)) == HELLO
            await until(lambda: caller.sockets)
            assert not caller.failures
            (sock,) = caller.sockets
            assert isinstance(sock, socket.socket) and not sock.getblocking()
            caller.close()

    play(script)


def test_it_tries_again_until_somebody_listens() -> None:
    async def script() -> None:
        place = closed_address()
        caller = Caller(place)
        caller.dialer.start()
        await until(lambda: len(caller.failures) >= 2)
        assert f"{place[0]}:{place[1]}" in caller.failures[0]
        with socket.create_server(place) as server:
            server.setblocking(False)
            assert decode(await accept(server)) == HELLO
            await until(lambda: caller.sockets)
        caller.close()

    play(script)


def test_pauses_between_calls_grow_up_to_the_limit() -> None:
    async def script() -> None:
        caller = Caller(closed_address())
        begun_s = asyncio.get_running_loop().time()
        caller.dialer.start()
        await until(lambda: len(caller.failures) >= 4)
        caller.close()
        passed_s = caller.failed_at_s[3] - begun_s
        # A pause is never shorter than told: 1 + 2 + 4 + 4 times the shortest.
        assert passed_s >= 11 * BACKOFF_S_MIN * 0.95

    play(script)


def test_addresses_are_tried_in_turn() -> None:
    async def script() -> None:
        with listener() as server:
            caller = Caller(closed_address(), closed_address(), address(server))
            caller.dialer.start()
            await accept(server)
            await until(lambda: caller.sockets)
            assert len(caller.failures) == 2
            caller.close()

    play(script)


def test_a_name_with_several_addresses_is_reached_at_any_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A name may resolve to ::1 first while the peer listens on 127.0.0.1 only."""

    async def script() -> None:
        with listener() as server:
            loop = asyncio.get_running_loop()
            infos = [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", place)
                for place in (closed_address(), address(server))
            ]

            async def resolve(*_args: object, **_kinds: object) -> list[Any]:
                return infos

            monkeypatch.setattr(loop, "getaddrinfo", resolve)
            caller = Caller(("beta.example", 7790))
            caller.dialer.start()
            await until(lambda: caller.sockets or len(caller.failures) >= 5)
            caller.close()
            assert len(caller.sockets) == 1, caller.failures

    play(script)


def test_a_name_that_does_not_resolve_is_a_failure_like_any(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def script() -> None:
        async def resolve(*_args: object, **_kinds: object) -> list[Any]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
        caller = Caller(("nobody.invalid", 7790))
        caller.dialer.start()
        await until(lambda: len(caller.failures) >= 2)
        caller.close()
        assert "nobody.invalid:7790" in caller.failures[0]
        assert "Name or service not known" in caller.failures[0]

    play(script)


def test_an_address_that_never_answers_is_given_up_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def script() -> None:
        async def silence(*_args: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(asyncio.get_running_loop(), "sock_connect", silence)
        caller = Caller(("127.0.0.1", 9), timeout_s=0.05)
        caller.dialer.start()
        await until(lambda: len(caller.failures) >= 2)
        caller.close()
        assert "no answer within 0.05 s" in caller.failures[0]

    play(script)


def test_a_stop_ends_the_calls_and_a_start_begins_them_again() -> None:
    async def script() -> None:
        place = closed_address()
        caller = Caller(place)
        caller.dialer.start()
        await until(lambda: caller.failures)
        caller.dialer.stop()
        count = len(caller.failures)
        with socket.create_server(place) as server:
            server.setblocking(False)
            await asyncio.sleep(6 * BACKOFF_S_MIN)
            with pytest.raises(BlockingIOError):
                server.accept()
            assert (len(caller.failures), caller.sockets) == (count, [])
            caller.dialer.start()
            await accept(server)
            await until(lambda: caller.sockets)
        caller.close()

    play(script)


def test_a_second_start_does_not_call_twice() -> None:
    async def script() -> None:
        with listener() as server:
            caller = Caller(address(server))
            caller.dialer.start()
            caller.dialer.start()
            await accept(server)
            await until(lambda: caller.sockets)
            await asyncio.sleep(4 * BACKOFF_S_MIN)
            with pytest.raises(BlockingIOError):
                server.accept()
            assert len(caller.sockets) == 1
            caller.close()

    play(script)


def test_a_lost_connection_is_dialled_again_and_a_good_one_resets_the_pause() -> None:
    async def script() -> None:
        with listener() as server:
            caller = Caller(address(server))
            caller.dialer.start()
            for count in (1, 2, 3):
                await accept(server)
                await until(lambda: len(caller.sockets) == count)  # noqa: B023
                caller.dialer.established()
                assert caller.dialer._backoff_s == BACKOFF_S_MIN
                caller.dialer.lost()
            await accept(server)
            await until(lambda: len(caller.sockets) == 4)
            caller.close()

    play(script)

"""Dialling a peer for ever: connect, say who calls, hand the socket over, back off, again.

Of two nodes only the one whose name sorts lower dials, so that connections never cross. Owns no
connection once it is handed over; `lost` tells it to dial again.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from repl.link import preamble
from repl.link.preamble import Preamble
from repl.link.tls import TlsFailure, TlsSocket

#: Shakes hands on a connected socket behind the preamble; raises TlsFailure, OSError.
Encrypt = Callable[[socket.socket], Awaitable[TlsSocket]]
BACKOFF_S_MIN = 0.05


class Dialer:
    """Keeps one connection to one peer alive. `addresses` are tried in turn."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        hello: Preamble,
        addresses: list[tuple[str, int]],
        connected: Callable[[socket.socket | TlsSocket], None],
        failed: Callable[[str], None],
        *,
        connect_timeout_s: float,
        backoff_max_s: float,
        encrypt: Encrypt | None = None,
    ) -> None:
        self._loop = loop
        self._hello = preamble.encode(hello)
        self._addresses = addresses
        self._connected = connected
        self._failed = failed
        self._connect_timeout_s = connect_timeout_s
        self._backoff_max_s = backoff_max_s
        self._encrypt = encrypt
        self._backoff_s = BACKOFF_S_MIN
        self._task: asyncio.Task[None] | None = None
        self._attempts = 0

    def start(self) -> None:
        """Dial now, unless that goes on already."""
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._dial())

    def stop(self) -> None:
        """Dial no more until `start`."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def lost(self) -> None:
        """The connection that was handed over has ended: dial again, after a pause."""
        self.start()

    def established(self) -> None:
        """The connection proved good: the next loss is answered at once."""
        self._backoff_s = BACKOFF_S_MIN

    async def _dial(self) -> None:
        while True:
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(self._backoff_s * 2, self._backoff_max_s)
            host, port = self._addresses[self._attempts % len(self._addresses)]
            self._attempts += 1
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    sock = await self._connect(host, port)
            except (OSError, TimeoutError, TlsFailure) as error:
                reason = str(error) or f"no answer within {self._connect_timeout_s:g} s"
                self._failed(f"connecting to {host}:{port} failed: {reason}")
                continue
            self._task = None
            self._connected(sock)
            return

    async def _connect(self, host: str, port: int) -> socket.socket | TlsSocket:
        infos = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        # A name may have several addresses (::1 and 127.0.0.1): one each attempt, in turn.
        turn = (self._attempts - 1) // len(self._addresses)
        family, kind, protocol, _name, address = infos[turn % len(infos)]
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            sock.setblocking(False)
            await self._loop.sock_connect(sock, address)
            await self._loop.sock_sendall(sock, self._hello)
            ready = sock if self._encrypt is None else await self._encrypt(sock)
            undo.pop_all()
        return ready

"""TLS handshakes with the peer of one volume: for the dialer, and for accepted connections.

A connection that exists goes on until a new one has shown who it is. Owns accepted sockets until
then, and never more than a few of them: silent ones make way, so that they keep no peer out.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from nbdserver.crowd import Crowd
from nbdserver.listening import client_origin
from repl.link.tls import TlsFailure, TlsSocket, secure
from repl.tls_files import TlsFiles

#: Accepted connections that may be shaking hands at once; whoever they are is not known yet.
HANDSHAKES_MAX = 8


class PeerTls:
    """Made from a worker's settings that have a "tls" table."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: dict[str, Any],
        accepted: Callable[[TlsSocket], None],
        refused: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._files = TlsFiles(**settings["tls"])
        self._peer: str = settings["peer"]["name"]
        self._fingerprint: str = settings["peer"]["fingerprint"]
        self._timeout_s: float = settings["timeouts"]["peer_timeout_s"]
        self._accepted = accepted
        self._refused = refused
        self._handshakes: set[asyncio.Task[None]] = set()
        self._crowd: Crowd[asyncio.Task[None]] = Crowd(HANDSHAKES_MAX)

    async def encrypt(self, sock: socket.socket) -> TlsSocket:
        """Shake hands on a socket that this node dialled. Raises TlsFailure, OSError."""
        return await self._secure(sock, server=False)

    def take(self, sock: socket.socket) -> None:
        """Shake hands on an accepted socket, then hand it to `accepted`."""
        task = self._loop.create_task(self._shake_hands(sock))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)
        task.add_done_callback(self._crowd.leave)
        task.add_done_callback(lambda task: sock.close() if task.cancelled() else None)
        goes = self._crowd.enter(task, client_origin(sock), self._loop.time())
        if goes is not None:
            goes.cancel()
            self._refused(f"more than {HANDSHAKES_MAX} TLS handshakes were going on at once")

    def close(self) -> None:
        """Give up all handshakes that are going on."""
        for task in self._handshakes:
            task.cancel()

    async def _shake_hands(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(self._timeout_s):
                secured = await self._secure(sock, server=True)
        except (OSError, TimeoutError, TlsFailure) as error:
            sock.close()
            self._refused(str(error) or "it did not end its TLS handshake in time")
            return
        self._accepted(secured)

    async def _secure(self, sock: socket.socket, *, server: bool) -> TlsSocket:
        return await secure(
            self._loop, sock, self._files, self._peer, self._fingerprint, server=server
        )

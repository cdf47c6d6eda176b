"""The relay's two sockets: what one client sends goes to the server, over as many connections as it
takes; and replies come back.

Owns the flow between the two: whoever cannot take more stops the other from being read, so that
memory is bounded by what the relay may hold. It knows nothing of when to connect or to give up.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, cast

from repl.attach.negotiation import Need, Offer, Send, Steps, serve
from repl.attach.relay import ClientViolation, Relay, ServerViolation

WRITE_BUFFER_BYTES_MAX: Final = 1 << 20

_log = logging.getLogger("repl.attach")


async def negotiate(sock: socket.socket, steps: Steps) -> Offer:
    """Carry out a negotiation on a non-blocking socket. Raises OSError and NotAgreed."""
    loop = asyncio.get_running_loop()
    step = next(steps)
    while True:
        received = b""
        if isinstance(step, Send):
            await loop.sock_sendall(sock, step.data)
        else:
            received = await _exactly(sock, step)
        try:
            step = steps.send(received)
        except StopIteration as end:
            return cast(Offer, end.value)


async def _exactly(sock: socket.socket, need: Need) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < need.count:
        more = await loop.sock_recv(sock, need.count - len(received))
        if not more:
            raise ConnectionResetError("the other side hung up while negotiating")
        received += more
    return bytes(received)


class _Side(asyncio.Protocol):
    """One socket. `paused` follows what this side can take; the carrier stops the other one."""

    def __init__(
        self,
        made: Callable[[_Side], None],
        received: Callable[[_Side, bytes], None],
        lost: Callable[[_Side], None],
        flow_changed: Callable[[], None],
    ) -> None:
        self._made = made
        self._received = received
        self._lost = lost
        self._flow_changed = flow_changed
        self.transport: asyncio.Transport | None = None
        self.paused = False
        self.reading = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(WRITE_BUFFER_BYTES_MAX)
        self._made(self)

    def data_received(self, data: bytes) -> None:
        self._received(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._lost(self)

    def pause_writing(self) -> None:
        self.paused = True
        self._flow_changed()

    def resume_writing(self) -> None:
        self.paused = False
        self._flow_changed()

    def send(self, messages: list[bytes]) -> None:
        if self.transport is not None and messages:
            self.transport.writelines(messages)

    def read(self, wanted: bool) -> None:
        """Read from this side, or not; idempotent."""
        if self.transport is None or wanted == self.reading:
            return
        self.reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def drop(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Carrier:
    """One client and whichever server connection there is at the moment."""

    def __init__(self) -> None:
        self.relay = Relay()
        self._client: _Side | None = None
        self._server: _Side | None = None
        #: Done when the client has gone, and never before it came.
        self.client_gone = asyncio.Event()
        self.server_gone = asyncio.Event()
        self.server_gone.set()

    async def take_client(self, listener: socket.socket, offer: Offer) -> None:
        """Accept the one client, agree with it, and carry. Raises OSError and NotAgreed."""
        loop = asyncio.get_running_loop()
        sock, _ = await loop.sock_accept(listener)
        sock.setblocking(False)
        try:
            await negotiate(sock, serve(offer))
        except BaseException:
            sock.close()
            raise
        side = _Side(self._client_made, self._from_client, self._client_lost, self._balance)
        await loop.connect_accepted_socket(lambda: side, sock)

    async def take_server(self, sock: socket.socket) -> None:
        """Use a connection on which the export was agreed; what is unanswered is sent first."""
        assert self._server is None, "one connection to the server at a time"
        side = _Side(self._server_made, self._from_server, self._server_lost, self._balance)
        self.server_gone.clear()
        await asyncio.get_running_loop().create_connection(lambda: side, sock=sock)

    def _client_made(self, side: _Side) -> None:
        self._client = side
        self._balance()

    def _server_made(self, side: _Side) -> None:
        # In the same step as the connection becomes the one that requests are sent over, so that
        # none is sent twice or left out.
        self._server = side
        side.send(self.relay.unanswered())
        self._balance()

    def drop_server(self) -> None:
        if self._server is not None:
            self._server.drop()

    def drop_client(self) -> None:
        """End the client's connection: whatever it still waits for fails."""
        if self._client is not None:
            self._client.drop()

    def _from_client(self, side: _Side, received: bytes) -> None:
        try:
            requests = self.relay.requests_in(received)
        except ClientViolation as violation:
            _log.error("The program that serves the device broke the protocol: %s.", violation)
            side.drop()
            return
        if self._server is not None:
            self._server.send(requests)
        self._balance()

    def _from_server(self, side: _Side, received: bytes) -> None:
        assert side is self._server, "a connection that was lost is not heard again"
        try:
            replies = self.relay.replies_in(received)
        except ServerViolation as violation:
            _log.warning("The daemon's connection is dropped: %s.", violation)
            side.drop()
            return
        if self._client is not None:
            self._client.send(replies)
        self._balance()

    def _client_lost(self, side: _Side) -> None:
        self._client = None
        self.client_gone.set()

    def _server_lost(self, side: _Side) -> None:
        assert side is self._server, "one connection to the server at a time"
        self._server = None
        self.relay.server_lost()
        self.server_gone.set()
        self._balance()

    def _balance(self) -> None:
        """Read from each side as long as the other one, and the relay, can take more."""
        if self._client is not None:
            server_full = self._server is not None and self._server.paused
            self._client.read(not (self.relay.full or server_full))
        if self._server is not None:
            self._server.read(not (self._client is not None and self._client.paused))

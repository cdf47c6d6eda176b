"""Requests of one NBD client that outlive the server's connections, sans-IO.

No filesystem may see that the daemon was restarted (design §7, "freeze, don't fail"), and neither
nbdfuse nor nbd-client connects again. So a request is kept until its reply has come whole, and is
sent again over the next connection. That is safe because requests are idempotent, in the same order
as before, and because the server applies nothing of an abandoned connection after it has let the
next one in (C.4 of the NBD notes; it is the server's promise, not ours).

Invariants: a reply reaches the client whole or not at all; a request is answered exactly once; an
error that the server gives for the medium is passed on, and nothing else is ever turned into one.

Spec: proto.md, "Transmission phase", simple replies only.
"""

from __future__ import annotations

from typing import Final

from nbdserver.protocol import (
    NBD_CMD_DISC,
    NBD_CMD_READ,
    NBD_CMD_WRITE,
    NBD_ESHUTDOWN,
    NBD_REQUEST_MAGIC,
    NBD_SIMPLE_REPLY_MAGIC,
    PAYLOAD_BYTES_MAX,
    REQUEST,
    REQUEST_BYTES,
    SIMPLE_REPLY,
    SIMPLE_REPLY_BYTES,
)

#: The client is not read any further while it has so much unanswered.
PENDING_BYTES_MAX: Final = 64 << 20


class ClientViolation(Exception):
    """The client sent what is no request; the text says what."""


class ServerViolation(Exception):
    """The server's connection must be dropped, because of what it sent; the text says what."""


class Relay:
    """The unanswered requests of one client, and the half-read messages of both sides."""

    def __init__(self) -> None:
        #: Whole requests by cookie, in the order in which they came.
        self._pending: dict[bytes, bytes] = {}
        self._pending_bytes = 0
        self._from_client = bytearray()
        self._from_server = bytearray()
        #: The client has said goodbye; nothing of it may follow.
        self.left = False

    @property
    def idle(self) -> bool:
        """Whether every request has been answered."""
        return not self._pending

    @property
    def full(self) -> bool:
        """Whether the client must not be read until some request has been answered."""
        return self._pending_bytes >= PENDING_BYTES_MAX

    def requests_in(self, received: bytes) -> list[bytes]:
        """Take the client's bytes; return the requests that are now whole, to be sent on.

        Raises ClientViolation. After NBD_CMD_DISC nothing is returned any more, and `left` is set.
        """
        buffer = self._from_client
        buffer += received
        position, whole = 0, []
        while not self.left and len(buffer) - position >= REQUEST_BYTES:
            magic, _flags, command, cookie, _offset, length = REQUEST.unpack_from(buffer, position)
            if magic != NBD_REQUEST_MAGIC:
                raise ClientViolation(f"request magic 0x{magic:08x}")
            if command == NBD_CMD_DISC:
                self.left = True
                break
            payload_bytes = length if command == NBD_CMD_WRITE else 0
            if payload_bytes > PAYLOAD_BYTES_MAX:
                raise ClientViolation(f"a write of {payload_bytes} bytes")
            end = position + REQUEST_BYTES + payload_bytes
            if len(buffer) < end:
                break
            if cookie in self._pending:
                raise ClientViolation(f"cookie {cookie.hex()} is in use")
            with memoryview(buffer) as view:
                request = bytes(view[position:end])
            self._pending[cookie] = request
            self._pending_bytes += _weight_bytes(request)
            whole.append(request)
            position = end
        del buffer[:position]
        return whole

    def replies_in(self, received: bytes) -> list[bytes]:
        """Take the server's bytes; return the replies that are now whole, to be given on.

        Raises ServerViolation, upon which the connection is dropped (`server_lost`).
        """
        buffer = self._from_server
        buffer += received
        position, whole = 0, []
        answered: set[bytes] = set()
        while len(buffer) - position >= SIMPLE_REPLY_BYTES:
            magic, error, cookie = SIMPLE_REPLY.unpack_from(buffer, position)
            if cookie in answered:
                raise ServerViolation(f"two replies to cookie {cookie.hex()}")
            end = position + SIMPLE_REPLY_BYTES + self._payload_bytes(magic, error, cookie)
            if len(buffer) < end:
                break
            with memoryview(buffer) as view:
                whole.append(bytes(view[position:end]))
            answered.add(cookie)
            position = end
        # Only what is given on counts as answered: after a violation the others are asked again.
        for cookie in answered:
            self._pending_bytes -= _weight_bytes(self._pending.pop(cookie))
        del buffer[:position]
        return whole

    def _payload_bytes(self, magic: int, error: int, cookie: bytes) -> int:
        """Return what follows a reply's header. Raises ServerViolation."""
        if magic != NBD_SIMPLE_REPLY_MAGIC:
            raise ServerViolation(f"reply magic 0x{magic:08x}")
        request = self._pending.get(cookie)
        if request is None:
            raise ServerViolation(f"a reply to cookie {cookie.hex()}, which asked nothing")
        if error == NBD_ESHUTDOWN:
            # Not about the medium: the next connection will answer it.
            raise ServerViolation("the server is shutting down")
        _, _, command, _, _, length = REQUEST.unpack_from(request)
        return int(length) if command == NBD_CMD_READ and not error else 0

    def server_lost(self) -> None:
        """Forget the half-read reply of a connection that has ended."""
        self._from_server.clear()

    def unanswered(self) -> list[bytes]:
        """Return what a new connection must be sent first, in the order of its coming."""
        return list(self._pending.values())


def _weight_bytes(request: bytes) -> int:
    """Return what a request and its reply take in memory."""
    _, _, command, _, _, length = REQUEST.unpack_from(request)
    return len(request) + (int(length) if command == NBD_CMD_READ else 0)

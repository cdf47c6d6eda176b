"""The client's half of TLS over a blocking socket, with each end of the stream under control.

Stands in for a socket in `RawClient`. Unlike `ssl.SSLSocket` it can say goodbye and go on to read,
and tells whether the server said goodbye or just closed.
"""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path
from socket import socket
from typing import cast

from nbdserver.protocol import Option, Reply
from tests.nbdserver.wire import RawClient, option

RECEIVE_BYTES = 256 << 10


def client_context(authority: Path, client: Path | None = None) -> ssl.SSLContext:
    """Trusts `authority`; shows the certificate in a client's folder, if given."""
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False
    # A cut is not taken for a goodbye.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    if client is not None:
        context.load_cert_chain(client / "client-cert.pem", client / "client-key.pem")
    return context


class TlsEnd:
    """One encrypted connection, as much of a socket as `RawClient` uses."""

    def __init__(self, sock: socket, context: ssl.SSLContext) -> None:
        """Shake hands. Raises OSError (ssl.SSLError is one)."""
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._incoming, self._outgoing)
        #: Whether the stream ended as TLS demands, and not by a cut.
        self.server_said_goodbye = False
        while True:
            try:
                self.session.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._receive()
            else:
                self._flush()
                return

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._sock.sendall(self._outgoing.read())

    def _receive(self) -> None:
        data = self._sock.recv(RECEIVE_BYTES)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def settimeout(self, timeout_s: float) -> None:
        self._sock.settimeout(timeout_s)

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.session.write(view) :]
        self._flush()

    def recv_into(self, room: memoryview) -> int:
        while True:
            try:
                count = int(self.session.read(len(room), room))
            except ssl.SSLWantReadError:
                self._receive()
            except ssl.SSLZeroReturnError:
                self.server_said_goodbye = True
                return 0
            except ssl.SSLError as error:
                # Early Python 3.11 has no SSLEOFError for an end without a goodbye.
                if error.reason != "UNEXPECTED_EOF_WHILE_READING":
                    raise
                return 0
            else:
                self.server_said_goodbye = not count
                return count

    def recv(self, size_bytes: int) -> bytes:
        room = bytearray(size_bytes)
        return bytes(room[: self.recv_into(memoryview(room))])

    def say_goodbye(self) -> None:
        """Send nothing more; what comes is still read."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self.session.unwrap()
        self._flush()

    def close(self) -> None:
        self._sock.close()


def start_tls(client: RawClient, context: ssl.SSLContext) -> RawClient:
    """After `client.greet()`: ask for TLS and go on with it. Raises OSError."""
    client.send(option(Option.STARTTLS))
    reply = client.option_reply()
    assert (reply.option, reply.type) == (Option.STARTTLS, Reply.ACK)
    return RawClient(cast(socket, TlsEnd(client.sock, context)))

"""TLS 1.3 between two nodes: both show a certificate, and each checks whose it is.

A certificate is good if the configured authority signed it and it names the peer (a DNS name in
its alternative names equal to the node's name); `fingerprint` in the peer's table pins one
certificate besides. Contexts are made anew for every connection, so that renewed certificates are
used without a restart. Never falls back to plaintext.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Sequence

from repl.core import wire
from repl.tls_files import TlsFiles, fingerprint_of, make_context

#: What one receive from the socket may bring, still encrypted.
RECEIVE_BYTES = 256 << 10
#: Plaintext that is encrypted at once; a longer batch goes in several rounds.
ENCRYPT_BYTES_MAX = 1 << 20
#: What TLS itself has to say goes with the next batch: answers to a peer that asks for new keys.
OWN_BYTES_MAX = 1 << 20


class TlsFailure(Exception):
    """The other side is not whom we expect, or does not speak TLS; the sentence says which."""


def check_identity(session: ssl.SSLObject, name: str, fingerprint: str) -> None:
    """Raise `TlsFailure` unless the verified certificate is the peer's."""
    raw = session.getpeercert(binary_form=True)
    shown = session.getpeercert()
    if raw is None or shown is None:
        raise TlsFailure("it showed no certificate")
    alternatives = shown.get("subjectAltName", ())
    names = [str(entry[1]) for entry in alternatives if entry[0] == "DNS"]
    if name not in names:
        raise TlsFailure(f"its certificate is of {', '.join(names) or 'nobody'}, not of {name}")
    if fingerprint and fingerprint_of(raw) != fingerprint:
        raise TlsFailure(
            f"its certificate has the fingerprint {fingerprint_of(raw)}, not the configured one"
        )


class TlsSocket:
    """A non-blocking socket whose bytes are encrypted; made by `secure`.

    Speaks as much of `socket.socket` as `PeerConnection` uses. One receive and one send of the
    socket per call, whatever number of TLS records they hold.
    """

    def __init__(
        self,
        sock: socket.socket,
        session: ssl.SSLObject,
        received: ssl.MemoryBIO,
        to_send: ssl.MemoryBIO,
    ) -> None:
        self._sock = sock
        self._session = session
        self._received = received
        self._to_send = to_send
        self._room = memoryview(bytearray(RECEIVE_BYTES))
        self._unsent: memoryview = memoryview(b"")

    @property
    def pending(self) -> bool:
        """Whether bytes were received that the last `recv_into` had no room for."""
        return self._received.pending > 0 or self._session.pending() > 0

    @property
    def backlog(self) -> bool:
        """Whether encrypted bytes wait for the kernel; `flush` sends them."""
        return len(self._unsent) > 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        assert not flag, "a TlsSocket never blocks"

    def setsockopt(self, level: int, option: int, value: int) -> None:
        self._sock.setsockopt(level, option, value)

    def recv_into(self, room: memoryview) -> int:
        """Fill `room` as far as there is plaintext. Raises BlockingIOError, OSError."""
        if self._to_send.pending > OWN_BYTES_MAX:
            raise OSError(errno.EPROTO, "the peer asks for new keys without end")
        count = self._decrypt(room)
        if count or self._received.eof:
            return count
        taken = self._sock.recv_into(self._room)
        if taken:
            self._received.write(self._room[:taken])
        else:
            self._received.write_eof()
        count = self._decrypt(room)
        if not count and taken:
            raise BlockingIOError
        return count

    def _decrypt(self, room: memoryview) -> int:
        count, length = 0, len(room)
        try:
            while count < length:
                part = self._session.read(length - count, room[count:])
                if not part:
                    break
                count += int(part)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._received.write_eof()
        return count

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Encrypt as many buffers as one round takes; return how many of their bytes that were."""
        self.flush()
        if self._unsent:
            raise BlockingIOError
        count = 0
        for buffer in buffers:
            count += self._session.write(buffer)
            if count >= ENCRYPT_BYTES_MAX:
                break
        self._unsent = memoryview(self._to_send.read())
        self.flush()
        return count

    def flush(self) -> None:
        """Send what is encrypted, as far as the kernel takes it. Raises OSError."""
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return
            self._unsent = self._unsent[sent:]

    def close(self) -> None:
        """Say goodbye in TLS, as far as that needs no waiting, and close."""
        # The other side's goodbye is not waited for, and a broken session says none.
        with contextlib.suppress(OSError, ValueError):
            self._session.unwrap()
        self._unsent = memoryview(bytes(self._unsent) + self._to_send.read())
        with contextlib.suppress(OSError):
            self.flush()
        self._sock.close()


async def secure(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    files: TlsFiles,
    name: str,
    fingerprint: str,
    *,
    server: bool,
) -> TlsSocket:
    """Shake hands on a connected, non-blocking socket, and check who answers.

    The caller owns the deadline and, after a failure, the socket. Raises TlsFailure, OSError.
    """
    context = make_context(files, server=server)
    received, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(received, to_send, server_side=server)
    first = True
    while True:
        done = False
        try:
            session.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            await _send_rest(loop, sock, to_send)
            raise TlsFailure(f"its certificate is not accepted: {error.verify_message}") from error
        except ssl.SSLError as error:
            await _send_rest(loop, sock, to_send)
            raise TlsFailure(f"TLS failed: {error.reason or error}") from error
        await _send_rest(loop, sock, to_send)
        if done:
            check_identity(session, name, fingerprint)
            return TlsSocket(sock, session, received, to_send)
        data = await loop.sock_recv(sock, RECEIVE_BYTES)
        if not data:
            raise TlsFailure("it closed the connection during the TLS handshake")
        if first and data.startswith(wire.MAGIC):
            raise TlsFailure(refusal_in(data))
        first = False
        received.write(data)


async def _send_rest(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, to_send: ssl.MemoryBIO
) -> None:
    if to_send.pending:
        await loop.sock_sendall(sock, to_send.read())


def refusal_in(data: bytes) -> str:
    """Return the sentence of a clear GOODBYE frame, which an acceptor sends before any TLS.

    Anything else, a frame that is cut short included, is said to be no TLS.
    """
    try:
        if len(data) < wire.HEADER_BYTES:
            raise wire.PeerError("no whole frame")
        header = wire.decode_header(data)
        payload = memoryview(data)[wire.HEADER_BYTES : wire.HEADER_BYTES + header.payload_bytes]
        wire.verify(header, data, payload)
        if header.type is not wire.Type.GOODBYE:
            raise wire.PeerError("no GOODBYE")
        body = wire.decode_body(header.type, payload)
        return wire.Fields("GOODBYE", body).text("sentence")
    except wire.PeerError:
        return "it does not speak TLS"

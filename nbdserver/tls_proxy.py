"""`python -m nbdserver.tls_proxy`: a process that turns TLS into plaintext for a server.

Gets client sockets over a channel, shakes hands on each, answers with one end of a socket pair and
the client's identity, and then carries bytes between the two until either side ends. Knows nothing
of NBD, keeps no more than two buffers a direction and client, and ends when the channel does.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import hashlib
import json
import os
import signal
import socket
import ssl
import sys
from typing import Any, cast

from nbdserver.tls import PACKET_BYTES_MAX, TlsServerFiles, server_context

BUFFER_BYTES = 256 << 10
_PR_SET_PDEATHSIG = 1


class _End(asyncio.BufferedProtocol):
    """One side of a relay. What it receives is written to the other side, which may say stop."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None
        #: Received before there was another side.
        self._early = b""
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=BUFFER_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        other = self.other
        if other is not None and other.transport is not None:
            other.transport.write(bytes(self._view[:nbytes]))
        elif self.transport is not None:
            self._early += bytes(self._view[:nbytes])
            self.transport.pause_reading()

    def join(self, other: _End) -> None:
        """From now on what either side receives goes to the other."""
        self.other, other.other = other, self
        if self._early and other.transport is not None:
            other.transport.write(self._early)
            self._early = b""
        if self.transport is not None:
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        other = self.other
        if other is not None and other.transport is not None and other.transport.can_write_eof():
            # The server answers what it has and closes; until then the client is written to.
            other.transport.write_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        other, self.other, self.transport = self.other, None, None
        if other is not None and other.transport is not None:
            other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()


class Proxy:
    """All clients of this process."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, channel: socket.socket, settings: str
    ) -> None:
        fields = json.loads(settings)
        self._handshake_s = float(fields.pop("handshake_s"))
        self._files = TlsServerFiles(**fields)
        self._loop = loop
        self._channel = channel
        self._tasks: set[asyncio.Task[None]] = set()
        self.finished: asyncio.Future[None] = loop.create_future()
        channel.setblocking(False)
        loop.add_reader(channel.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data, fds, _flags, _address = socket.recv_fds(self._channel, PACKET_BYTES_MAX, 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._loop.remove_reader(self._channel.fileno())
            if not self.finished.done():
                self.finished.set_result(None)
            return
        number = int(data)
        if not fds:
            self._answer({"number": number, "error": "the client's descriptor did not arrive"})
            return
        task = self._loop.create_task(self._client(number, socket.socket(fileno=fds[0])))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _client(self, number: int, sock: socket.socket) -> None:
        try:
            # Anew for each client, so that renewed certificates are used without a restart.
            context = server_context(self._files)
            secured = await self._shake_hands(sock, context)
        except (OSError, TimeoutError) as error:
            sock.close()
            self._answer({"number": number, "error": f"the TLS handshake failed: {_reason(error)}"})
            return
        near, far = socket.socketpair()
        with far:
            plain = _End()
            await self._loop.create_unix_connection(lambda: plain, sock=near)
            if secured.transport is None:
                near.close()
                self._answer({"number": number, "error": "the client left after its handshake"})
                return
            session = secured.transport.get_extra_info("ssl_object")
            self._answer({"number": number} | _identity(session), far)
            secured.join(plain)

    async def _shake_hands(self, sock: socket.socket, context: ssl.SSLContext) -> _End:
        end = _End()
        sock.setblocking(False)
        await self._loop.connect_accepted_socket(
            lambda: end, sock, ssl=context, ssl_handshake_timeout=self._handshake_s
        )
        return end

    def _answer(self, said: dict[str, Any], plain: socket.socket | None = None) -> None:
        fds = [plain.fileno()] if plain is not None else []
        try:
            socket.send_fds(self._channel, [json.dumps(said).encode()], fds)
        except OSError:
            # The server is gone; the end of the channel says so, too.
            return


def _identity(session: ssl.SSLObject) -> dict[str, Any]:
    raw = session.getpeercert(binary_form=True)
    shown = session.getpeercert() or {}
    alternatives = cast(tuple[tuple[str, str], ...], shown.get("subjectAltName", ()))
    names = [value for kind, value in alternatives if kind in ("DNS", "URI", "email")]
    return {"names": names, "fingerprint": hashlib.sha256(raw).hexdigest() if raw else ""}


def _reason(error: Exception) -> str:
    """Say in small letters what OpenSSL says in capitals."""
    reason = getattr(error, "reason", None)
    return str(reason).lower().replace("_", " ") if reason else str(error) or "no answer in time"


def main(argv: list[str] | None = None) -> int:
    """Serve until the channel ends."""
    parser = argparse.ArgumentParser(prog="nbdserver.tls_proxy")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--settings", required=True)
    arguments = parser.parse_args(argv)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The server decides; a signal to the whole process group is its alone.
        signal.signal(number, signal.SIG_IGN)
    loop = _new_event_loop()
    asyncio.set_event_loop(loop)
    proxy = Proxy(loop, socket.socket(fileno=arguments.channel_fd), arguments.settings)
    loop.run_until_complete(proxy.finished)
    # Clients of a server that is gone are of no use to anybody.
    os._exit(0)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    if os.environ.get("REPL_EVENT_LOOP") != "asyncio":
        try:
            import uvloop
        except ImportError:
            pass
        else:
            return uvloop.new_event_loop()
    return asyncio.new_event_loop()


if __name__ == "__main__":
    sys.exit(main())

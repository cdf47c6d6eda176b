"""`python -m nbdserver.tls_proxy`: a process that turns TLS into plaintext for a server.

Gets client sockets over a channel, shakes hands on each, answers with one end of a socket pair and
the client's names, and then lets a `Relay` carry bytes between the two until either side ends.
Knows nothing of NBD. Ends after the channel does: with what is under way finished, but soon.
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
from typing import Any, Final, cast

from nbdserver.listening import SEND_BUFFER_BYTES, grow_send_buffer
from nbdserver.tls import TlsServerFiles, reason_of, server_context
from nbdserver.tls_proxies import DRAIN_S, receive_packet
from nbdserver.tls_relay import Relay

_PR_SET_PDEATHSIG: Final = 1
#: Names of one certificate that are passed on; nobody needs more, and a packet has an end.
NAMES_MAX: Final = 64
NAME_CHARACTERS_MAX: Final = 255


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
        self._relays: set[Relay] = set()
        #: Made of files that looked like that. Reading them costs more than a handshake does.
        self._context: ssl.SSLContext | None = None
        self._context_of: list[tuple[int, int, int, int]] = []
        self._ending = False
        self.finished: asyncio.Future[None] = loop.create_future()
        channel.setblocking(False)
        loop.add_reader(channel.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data, fds = receive_packet(self._channel)
        except (BlockingIOError, InterruptedError):
            return
        if not data:
            self._end()
            return
        number = int(data)
        if fds:
            self._take(number, socket.socket(fileno=fds[0]))
        else:
            self._answer({"number": number, "error": "the client's descriptor did not arrive"})

    def _take(self, number: int, client: socket.socket) -> None:
        try:
            context = self._fresh_context()
        except OSError as error:
            client.close()
            self._answer({"number": number, "error": f"no certificate: {reason_of(error)}"})
            return

        def shaken(relay: Relay, failure: str) -> None:
            deadline.cancel()
            if failure:
                self._answer({"number": number, "error": f"the TLS handshake failed: {failure}"})
            else:
                self._begin(number, relay)

        relay = Relay(self._loop, client, context, shaken, self._ended)
        deadline = self._loop.call_later(self._handshake_s, relay.close, "it took too long")
        self._relays.add(relay)

    def _fresh_context(self) -> ssl.SSLContext:
        """Of the files as they are now, so that renewed certificates are used without a restart.
        Raises OSError."""
        paths = filter(None, (self._files.certificate, self._files.key, self._files.authority))
        found = [os.stat(path) for path in paths]
        seen = [(each.st_dev, each.st_ino, each.st_size, each.st_mtime_ns) for each in found]
        if self._context is None or seen != self._context_of:
            # Looked at before it is read, so that what changes meanwhile is read again.
            self._context, self._context_of = server_context(self._files), seen
        return self._context

    def _begin(self, number: int, relay: Relay) -> None:
        """Give the server its end. Whatever fails, an answer is given: without one the server
        would think that this process hangs, and end it with all of its clients."""
        problem: OSError | None = None
        far: socket.socket | None = None
        try:
            identity = identity_of(relay.session)
            near, far = socket.socketpair()
        except OSError as error:
            problem = error
        finally:
            if far is None:
                # No descriptor is left, or it is an error of ours, which goes on to the relay.
                text = f"the TLS proxy has no place for it: {problem or sys.exception()}"
                self._answer({"number": number, "error": text})
        if far is None:
            relay.close()
            return
        with far:
            for end in (near, far):
                grow_send_buffer(end, SEND_BUFFER_BYTES)
            relay.join(near)
            if not self._answer({"number": number} | identity, far):
                relay.close()

    def _ended(self, relay: Relay) -> None:
        self._relays.discard(relay)
        if self._ending and not self._relays:
            self._finish()

    def _end(self) -> None:
        self._loop.remove_reader(self._channel.fileno())
        self._ending = True
        if self._relays:
            self._loop.call_later(DRAIN_S, self._finish)
        else:
            self._finish()

    def _finish(self) -> None:
        if not self.finished.done():
            self.finished.set_result(None)

    def _answer(self, said: dict[str, Any], plain: socket.socket | None = None) -> bool:
        """Whether the server could be told."""
        fds = [plain.fileno()] if plain is not None else []
        try:
            socket.send_fds(self._channel, [json.dumps(said).encode()], fds)
        except OSError:
            # It is gone, which the channel's end says, or takes no answers; then this one is lost.
            return False
        return True


def identity_of(session: ssl.SSLObject) -> dict[str, Any]:
    """The names and the SHA-256 of the certificate that the client showed, empty for none."""
    raw = session.getpeercert(binary_form=True)
    shown: dict[str, Any] = session.getpeercert() or {}
    alternatives = cast(tuple[tuple[str, str], ...], shown.get("subjectAltName", ()))
    names = [value for kind, value in alternatives if kind in ("DNS", "URI", "email")]
    if not alternatives:
        subject = [field for fields in shown.get("subject", ()) for field in fields]
        names = [value for kind, value in subject if kind == "commonName"]
    names = [name for name in names if len(name) <= NAME_CHARACTERS_MAX][:NAMES_MAX]
    return {"names": names, "fingerprint": hashlib.sha256(raw).hexdigest() if raw else ""}


def main(argv: list[str] | None = None) -> int:
    """Serve until the channel ends."""
    parser = argparse.ArgumentParser(prog="nbdserver.tls_proxy")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--settings", required=True)
    arguments = parser.parse_args(argv)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        # The server decides; a signal to the whole process group is its alone.
        signal.signal(number, signal.SIG_IGN)
    loop = _new_event_loop()
    asyncio.set_event_loop(loop)
    proxy = Proxy(loop, socket.socket(fileno=arguments.channel_fd), arguments.settings)
    loop.run_until_complete(proxy.finished)
    # Clients of a server that is gone are of no use to anybody.
    os._exit(0)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


if __name__ == "__main__":
    sys.exit(main())

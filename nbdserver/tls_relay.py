"""One client's TLS: a handshake, then bytes carried between the client and the server, both ways.

Runs in a proxy process (`tls_proxy.py`), on plain reader and writer callbacks of its loop. What one
side does not take stops the other from being read, so that no client makes the process grow. An
end is passed on as an end: a client that says goodbye, or closes for sending, still gets its
answers, and when the server has closed the client gets what is left and a close_notify.

An error of ours ends this client and no other.

Spec: RFC 8446, section 6.1 (closure alerts).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import sys
import traceback
from collections.abc import Callable
from typing import Final

from nbdserver.tls import reason_of

#: What one receive takes, in either direction. A TLS record has up to 16 KiB of plaintext.
RECEIVE_BYTES: Final = 256 << 10
#: What a client does not take before it is not read any more. More than the server's own share,
#: which is one receive: only a client that asks for new keys all the time gets that far.
UNSENT_BYTES_MAX: Final = 1 << 20
#: For a client to read what was sent before a close, while it still sends itself.
LINGER_S: Final = 1.0
#: A client that takes nothing for so long is not waited for once the server has closed.
LOOK_S: Final = 5.0
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR

#: Shared by all relays of a process, because nothing stays in them between two callbacks.
_received: Final = memoryview(bytearray(RECEIVE_BYTES))
_plaintext: Final = memoryview(bytearray(RECEIVE_BYTES))
_NOTHING: Final = memoryview(b"")


class Relay:
    """Between `client`, which it owns, and the socket given to `join`.

    `shaken` is called once: with "" when the handshake is done, to call `join` or `close`, or with
    why it is not. `ended` is called once, when everything is closed.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        client: socket.socket,
        context: ssl.SSLContext,
        shaken: Callable[[Relay, str], None],
        ended: Callable[[Relay], None],
    ) -> None:
        self._loop = loop
        self._client = client
        self._server: socket.socket | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._shaken: Callable[[Relay, str], None] | None = shaken
        self._ended = ended
        self._to_server = self._to_client = _NOTHING
        self._client_ended = self._server_ended = False
        self._closed = False
        #: While the client does not take what it is sent: the next look, and bytes that it took.
        self._look_timer: asyncio.TimerHandle | None = None
        self._sent_bytes = 0
        #: Callbacks that the loop has now, by descriptor and direction.
        self._reads: set[int] = set()
        self._writes: set[int] = set()
        client.setblocking(False)
        self._read(client, True, self._client_readable)

    def join(self, server: socket.socket) -> None:
        """From now on what either side sends goes to the other. `server` becomes its own."""
        server.setblocking(False)
        self._server = server

    def close(self, reason: str = "it left") -> None:
        """Close both sides now, with no goodbye."""
        if self._closed:
            return
        self._closed = True
        if self._look_timer is not None:
            self._look_timer.cancel()
        for sock in (self._client, self._server):
            if sock is not None:
                self._read(sock, False)
                self._write(sock, False)
                with contextlib.suppress(OSError):
                    # The server has a descriptor of the client's connection, too.
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
        self._to_server = self._to_client = _NOTHING
        self._report(reason)
        self._ended(self)

    def _report(self, failure: str) -> None:
        """Say once how the handshake ended."""
        shaken, self._shaken = self._shaken, None
        if shaken is not None:
            shaken(self, failure)

    # From the client.

    def _client_readable(self) -> None:
        try:
            count = self._client.recv_into(_received)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(reason_of(error))
            return
        if count:
            self._incoming.write(_received[:count])
        else:
            self._incoming.write_eof()
        if self._server is None:
            self._shake_hands()
        else:
            self._decrypt()

    def _shake_hands(self) -> None:
        try:
            self.session.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()
            self._report(reason_of(error))
            self._leave()
            return
        self._flush()
        if not self._closed:
            self._report("")
        if not self._closed:
            self._decrypt()

    def _decrypt(self) -> None:
        """Pass on what was received, as far as the server takes it."""
        try:
            while not self._to_server and not self._client_ended and not self._closed:
                count = self._take_plaintext()
                if not count:
                    break
                self._send_to_server(_plaintext[:count])
        except ssl.SSLError as error:
            # Somebody changed bytes on the way: nothing that comes now can be believed.
            self.close(reason_of(error))
            return
        if self._outgoing.pending:
            self._flush()
        self._arrange()

    def _take_plaintext(self) -> int:
        count = 0
        try:
            while count < RECEIVE_BYTES:
                part = int(self.session.read(RECEIVE_BYTES - count, _plaintext[count:]))
                if not part:
                    self._client_ended = True
                    break
                count += part
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            self._client_ended = True
        return count

    def _send_to_server(self, data: memoryview) -> None:
        assert self._server is not None
        try:
            sent = self._server.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            # It has closed; what it sent before is still to be carried.
            self._client_ended = True
            return
        if sent < len(data):
            self._to_server = memoryview(bytes(data[sent:]))

    def _server_writable(self) -> None:
        data, self._to_server = self._to_server, _NOTHING
        self._send_to_server(data)
        self._decrypt()

    # From the server.

    def _server_readable(self) -> None:
        assert self._server is not None
        try:
            count = self._server.recv_into(_received)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        try:
            if count:
                data = _received[:count]
                while data:
                    data = data[self.session.write(data) :]
            else:
                self._say_goodbye()
        except ssl.SSLError as error:
            self.close(reason_of(error))
            return
        self._flush()
        self._arrange()

    def _say_goodbye(self) -> None:
        self._server_ended = True
        with contextlib.suppress(ssl.SSLError, ValueError):
            # Its close_notify is sent; the client's own is not waited for.
            self.session.unwrap()

    def _flush(self) -> None:
        """Send what is encrypted, as far as the client takes it."""
        if self._outgoing.pending:
            fresh = self._outgoing.read()
            rest = self._to_client
            self._to_client = memoryview(bytes(rest) + fresh if rest else fresh)
        while self._to_client and not self._closed:
            try:
                sent = self._client.send(self._to_client)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                self.close(reason_of(error))
                return
            self._to_client = self._to_client[sent:]
            self._sent_bytes += sent
        self._write(self._client, bool(self._to_client), self._client_writable)
        if self._to_client and self._look_timer is None and not self._closed:
            self._look_timer = self._loop.call_later(LOOK_S, self._look, self._sent_bytes)

    def _look(self, sent_bytes: int) -> None:
        """Give up a client that takes nothing of a server that is gone, which nobody counts."""
        self._look_timer = None
        if self._closed or not self._to_client:
            return
        if self._sent_bytes == sent_bytes and self._server_is_gone():
            self.close()
            return
        self._look_timer = self._loop.call_later(LOOK_S, self._look, self._sent_bytes)

    def _server_is_gone(self) -> bool:
        """Whether the server has closed, even if not all that it sent is read yet."""
        if self._server is None or self._server_ended:
            return True
        poll = select.poll()
        poll.register(self._server.fileno(), _GONE)
        return bool(poll.poll(0))

    def _client_writable(self) -> None:
        self._flush()
        self._arrange()

    # What is waited for, and the end.

    def _arrange(self) -> None:
        server = self._server
        if self._closed or server is None:
            return
        if self._server_ended and not self._to_client:
            self._leave()
            return
        if self._client_ended and not self._to_server:
            with contextlib.suppress(OSError):
                server.shutdown(socket.SHUT_WR)
        overdue = len(self._to_client) > UNSENT_BYTES_MAX
        wanted = not self._client_ended and not self._to_server and not overdue
        self._read(self._client, wanted, self._client_readable)
        self._write(server, bool(self._to_server), self._server_writable)
        self._read(server, not self._server_ended and not self._to_client, self._server_readable)

    def _leave(self) -> None:
        """Everything is sent: close such that no reset, which unread bytes cause, overtakes it."""
        if self._closed:
            return
        server, self._server = self._server, None
        if server is not None:
            self._read(server, False)
            self._write(server, False)
            server.close()
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_WR)
        if self._client_ended:
            self.close()
            return
        self._read(self._client, False)
        self._read(self._client, True, self._discard)
        self._loop.call_later(LINGER_S, self.close)

    def _discard(self) -> None:
        try:
            count = self._client.recv_into(_received)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if not count:
            self.close()

    def _read(
        self, sock: socket.socket, wanted: bool, callback: Callable[[], None] | None = None
    ) -> None:
        fd = sock.fileno()
        if wanted and fd not in self._reads and callback is not None:
            self._reads.add(fd)
            self._loop.add_reader(fd, self._guarded, callback)
        elif not wanted and fd in self._reads:
            self._reads.discard(fd)
            self._loop.remove_reader(fd)

    def _write(
        self, sock: socket.socket, wanted: bool, callback: Callable[[], None] | None = None
    ) -> None:
        fd = sock.fileno()
        if wanted and fd not in self._writes and callback is not None:
            self._writes.add(fd)
            self._loop.add_writer(fd, self._guarded, callback)
        elif not wanted and fd in self._writes:
            self._writes.discard(fd)
            self._loop.remove_writer(fd)

    def _guarded(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as bug:  # ours; it ends this client and no other
            traceback.print_exception(bug, file=sys.stderr)
            self.close("an error of the TLS proxy")

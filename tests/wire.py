"""A TCP proxy on loopback between two nodes: counts what crosses, and cuts it on demand.

What a daemon says of its own traffic is not evidence; this is. One thread, blocking sockets behind
a selector; bytes are passed on in order and unchanged.
"""

from __future__ import annotations

import selectors
import socket
import threading
from types import TracebackType
from typing import Self

CHUNK_BYTES = 256 << 10
POLL_S = 0.1
CONNECT_DEADLINE_S = 5.0


class CountingProxy:
    """Listens on `port` and passes every connection on to `target_port`. A context manager.

    `sent_bytes` crossed from the dialer to the target, `received_bytes` the other way, since the
    proxy was made; connections may come and go.
    """

    def __init__(self, port: int, target_port: int) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self.connections = 0
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", port))
        self._other: dict[socket.socket, socket.socket] = {}
        self._dialers: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._cut_asked = threading.Event()
        self._ended = threading.Event()
        self._refusing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="counting proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def cut(self) -> None:
        """Close all connections at once, whatever is under way; new ones are accepted."""
        self._cut_asked.set()

    def part(self) -> None:
        """Close all connections and every new one until `heal`."""
        self._refusing.set()
        self._cut_asked.set()

    def heal(self) -> None:
        """Accept connections again."""
        self._refusing.clear()

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(POLL_S):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._listener:
                    self._accept()
                elif sock in self._other:
                    self._pass_on(sock)
            if self._cut_asked.is_set():
                self._cut_asked.clear()
                self._close_all()
        self._close_all()
        self._listener.close()
        self._selector.close()

    def _accept(self) -> None:
        dialer, _ = self._listener.accept()
        if self._refusing.is_set():
            dialer.close()
            return
        try:
            target = socket.create_connection(("127.0.0.1", self._target_port), CONNECT_DEADLINE_S)
        except OSError:
            dialer.close()
            return
        self.connections += 1
        self._dialers.add(dialer)
        for sock, other in ((dialer, target), (target, dialer)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Blocking with a limit: a node that does not read must not stop the proxy for ever.
            sock.settimeout(CONNECT_DEADLINE_S)
            self._other[sock] = other
            self._selector.register(sock, selectors.EVENT_READ)

    def _pass_on(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(CHUNK_BYTES)
            self._other[sock].sendall(data)
        except OSError:
            data = b""
        if not data:
            self._close(sock)
        elif sock in self._dialers:
            self.sent_bytes += len(data)
        else:
            self.received_bytes += len(data)

    def _close(self, sock: socket.socket) -> None:
        for end in (sock, self._other[sock]):
            self._selector.unregister(end)
            del self._other[end]
            self._dialers.discard(end)
            end.close()

    def _close_all(self) -> None:
        while self._other:
            self._close(next(iter(self._other)))

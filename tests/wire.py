"""A TCP proxy on loopback between two nodes: counts what crosses, cuts and damages it on demand.

What a daemon says of its own traffic is not evidence; this is. One thread, blocking sockets behind
a selector; bytes are passed on in order, and unchanged unless a test asks for something else.
"""

from __future__ import annotations

import contextlib
import enum
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

CHUNK_BYTES = 256 << 10
POLL_S = 0.1
CONNECT_DEADLINE_S = 5.0
FAULT_DEADLINE_S = 60.0


class Way(enum.Enum):
    """A direction across the wire."""

    FROM_DIALER = "from the dialer"
    TO_DIALER = "to the dialer"


@dataclass(slots=True)
class _Fault:
    """What is to happen to the byte that is `bytes_left` away on its way across."""

    way: Way
    bytes_left: int
    #: The bits to turn over in that byte; 0: the connection is cut before it instead.
    flip: int


class CountingProxy:
    """Listens on `port` and passes every connection on to `target_port`. A context manager.

    `sent_bytes` crossed from the dialer to the target, `received_bytes` the other way, since the
    proxy was made; connections may come and go.
    """

    def __init__(self, port: int, target_port: int) -> None:
        self.sent_bytes = 0
        self.received_bytes = 0
        self.connections = 0
        #: What crosses arrives this much later, in either direction.
        self.delay_s = 0.0
        #: On their way: when they arrive, from which socket, the bytes; none at its end.
        self._under_way: deque[tuple[float, socket.socket, bytes]] = deque()
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", port))
        self._other: dict[socket.socket, socket.socket] = {}
        self._dialers: set[socket.socket] = set()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._cut_asked = threading.Event()
        self._cut_done = threading.Event()
        self._ended = threading.Event()
        self._refusing = threading.Event()
        self._fault: _Fault | None = None
        self._fault_done = threading.Event()
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
        """Close all connections, whatever is under way; new ones are accepted.

        Nothing that is sent after this has returned crosses on them.
        """
        self._cut_done.clear()
        self._cut_asked.set()
        assert self._cut_done.wait(FAULT_DEADLINE_S), "the proxy's thread hangs"

    def part(self) -> None:
        """Close all connections and every new one until `heal`."""
        self._refusing.set()
        self.cut()

    def heal(self) -> None:
        """Accept connections again."""
        self._refusing.clear()

    def cut_after(self, way: Way, count: int) -> None:
        """Cut the connection once `count` more bytes have crossed that way."""
        self._plan(_Fault(way, count, 0))

    def flip_after(self, way: Way, count: int, bit: int) -> None:
        """Turn over one bit (0 to 7) of the byte that follows `count` more bytes that way."""
        self._plan(_Fault(way, count, 1 << bit))

    def _plan(self, fault: _Fault) -> None:
        assert self._fault is None, "one fault at a time"
        self._fault_done.clear()
        self._fault = fault

    def wait_fault(self, deadline_s: float = FAULT_DEADLINE_S) -> None:
        """Wait until the planned fault has happened."""
        assert self._fault_done.wait(deadline_s), "too few bytes crossed for the fault"

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(self._pause_s()):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._listener:
                    self._accept()
                elif sock in self._other:
                    self._pass_on(sock)
            while self._under_way and self._under_way[0][0] <= time.monotonic():
                _, sock, data = self._under_way.popleft()
                self._deliver(sock, data)
            if self._cut_asked.is_set():
                self._cut_asked.clear()
                self._close_all()
                self._cut_done.set()
        self._close_all()
        self._listener.close()
        self._selector.close()

    def _pause_s(self) -> float:
        if not self._under_way:
            return POLL_S
        return min(POLL_S, max(0.0, self._under_way[0][0] - time.monotonic()))

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
        except OSError:
            data = b""
        if not self.delay_s:
            self._deliver(sock, data)
            return
        self._under_way.append((time.monotonic() + self.delay_s, sock, data))
        if not data:
            # Its end is readable for ever; what was sent before still arrives.
            self._selector.unregister(sock)

    def _deliver(self, sock: socket.socket, data: bytes) -> None:
        if sock not in self._other:
            return  # cut while this was under way
        way = Way.FROM_DIALER if sock in self._dialers else Way.TO_DIALER
        ended = not data
        fault = self._fault
        if fault is not None and fault.way is way:
            data, ended = self._damaged(fault, data, ended)
        try:
            self._other[sock].sendall(data)
        except OSError:
            data, ended = b"", True
        if way is Way.FROM_DIALER:
            self.sent_bytes += len(data)
        else:
            self.received_bytes += len(data)
        if ended:
            self._close(sock)

    def _damaged(self, fault: _Fault, data: bytes, ended: bool) -> tuple[bytes, bool]:
        """Return what crosses instead of `data`, and whether the connection ends behind it."""
        place = fault.bytes_left
        if len(data) <= place:
            fault.bytes_left -= len(data)
            return data, ended
        self._fault = None
        self._fault_done.set()
        if not fault.flip:
            return data[:place], True
        return data[:place] + bytes([data[place] ^ fault.flip]) + data[place + 1 :], ended

    def _close(self, sock: socket.socket) -> None:
        for end in (sock, self._other[sock]):
            with contextlib.suppress(KeyError):
                self._selector.unregister(end)
            del self._other[end]
            self._dialers.discard(end)
            end.close()

    def _close_all(self) -> None:
        while self._other:
            self._close(next(iter(self._other)))

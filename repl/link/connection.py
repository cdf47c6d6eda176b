"""One TCP connection to a peer: frames in and out, without copies on the way.

Received payloads are slices of a large buffer; while somebody needs them (`keep_received`) it is
filled up and then replaced, never overwritten. Sent payloads stay where they are until the kernel
has taken them. One receive and one send per wake-up, whatever they hold. A broken frame or socket
calls `on_lost` once, with the reason. Knows nothing of what frames mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Protocol

from repl.core import wire
from repl.core.wire import HEADER_BYTES, PAYLOAD_BYTES_MAX, Header, PeerError
from repl.link.tls import TlsSocket

RECEIVE_BUFFER_BYTES = 2 << 20
#: Room that is always there for one whole frame.
_FRAME_BYTES_MAX = HEADER_BYTES + PAYLOAD_BYTES_MAX
SOCKET_BUFFER_BYTES = 4 << 20
#: Buffers per sendmsg (Linux IOV_MAX).
BUFFERS_PER_SEND = 1024


class Hold(Protocol):
    """Whoever owns a payload that is being sent; released when the kernel has taken it."""

    def release(self) -> None: ...


Frame = tuple[Header, memoryview]


class PeerConnection:
    """Drives one connected, non-blocking socket. Everything happens on the loop's thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket | TlsSocket,
        on_frames: Callable[[PeerConnection, list[Frame]], None],
        on_lost: Callable[[PeerConnection, str], None],
        peer_timeout_s: float,
    ) -> None:
        self._loop = loop
        self._sock = sock
        #: The same socket if it is encrypted: then it may hold bytes that no wake-up announces.
        self._tls = sock if isinstance(sock, TlsSocket) else None
        self._fd = sock.fileno()
        self._on_frames = on_frames
        self._on_lost = on_lost
        self._buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
        self._start = 0
        self._end = 0
        self._outgoing: deque[tuple[bytes | memoryview, Hold | None]] = deque()
        self._writing = False
        self._kept = False
        self.closed = False
        #: Whether it ended because what arrived was no frame, or a damaged one.
        self.broken = False
        #: Bytes queued and not yet taken by the kernel.
        self.unsent_bytes = 0
        self.received_bytes = 0
        self.sent_bytes = 0
        _tune(sock, peer_timeout_s)

    def start(self) -> None:
        """Begin to receive."""
        self._loop.add_reader(self._fd, self._readable)
        if self._tls is not None and self._tls.pending:
            self._loop.call_soon(self._readable_still)

    def send(self, data: bytes | memoryview, hold: Hold | None = None) -> None:
        """Queue bytes; `hold` is released when they are sent or given up."""
        if self.closed:
            if hold is not None:
                hold.release()
            return
        self._outgoing.append((data, hold))
        self.unsent_bytes += len(data)

    def flush(self) -> None:
        """Send what is queued: once per turn."""
        if self._outgoing and not self._writing and not self.closed:
            self._send()

    def keep_received(self) -> None:
        """Slices of what was received are still needed: overwrite nothing after this turn."""
        self._kept = True

    def close(self) -> None:
        """Close now; `on_lost` is not called for what this side does itself."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        self._sock.close()
        while self._outgoing:
            hold = self._outgoing.popleft()[1]
            if hold is not None:
                hold.release()
        self.unsent_bytes = 0

    # Receiving.

    def _readable(self) -> None:
        room = self._buffer[self._end :]
        try:
            count = self._sock.recv_into(room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            # A TLS record that was damaged on its way is what a damaged frame is without TLS.
            self.broken = isinstance(error, ssl.SSLError)
            self._lost(f"receiving failed: {error.strerror}")
            return
        if not count:
            self._lost("the peer closed the connection")
            return
        self._end += count
        self.received_bytes += count
        try:
            frames = self._parse()
        except PeerError as error:
            self.broken = True
            self._lost(f"a broken frame: {error}")
            return
        if frames:
            self._kept = False
            self._on_frames(self, frames)
        if not self.closed:
            self._make_room()
            if self._tls is not None and self._tls.pending:
                self._loop.call_soon(self._readable_still)

    def _readable_still(self) -> None:
        if not self.closed:
            self._readable()

    def _parse(self) -> list[Frame]:
        buffer, start, end = self._buffer, self._start, self._end
        frames: list[Frame] = []
        while end - start >= HEADER_BYTES:
            header = wire.decode_header(buffer, start)
            stop = start + HEADER_BYTES + header.payload_bytes
            if stop > end:
                break
            payload = buffer[start + HEADER_BYTES : stop]
            wire.verify(header, buffer, payload, start)
            frames.append((header, payload))
            start = stop
        self._start = start
        return frames

    def _make_room(self) -> None:
        if self._start == self._end and not self._kept:
            self._start = self._end = 0
        elif RECEIVE_BUFFER_BYTES - self._start < _FRAME_BYTES_MAX:
            rest = bytes(self._buffer[self._start : self._end])
            if self._kept:
                # Whoever holds slices keeps the old buffer alive; it is theirs now.
                self._buffer = memoryview(bytearray(RECEIVE_BUFFER_BYTES))
                self._kept = False
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)

    # Sending.

    def _send(self) -> None:
        outgoing = self._outgoing
        while outgoing:
            batch = [outgoing[i][0] for i in range(min(len(outgoing), BUFFERS_PER_SEND))]
            try:
                count = self._sock.sendmsg(batch)
            except (BlockingIOError, InterruptedError):
                break
            except OSError as error:
                # Reported from the loop, so that no turn finds its own connection gone under it.
                self._loop.call_soon(self._lost, f"sending failed: {error.strerror}")
                return
            self._sent(count)
        backlog = self._tls is not None and self._tls.backlog
        if (outgoing or backlog) and not self._writing:
            self._writing = True
            self._loop.add_writer(self._fd, self._writable)

    def _sent(self, count: int) -> None:
        outgoing = self._outgoing
        self.unsent_bytes -= count
        self.sent_bytes += count
        while outgoing:
            data, hold = outgoing[0]
            size = len(data)
            if count < size:
                if count:
                    outgoing[0] = (memoryview(data)[count:], hold)
                return
            count -= size
            outgoing.popleft()
            if hold is not None:
                hold.release()

    def _writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._writing = False
        if self._tls is not None and not self._flush_encrypted(self._tls):
            return
        self._send()

    def _flush_encrypted(self, tls: TlsSocket) -> bool:
        """Send what is encrypted already; False if the connection is lost."""
        try:
            tls.flush()
        except OSError as error:
            self._lost(f"sending failed: {error.strerror}")
            return False
        return True

    def _lost(self, reason: str) -> None:
        if not self.closed:
            self.close()
            self._on_lost(self, reason)


def _tune(sock: socket.socket | TlsSocket, peer_timeout_s: float) -> None:
    sock.setblocking(False)
    # A socket that is no TCP one (a test's pair) has none of these.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(peer_timeout_s * 1000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)

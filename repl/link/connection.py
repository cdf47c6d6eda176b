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
from collections.abc import Callable, Sequence
from typing import Protocol

from repl.core import wire
from repl.core.wire import HEADER_BYTES, PAYLOAD_BYTES_MAX, Frame, PeerError
from repl.link.drain import Drain
from repl.link.tls import TlsSocket

RECEIVE_BUFFER_BYTES = 2 << 20
#: Room that is always there for one whole frame.
_FRAME_BYTES_MAX = HEADER_BYTES + PAYLOAD_BYTES_MAX
SOCKET_BUFFER_BYTES = 4 << 20
# Linux's own numbers, which the socket module does not export.
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
#: Buffers per sendmsg (Linux IOV_MAX).
BUFFERS_PER_SEND = 1024


class Owner(Protocol):
    """Whoever owns a payload that is being sent; it is kept until the kernel has taken it."""

    def retain(self) -> None: ...
    def release(self) -> None: ...


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
        self._outgoing: list[bytes | memoryview] = []
        #: Owners to release once so many bytes have been sent over the connection's life.
        self._owners: deque[tuple[int, Sequence[Owner]]] = deque()
        self._queued_bytes = 0
        self._writing = False
        self._kept = False
        self.closed = False
        #: Whether it ended because what arrived was no frame, or a damaged one.
        self.broken = False
        self.received_bytes = 0
        self.sent_bytes = 0
        self._drain = Drain()
        tune(sock, peer_timeout_s)

    def start(self) -> None:
        """Begin to receive."""
        self._loop.add_reader(self._fd, self._readable)
        if self._tls is not None and self._tls.pending:
            self._loop.call_soon(self._readable_still)

    @property
    def unsent_bytes(self) -> int:
        """Bytes queued and not yet taken by the kernel."""
        return self._queued_bytes - self.sent_bytes

    @property
    def congested(self) -> bool:
        """Whether more waits here than the link takes within a bounded time."""
        return self._queued_bytes - self.sent_bytes > self._drain.unsent_bytes_max

    def tick(self, now_s: float) -> None:
        """Some times a second: see how fast the link is."""
        self._drain.look(now_s, self.sent_bytes, self.unsent_bytes)

    def send(self, pieces: Sequence[bytes | memoryview], owners: Sequence[Owner] = ()) -> None:
        """Send the pieces, behind what is queued: once per turn.

        What the kernel does not take now follows when it does, and the owners of the pieces are
        retained until then. Nothing is sent on a closed connection.
        """
        if self.closed:
            return
        self._outgoing += pieces
        self._queued_bytes += sum(map(len, pieces))
        if not self._writing:
            self._send()
        if owners and self._outgoing:
            for owner in owners:
                owner.retain()
            self._owners.append((self._queued_bytes, owners))

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
        self._outgoing.clear()
        self._queued_bytes = self.sent_bytes
        while self._owners:
            for owner in self._owners.popleft()[1]:
                owner.release()

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
            frames, self._start = wire.decode_frames(self._buffer, self._start, self._end)
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
            batch = outgoing if len(outgoing) <= BUFFERS_PER_SEND else outgoing[:BUFFERS_PER_SEND]
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
        self.sent_bytes += count
        if self.sent_bytes == self._queued_bytes:
            self._outgoing.clear()
        else:
            _drop_sent(self._outgoing, count)
        self._release()

    def _release(self) -> None:
        owners = self._owners
        while owners and owners[0][0] <= self.sent_bytes:
            for owner in owners.popleft()[1]:
                owner.release()

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


def _drop_sent(pieces: list[bytes | memoryview], count: int) -> None:
    """Remove the first `count` bytes."""
    whole = 0
    for piece in pieces:
        if len(piece) > count:
            break
        count -= len(piece)
        whole += 1
    del pieces[:whole]
    if count:
        pieces[0] = memoryview(pieces[0])[count:]


def tune(sock: socket.socket | TlsSocket, peer_timeout_s: float) -> None:
    """Non-blocking, no Nagle, large buffers, and an end for a connection that takes nothing."""
    sock.setblocking(False)
    # A socket that is no TCP one (a test's pair) has none of these.
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(peer_timeout_s * 1000))
    for force in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
        # Without the right to it the size would be cut to net.core.{w,r}mem_max, often 208 KiB, and
        # the kernel's own growth, which reaches further, be switched off.
        with contextlib.suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, force, SOCKET_BUFFER_BYTES)

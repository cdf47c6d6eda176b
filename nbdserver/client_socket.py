"""A client's socket on the loop: received into a given place, queued replies sent, closed once.

Owns the socket, its place in the loop and what is queued for it. Knows nothing of requests; the
`Connection` on top decides when to read and what to send.
"""

from __future__ import annotations

import asyncio
import select
import socket
from abc import ABC, abstractmethod
from struct import Struct
from typing import Final

from nbdserver.replies import ReplyQueue

LAST_LOOK_BYTES: Final = 64 << 10  # read and thrown away before closing
#: Linux's number, which the socket module does not export: bytes held for the reader, and the most
#: that may be, before six others.
_SO_MEMINFO: Final = 55
_MEMINFO: Final = Struct("=II28x")

_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR


class ClientSocket(ABC):
    """Base of `Connection`, which implements the two callbacks. The socket becomes its own."""

    __slots__ = (
        "_descriptor",
        "_leftover",
        "_loop",
        "_reading",
        "_replies",
        "_sock",
        "_wire",
        "_writing",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        leftover: bytes,
        replies: ReplyQueue,
        wire: socket.socket | None = None,
    ) -> None:
        """`leftover` was received from `sock` already and comes before everything else. `wire` is
        what the client hangs up where somebody carries its bytes to `sock`; it becomes its own."""
        self._loop = loop
        self._sock = sock
        self._wire = wire
        self._descriptor = sock.fileno()
        self._leftover = leftover
        self._replies = replies
        self._reading = self._writing = False

    @abstractmethod
    def _on_readable(self) -> None:
        """The loop's callback."""

    @abstractmethod
    def _on_writable(self) -> None:
        """The loop's callback."""

    @property
    def unsent_bytes(self) -> int:
        """Replies that the socket has not taken yet."""
        return self._replies.unsent_bytes

    def _read_on(self) -> None:
        self._reading = True
        self._loop.add_reader(self._descriptor, self._on_readable)

    def _read_off(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._descriptor)

    def _receive_into(self, room: memoryview) -> int:
        """How many bytes came, 0 at the end. Raises OSError, BlockingIOError if none is there."""
        if not self._leftover:
            return self._sock.recv_into(room)
        count = min(len(self._leftover), len(room))
        room[:count] = self._leftover[:count]
        self._leftover = self._leftover[count:]
        return count

    def _send_queued(self) -> bool:
        """Send until done or the socket is full; then the loop calls. Raises OSError.

        Returns whether the loop has just been asked to call.
        """
        replies = self._replies
        replies.send_to(self._sock)
        if replies.pieces:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._descriptor, self._on_writable)
                return True
        elif self._writing:
            self._writing = False
            self._loop.remove_writer(self._descriptor)
        return False

    def _peer_is_gone(self) -> bool:
        """Whether the other end has closed, wholly or for sending, even if not all is read yet."""
        poll = select.poll()
        poll.register(self._descriptor, _GONE)
        if self._wire is not None:
            # Bytes of a client that is gone may still be on their way to us.
            poll.register(self._wire.fileno(), _GONE)
        return bool(poll.poll(0))

    def _hides_its_end(self) -> bool:
        """Whether the other end may have closed without a way to say so: what it sent before fills
        all the room that a TCP socket has here. (A Unix socket says so at once.)"""
        wire = self._sock if self._wire is None else self._wire
        if wire.family not in (socket.AF_INET, socket.AF_INET6):
            return False
        held, most = _MEMINFO.unpack(wire.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size))
        # The window closes a little before the last byte is used.
        return bool(held * 4 > most * 3)

    def _shut_down(self) -> None:
        """Say goodbye such that replies are not lost to the reset that unread bytes cause."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
            self._sock.recv(LAST_LOOK_BYTES)
        except OSError:
            pass  # The client is gone already, or has sent nothing more.

    def _close_socket(self) -> None:
        self._read_off()
        if self._writing:
            self._loop.remove_writer(self._descriptor)
            self._writing = False
        self._sock.close()
        if self._wire is not None:
            self._wire.close()
        self._leftover = b""
        self._replies.discard()

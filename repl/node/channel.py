"""The message channel between the supervisor and one volume's worker; both ends use this class.

Owns one non-blocking `AF_UNIX`/`SOCK_SEQPACKET` socket, its outgoing queue and the framing: one
datagram is one UTF-8 JSON object of at most `MESSAGE_BYTES_MAX`, with a few file descriptors
beside it at most (SCM_RIGHTS). What the messages mean is not known here.

It must never block: a worker that was stopped (SIGSTOP) stops reading, and its channel then fills
up without delaying anybody. It must never leak a descriptor: one that no handler takes is closed
as soon as the handler returns, and one that waits in the outgoing queue is a duplicate of ours.

Both ends are ours, so a datagram that cannot be understood is a bug: the channel closes, with the
reason given to `on_close`, and the supervisor then replaces the worker.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import enum
import errno
import json
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

#: One datagram. The kernel's default send buffer (208 KiB) holds one of these with its overhead.
MESSAGE_BYTES_MAX: Final = 120 * 1024
#: Messages that wait for an end that does not read; beyond this `send` refuses.
OUTGOING_MESSAGES_MAX: Final = 4096
#: Fairness: messages handled in one wake-up of the loop.
MESSAGES_PER_WAKEUP_MAX: Final = 64
SEND_BUFFER_BYTES: Final = 1 << 20

_FDS_PER_MESSAGE_MAX: Final = 4
_FD_BYTES: Final = array.array("i").itemsize
_PR_SET_PDEATHSIG: Final = 1
#: The kernel holds too many descriptors in flight for us, or has no memory for one more.
_NO_ROOM_FOR_FD: Final = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})

Message = dict[str, Any]
OnMessage = Callable[[Message, list[int]], None]
OnClose = Callable[[str], None]


class MessageTooBig(ValueError):
    """A message whose JSON is longer than `MESSAGE_BYTES_MAX`: a bug of the sender."""


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel, both non-blocking and not inheritable."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    return ours, theirs


def die_with_parent() -> None:
    """Ask the kernel to SIGKILL this process when the thread that started it ends (prctl(2)).

    A parent that died before the call is not seen here; the end of file on the channel is.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def encode(message: Message) -> bytes:
    """Return the datagram of `message`; raise `MessageTooBig` beyond the limit."""
    data = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()
    if len(data) > MESSAGE_BYTES_MAX:
        raise MessageTooBig(
            f"a {message.get('kind')!r} message of {len(data)} bytes exceeds {MESSAGE_BYTES_MAX}"
        )
    return data


class _Sending(enum.Enum):
    """What became of one attempt to send a message."""

    SENT = enum.auto()
    WOULD_BLOCK = enum.auto()
    DROPPED = enum.auto()


class Channel:
    """One end of the channel. Reading starts with the loop's next turn after construction.

    `on_message(message, fds)` gets each message; it takes descriptors by popping them from the
    list, and those it leaves are closed. `on_close(reason)` comes once, when the other end is gone
    or broke the framing, and never because of our own `close`. Both may be set after construction,
    in the same turn of the loop.
    """

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        on_message: OnMessage | None = None,
        on_close: OnClose | None = None,
    ) -> None:
        sock.setblocking(False)
        self.on_message = on_message
        self.on_close = on_close
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = loop
        self._outgoing: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._writing = False
        self._drained: asyncio.Event = asyncio.Event()
        self._drained.set()
        self._closed = False
        loop.add_reader(self._fd, self._readable)

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def queued(self) -> int:
        """The number of messages that wait for the other end to read."""
        return len(self._outgoing)

    def send(self, message: Message, *fds: int) -> bool:
        """Send or queue one message; return false when it was dropped.

        Dropped means that the channel is closed or that `OUTGOING_MESSAGES_MAX` wait already. The
        caller keeps `fds` and may close them at once. Raises `MessageTooBig`.
        """
        assert len(fds) <= _FDS_PER_MESSAGE_MAX, "descriptors that the other end would not take"
        data = encode(message)
        if self._closed or len(self._outgoing) >= OUTGOING_MESSAGES_MAX:
            return False
        if not self._outgoing:
            outcome = self._send_now(data, fds)
            if outcome is not _Sending.WOULD_BLOCK:
                return outcome is _Sending.SENT
        self._outgoing.append((data, tuple(map(os.dup, fds))))
        if not self._writing:
            self._writing = True
            self._drained.clear()
            self._loop.add_writer(self._fd, self._writable)
        return True

    async def drained(self) -> None:
        """Wait until nothing is queued, or until the channel is closed."""
        await self._drained.wait()

    def close(self) -> None:
        """Close this end; what is still queued is dropped, with its descriptors. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        if self._writing:
            self._loop.remove_writer(self._fd)
        for _, fds in self._outgoing:
            _close_all(fds)
        self._outgoing.clear()
        self._drained.set()
        self._sock.close()

    def _send_now(self, data: bytes, fds: Sequence[int]) -> _Sending:
        """Try once. DROPPED: the channel broke, or there is no room for one more descriptor."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, _packed(fds))] if fds else []
        try:
            self._sock.sendmsg([data], rights)
        except (BlockingIOError, InterruptedError):
            return _Sending.WOULD_BLOCK
        except OSError as error:
            if error.errno == errno.EBADF:
                raise  # a descriptor that is not open: a bug of our caller, not of the channel
            if not fds or error.errno not in _NO_ROOM_FOR_FD:
                self._break(f"sending failed: {error.strerror}")
            # Otherwise only this connection is lost: whoever sits behind it connects again.
            return _Sending.DROPPED
        return _Sending.SENT

    def _writable(self) -> None:
        while self._outgoing:
            data, fds = self._outgoing[0]
            if self._send_now(data, fds) is _Sending.WOULD_BLOCK or self._closed:
                return
            self._outgoing.popleft()
            _close_all(fds)
        self._writing = False
        self._loop.remove_writer(self._fd)
        self._drained.set()

    def _readable(self) -> None:
        for _ in range(MESSAGES_PER_WAKEUP_MAX):
            if self._closed or not self._receive_one():
                return

    def _receive_one(self) -> bool:
        """Receive and deliver one message; false when there is none, or no channel any more."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                MESSAGE_BYTES_MAX + 1,
                socket.CMSG_SPACE(_FDS_PER_MESSAGE_MAX * _FD_BYTES),
                socket.MSG_CMSG_CLOEXEC,
            )
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            self._break(f"receiving failed: {error.strerror}")
            return False
        fds = _unpacked(ancillary)
        try:
            if not data:
                self._break("the other end closed the channel")
                return False
            message = _decoded(data, flags)
            if message is None:
                self._break("a datagram is not a JSON object within the limit")
                return False
            if self.on_message is not None:
                self.on_message(message, fds)
        finally:
            _close_all(fds)
        return True

    def _break(self, reason: str) -> None:
        if self._closed:
            return
        self.close()
        if self.on_close is not None:
            self.on_close(reason)


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _packed(fds: Sequence[int]) -> bytes:
    return array.array("i", fds).tobytes()


def _unpacked(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return list(fds)


def _decoded(data: bytes, flags: int) -> Message | None:
    if flags & socket.MSG_TRUNC:
        return None
    with contextlib.suppress(ValueError):
        message = json.loads(data)
        if isinstance(message, dict):
            return message
    return None

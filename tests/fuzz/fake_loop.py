"""An event loop and a socket that only move when told to, in an order that a generator decides.

They stand in for asyncio and the kernel under a real connection object, so that one input is always
the same run, thousands of runs fit into a second, and a wake-up that is lost is seen: when nothing
moves any more, everything that can be done must have been done.
"""

from __future__ import annotations

import random
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from tests.fuzz.inputs import claim

#: Steps after which a run is taken for one that never ends.
STEPS_MAX = 200_000
_SEND_SIZES = (1, 5, 16, 100, 5000, 1 << 30)


class Timer:
    """What `call_later` returns; its time never comes."""

    def cancel(self) -> None:
        """Nothing to undo."""


class FakeSocket:
    """Gives out the given pieces, then the end if there is one, and keeps what it is sent."""

    family = socket.AF_UNIX

    def __init__(self, parts: Sequence[bytes], *, ends: bool, chance: random.Random | None) -> None:
        self._parts = deque(parts)
        self._ends = ends
        self._chance = chance
        self.sent = bytearray()
        self.closed = False

    @property
    def taken(self) -> bool:
        """Whether all pieces were received."""
        return not self._parts

    @property
    def readable(self) -> bool:
        """Whether a receive would give something, be it the end."""
        return bool(self._parts) or self._ends

    def fileno(self) -> int:
        return 99

    def setblocking(self, flag: bool) -> None:
        """It never blocks."""

    def setsockopt(self, *arguments: Any) -> None:
        """Every option is fine."""

    def recv_into(self, room: memoryview) -> int:
        claim(len(room) > 0, "a receive into no room at all")
        if not self._parts:
            if self._ends:
                return 0
            raise BlockingIOError
        part = self._parts.popleft()
        count = min(len(part), len(room))
        room[:count] = part[:count]
        if count < len(part):
            self._parts.appendleft(part[count:])
        return count

    def recv(self, count: int, flags: int = 0) -> bytes:
        raise BlockingIOError

    def send(self, data: bytes | memoryview) -> int:
        return self.sendmsg([data])

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        claim(not self.closed, "bytes sent on a closed socket")
        data = b"".join(bytes(each) for each in buffers)
        if self._chance is not None:
            size = self._chance.choice(_SEND_SIZES)
            if size == 5:
                raise BlockingIOError
            data = data[:size]
        self.sent += data
        return len(data)

    def shutdown(self, how: int) -> None:
        """Nobody waits for the other end."""

    def close(self) -> None:
        self.closed = True


class FakeLoop:
    """Calls back when something can go on; which of several things goes first is a choice."""

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance
        self._ready: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._reader: Callable[[], object] | None = None
        self._writer: Callable[[], object] | None = None

    def time(self) -> float:
        return 0.0

    def call_soon(self, callback: Callable[..., object], *arguments: Any) -> None:
        self._ready.append((callback, arguments))

    def call_later(self, delay_s: float, callback: Callable[..., object], *arguments: Any) -> Timer:
        return Timer()

    def add_reader(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._reader = callback

    def remove_reader(self, descriptor: int) -> None:
        self._reader = None

    def add_writer(self, descriptor: int, callback: Callable[[], object]) -> None:
        self._writer = callback

    def remove_writer(self, descriptor: int) -> None:
        self._writer = None

    def run(self, sock: FakeSocket, others: Sequence[Callable[[], bool]] = ()) -> None:
        """Go on until nothing moves. `others` are steps beside the loop: whether one was done."""
        for _ in range(STEPS_MAX):
            steps: list[Callable[[], bool]] = [self._run_ready, self._run_writer, *others]
            steps.insert(1, lambda: self._run_reader(sock))
            if self._chance is not None:
                self._chance.shuffle(steps)
            if not any(step() for step in steps):
                return
        claim(False, "it never comes to rest")

    def _run_ready(self) -> bool:
        if not self._ready:
            return False
        callback, arguments = self._ready.popleft()
        callback(*arguments)
        return True

    def _run_reader(self, sock: FakeSocket) -> bool:
        if self._reader is None or not sock.readable:
            return False
        self._reader()
        return True

    def _run_writer(self) -> bool:
        if self._writer is None:
            return False
        self._writer()
        return True

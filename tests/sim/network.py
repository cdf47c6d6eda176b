"""The link between two nodes: connections of two ordered streams of real, encoded frames.

Frames are never reordered. A connection ends by a close of one end, by a reset of the link, or in
silence; what was under way then arrives up to some frame, or not at all. Whatever arrives is parsed
and verified by the real codec.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Protocol

from repl.core import wire
from repl.core.wire import HEADER_BYTES, Header
from tests.sim.clock import Clock

Frame = tuple[Header, memoryview]


class End(Protocol):
    """A node as a connection sees it."""

    def frames_arrived(self, connection: Connection, frames: list[Frame]) -> None: ...

    def connection_lost(self, connection: Connection, reason: str) -> None: ...


class Stream:
    """One direction of a connection."""

    def __init__(self) -> None:
        self.arriving: deque[tuple[float, bytes]] = deque()
        self.last_arrival_s = 0.0
        self.frames_left: int | None = None
        self.wake_pending = False


class Connection:
    """One connection between two nodes."""

    def __init__(self, network: Network, first: str, second: str) -> None:
        self._network = network
        self.names = (first, second)
        #: The end that still receives, by name.
        self.ends: dict[str, End] = {}
        #: Streams by the name of the receiver.
        self.streams = {first: Stream(), second: Stream()}

    def other(self, name: str) -> str:
        first, second = self.names
        return second if name == first else first

    def send(self, sender: str, data: bytes) -> None:
        """Put one frame on its way."""
        receiver = self.other(sender)
        self._network.carry(self, receiver, data)

    def close(self, name: str, *, silent: bool = False, all_arrives: bool = False) -> None:
        """This end is closed; the other one learns of it later, unless `silent`."""
        self.ends.pop(name, None)
        if not silent:
            self._network.tell_closed(self, self.other(name), all_arrives)


class Network:
    """The one link: its delays and its faults."""

    def __init__(self, clock: Clock, choice: random.Random) -> None:
        self._clock = clock
        self._choice = choice
        #: No connection can be made.
        self.cut = False
        #: Nothing arrives; it will, once the stall ends.
        self.stalled = False
        #: Nothing arrives at these nodes, for now.
        self.held_for: set[str] = set()
        self.delay_s = 0.0005
        self.jitter_s = 0.0005
        self._stalled: list[Callable[[], None]] = []
        self.connections: list[Connection] = []
        self.frames_carried = 0

    def connect(self, first: str, second: str) -> Connection:
        """Return a new connection; its ends are attached by the nodes."""
        connection = Connection(self, first, second)
        self.connections = [old for old in self.connections if old.ends] + [connection]
        return connection

    def carry(self, connection: Connection, receiver: str, data: bytes) -> None:
        stream = connection.streams[receiver]
        self.frames_carried += 1
        delay_s = self.delay_s + self._choice.random() * self.jitter_s
        arrival_s = max(stream.last_arrival_s, self._clock.now_s + delay_s)
        stream.last_arrival_s = arrival_s
        stream.arriving.append((arrival_s, data))
        self._wake(connection, receiver)

    def _wake(self, connection: Connection, receiver: str) -> None:
        stream = connection.streams[receiver]
        if stream.wake_pending or not stream.arriving:
            return
        stream.wake_pending = True
        delay_s = max(0.0, stream.arriving[0][0] - self._clock.now_s)
        self._clock.after(delay_s, lambda: self._arrive(connection, receiver))

    def _arrive(self, connection: Connection, receiver: str) -> None:
        if self.stalled or receiver in self.held_for:
            self._stalled.append(lambda: self._arrive(connection, receiver))
            return
        stream = connection.streams[receiver]
        stream.wake_pending = False
        end = connection.ends.get(receiver)
        frames: list[Frame] = []
        while stream.arriving and stream.arriving[0][0] <= self._clock.now_s:
            data = stream.arriving.popleft()[1]
            if stream.frames_left is not None:
                if not stream.frames_left:
                    stream.arriving.clear()
                    break
                stream.frames_left -= 1
            header = wire.decode_header(data)
            payload = memoryview(data)[HEADER_BYTES:]
            wire.verify(header, data, payload)
            frames.append((header, payload))
        self._wake(connection, receiver)
        if frames and end is not None:
            end.frames_arrived(connection, frames)

    def tell_closed(self, connection: Connection, name: str, all_arrives: bool) -> None:
        """The other end of `name`'s connection is gone: some prefix arrives, then the news."""
        stream = connection.streams[name]
        if stream.frames_left is None and not all_arrives:
            stream.frames_left = self._choice.randint(0, len(stream.arriving))
        delay_s = max(stream.last_arrival_s - self._clock.now_s, 0.0) + 0.0001
        self._clock.after(delay_s, lambda: self._tell(connection, name))

    def _tell(self, connection: Connection, name: str) -> None:
        if self.stalled or name in self.held_for:
            self._stalled.append(lambda: self._tell(connection, name))
            return
        end = connection.ends.pop(name, None)
        if end is not None:
            end.connection_lost(connection, "the peer closed the connection")

    def reset(self) -> None:
        """Break every connection; each side learns of it by itself."""
        for connection in self.connections:
            for name in connection.names:
                stream = connection.streams[name]
                if name in self.held_for:
                    stream.frames_left = 0
                if stream.frames_left is None:
                    stream.frames_left = self._choice.randint(0, len(stream.arriving))
                self._clock.after(
                    self._choice.random() * 0.3,
                    lambda connection=connection, name=name: self._tell(connection, name),  # type: ignore[misc]
                )

    def set_stalled(self, stalled: bool) -> None:
        """Hold everything back, or let it go on in its order."""
        self.stalled = stalled
        if not stalled:
            self._go_on()

    def hold(self, receiver: str) -> None:
        """Hold back what goes to one node."""
        self.held_for.add(receiver)

    def release(self, receiver: str) -> None:
        """What was held back for the node arrives, in its order."""
        self.held_for.discard(receiver)
        self._go_on()

    def _go_on(self) -> None:
        waiting, self._stalled = self._stalled, []
        for event in waiting:
            self._clock.after(0.0, event)

"""The link between two nodes: connections of two ordered streams of bytes, and their faults.

Bytes are never reordered. What is sent arrives in segments that may end anywhere, inside a frame
too. A connection ends by a close of one end, by a reset of the link, or in silence; what was under
way then arrives up to some byte, or not at all. The ends are what the real `PeerConnection` takes
for sockets, so its parsing, its buffers and its partial sends are part of every scenario.
"""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.sim.backlog import Backlog
from tests.sim.clock import Clock

#: A connection that breaks is noticed by its ends within this time.
NOTICED_S = 0.3
EOF = "eof"
RESET = "reset"


@dataclass(frozen=True, slots=True)
class Link:
    """How the link behaves while nothing is broken."""

    delay_s: float = 0.0005
    jitter_s: float = 0.0005
    #: How often what is sent at once arrives in two pieces, split at any byte.
    split: float = 0.2
    #: Bytes that a sender's kernel takes before it must wait.
    send_buffer_bytes: int = 4 << 20


class Loop:
    """What `PeerConnection` uses of an event loop; one for each simulated process."""

    def __init__(self, clock: Clock, backlog: Backlog) -> None:
        self._clock = clock
        self._backlog = backlog
        self._sockets: dict[int, Socket] = {}
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._alive = True

    def own(self, socket: Socket) -> None:
        """This process uses the socket from now on."""
        socket.loop = self
        self._sockets[socket.fileno()] = socket

    def stop(self) -> None:
        """The process is gone: none of its callbacks runs any more."""
        self._alive = False

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._readers[fd] = callback
        self.call_soon(self.poll, fd)

    def remove_reader(self, fd: int) -> None:
        self._readers.pop(fd, None)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        self._writers[fd] = callback
        self.call_soon(self.poll, fd)

    def remove_writer(self, fd: int) -> None:
        self._writers.pop(fd, None)

    def call_soon(self, callback: Callable[..., None], *arguments: object) -> None:
        self._clock.after(0.0, lambda: self._backlog.unless_frozen(lambda: run()))

        def run() -> None:
            if self._alive:
                callback(*arguments)

    def poll(self, fd: int) -> None:
        """Call whoever waits for this socket, for as long as there is something to do."""
        self._backlog.unless_frozen(lambda: self._poll(fd))

    def _poll(self, fd: int) -> None:
        socket = self._sockets[fd]
        while self._alive and socket.readable and (reader := self._readers.get(fd)) is not None:
            reader()
        if self._alive and socket.writable and (writer := self._writers.get(fd)) is not None:
            writer()


class Pipe:
    """One direction of a connection."""

    def __init__(self, network: Network, receiver: str) -> None:
        self._network = network
        self.receiver = receiver
        self.source: Socket | None = None
        self.target: Socket | None = None
        #: (arrival, bytes; or how the stream ends).
        self._segments: deque[tuple[float, bytes | str]] = deque()
        self._last_arrival_s = 0.0
        self.arrived: deque[bytes] = deque()
        self.ended = ""
        #: Bytes sent and not yet read.
        self.under_way = 0
        #: Bytes that will still arrive, once the connection is broken.
        self._left: int | None = None
        self._waking = False
        self._flip = False
        #: Whether a byte of it was changed on the way.
        self.corrupted = False

    @property
    def coming(self) -> int:
        """Bytes that have not arrived yet."""
        return sum(len(part) for _, part in self._segments if not isinstance(part, str))

    def send(self, data: bytes) -> None:
        """Put bytes on their way."""
        if self._left is not None or self.target is None:
            return  # nobody will ever read them
        network = self._network
        self.under_way += len(data)
        if len(data) > 1 and network.choice.random() < network.link.split:
            cut = network.choice.randrange(1, len(data))
            self._put(data[:cut])
            self._put(data[cut:])
        else:
            self._put(data)

    def corrupt(self) -> None:
        """One of the next bytes arrives changed."""
        self._flip = True

    def _put(self, part: bytes | str) -> None:
        network = self._network
        delay_s = network.link.delay_s + network.choice.random() * network.link.jitter_s
        arrival_s = max(self._last_arrival_s, network.clock.now_s + delay_s)
        self._last_arrival_s = arrival_s
        self._segments.append((arrival_s, part))
        self._wake()

    def end(self, how: str, keep: int | None = None, delay_s: float = 0.0) -> None:
        """The stream ends after `keep` more bytes (None: after all); `how` "" says so to nobody."""
        if self._left is None and keep is not None:
            self._left = keep
        if how:
            self._last_arrival_s = max(self._last_arrival_s, self._network.clock.now_s + delay_s)
            self._put(how)

    def _wake(self) -> None:
        if self._waking or not self._segments:
            return
        self._waking = True
        delay_s = max(0.0, self._segments[0][0] - self._network.clock.now_s)
        self._network.clock.after(delay_s, self._arrive)

    def _arrive(self) -> None:
        if self._network.holds(self.receiver):
            self._network.wait(self._arrive)
            return
        self._waking = False
        while self._segments and self._segments[0][0] <= self._network.clock.now_s:
            self._take(self._segments.popleft()[1])
        self._wake()
        if self.target is not None and self.target.loop is not None:
            self.target.loop.poll(self.target.fileno())

    def _take(self, part: bytes | str) -> None:
        if isinstance(part, str):
            self.ended = self.ended or part
            return
        if self._left is not None:
            part = part[: self._left]
            self._left -= len(part)
        if part and self._flip:
            place = self._network.choice.randrange(len(part))
            part = part[:place] + bytes([part[place] ^ 0x10]) + part[place + 1 :]
            self._flip, self.corrupted = False, True
        if part and self.target is not None:
            self.arrived.append(part)


class Socket:
    """One end of a connection: what `PeerConnection` uses of a non-blocking socket."""

    def __init__(self, fd: int, owner: str, incoming: Pipe, outgoing: Pipe, network: Network):
        self._fd = fd
        self._network = network
        self.owner = owner
        self.incoming = incoming
        self.outgoing = outgoing
        self.loop: Loop | None = None
        self.closed = False
        incoming.target = self
        outgoing.source = self

    def fileno(self) -> int:
        return self._fd

    def setblocking(self, _blocking: bool) -> None:
        pass

    def setsockopt(self, *_arguments: int) -> None:
        pass

    @property
    def readable(self) -> bool:
        return not self.closed and bool(self.incoming.arrived or self.incoming.ended)

    @property
    def _room(self) -> int:
        if self.outgoing.target is None:
            return self._network.link.send_buffer_bytes
        return self._network.link.send_buffer_bytes - self.outgoing.under_way

    @property
    def writable(self) -> bool:
        return not self.closed and self._room > 0

    def recv_into(self, buffer: memoryview) -> int:
        pipe = self.incoming
        if not pipe.arrived:
            if pipe.ended == EOF:
                return 0
            if pipe.ended:
                raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            raise BlockingIOError(errno.EAGAIN, "nothing has arrived")
        count = 0
        while pipe.arrived and count < len(buffer):
            part = pipe.arrived.popleft()
            taken = part[: len(buffer) - count]
            buffer[count : count + len(taken)] = taken
            count += len(taken)
            if len(taken) < len(part):
                pipe.arrived.appendleft(part[len(taken) :])
        pipe.under_way -= count
        sender = pipe.source
        if sender is not None and sender.loop is not None and not sender.closed:
            sender.loop.call_soon(sender.loop.poll, sender.fileno())
        return count

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        data = b"".join(buffers)
        taken = data[: max(0, self._room)]
        if not taken:
            raise BlockingIOError(errno.EAGAIN, "the send buffer is full")
        self.outgoing.send(taken)
        return len(taken)

    def close(self) -> None:
        """The process closes it, or the kernel does when the process dies."""
        if self.closed:
            return
        self.closed = True
        self.incoming.target = None
        choice, coming = self._network.choice, self.outgoing.coming
        if coming and choice.random() < 0.5:
            self.outgoing.end(RESET, choice.randint(0, coming))
        else:
            self.outgoing.end(EOF)
        self._network.forget(self)

    def vanish(self) -> None:
        """The machine is off: nothing says that the connection ended."""
        self.closed = True
        self.incoming.target = None
        self.outgoing.end("", self._network.choice.randint(0, self.outgoing.coming))
        self._network.forget(self)


class Network:
    """The one link: its delays and its faults."""

    def __init__(self, clock: Clock, choice: random.Random, link: Link) -> None:
        self.clock = clock
        self.choice = choice
        self.link = link
        #: No connection can be made.
        self.cut = False
        #: Nothing arrives at these nodes; it will, once that ends.
        self.stalled_for: set[str] = set()
        #: The same, by order of a script.
        self.held_for: set[str] = set()
        self._waiting: list[Callable[[], None]] = []
        self._sockets: list[Socket] = []
        self._fd = 0

    def connect(self, first: str, second: str) -> tuple[Socket, Socket]:
        """Return the two ends of a new connection."""
        there, back = Pipe(self, second), Pipe(self, first)
        ends = (
            Socket(self._fd + 1, first, back, there, self),
            Socket(self._fd + 2, second, there, back, self),
        )
        self._fd += 2
        self._sockets += ends
        return ends

    def forget(self, socket: Socket) -> None:
        """A closed end."""
        if socket in self._sockets:
            self._sockets.remove(socket)

    def holds(self, receiver: str) -> bool:
        """Whether nothing arrives there now."""
        return receiver in self.stalled_for or receiver in self.held_for

    def wait(self, event: Callable[[], None]) -> None:
        """Do this when something can arrive again."""
        self._waiting.append(event)

    @property
    def stalled(self) -> bool:
        return bool(self.stalled_for)

    def reset(self) -> None:
        """Break every connection at any byte; each side learns of it by itself."""
        for socket in self._sockets:
            pipe = socket.incoming
            keep = 0 if socket.owner in self.held_for else self.choice.randint(0, pipe.coming)
            pipe.end(RESET, keep, self.choice.random() * NOTICED_S)

    def corrupt(self, receiver: str) -> None:
        """A byte on its way to this node is changed."""
        for socket in self._sockets:
            if socket.owner == receiver:
                socket.incoming.corrupt()

    def stall(self, *receivers: str) -> None:
        """Hold back what goes to these nodes."""
        self.stalled_for |= set(receivers)

    def heal(self) -> None:
        """Connections can be made, and everything goes on in its order."""
        self.cut = False
        self.stalled_for.clear()
        self._go_on()

    def hold(self, receiver: str) -> None:
        """Hold back what goes to one node, by order of a script."""
        self.held_for.add(receiver)

    def release(self, receiver: str) -> None:
        """What was held back for the node arrives, in its order."""
        self.held_for.discard(receiver)
        self._go_on()

    def _go_on(self) -> None:
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            self.clock.after(0.0, event)

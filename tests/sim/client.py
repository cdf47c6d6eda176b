"""A client with many requests in flight: overlapping writes, trims, flushes, FUA, reads.

It connects to whichever node serves, and disappears now and then. A client that re-sends sends
what was not answered again, in its order, on the next connection, as a kernel's block device does;
one that does not leaves it in doubt for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.disk import SECTOR_BYTES
from tests.sim.ledger import Op, OpKind

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World

#: The longest trims and zeroings, in bytes: more than a frame may carry.
HUGE_BYTES = 300 << 10


@dataclass(frozen=True, slots=True)
class Load:
    """What a client does, as weights and limits."""

    depth: int = 6
    pause_s: float = 0.01
    hot_areas: int = 4
    area_bytes: int = 96 << 10
    longest_bytes: int = 32 << 10
    fua: float = 0.1
    flush: float = 0.08
    trim: float = 0.06
    zero: float = 0.03
    read: float = 0.1
    vanish: float = 0.001
    huge: float = 0.002
    resend: bool = False
    #: It connects to any node that serves, not to the first one.
    roams: bool = False


class Client:
    """One connection at a time, to the node that serves."""

    def __init__(self, world: World, load: Load) -> None:
        self.world = world
        self.load = load
        self.node: Node | None = None
        self.in_flight: dict[Op, None] = {}
        self.active = False
        #: What the last connection did not answer, to be sent again.
        self._unanswered: list[Op] = []
        self._steps = 0
        self._paused_until_s = 0.0
        choice = world.dice.clients
        last = world.geometry.size_bytes - load.area_bytes
        self._areas = [
            choice.randrange(last // SECTOR_BYTES) * SECTOR_BYTES for _ in range(load.hot_areas)
        ] + [last // SECTOR_BYTES * SECTOR_BYTES]

    def start(self) -> None:
        """Begin, or go on, to send requests."""
        self.active = True
        self._steps += 1
        self._step(self._steps)

    def _step(self, number: int) -> None:
        world, choice = self.world, self.world.dice.clients
        if number != self._steps or (not self.active and self.idle):
            return
        pause_s = self.load.pause_s * (0.2 + 1.6 * choice.random())
        world.clock.after(pause_s, lambda: self._step(number))
        if self.node is None:
            self._attach()
            return
        if not self.active or world.clock.now_s < self._paused_until_s:
            return
        if choice.random() < self.load.vanish:
            self.vanish()
            return
        while self.node is not None and len(self.in_flight) < self.load.depth:
            if not self.submit(self._random_op()) or choice.random() < 0.4:
                break

    def vanish(self) -> None:
        """Disappear without a word."""
        if self.node is not None:
            self.world.say("client", f"vanishes with {len(self.in_flight)} requests in flight")
            self.leave()

    def _attach(self) -> None:
        serving = [n for n in self.world.nodes.values() if n.serving and not n.ghosts]
        if serving:
            roams = self.load.roams
            self.attach_to(self.world.dice.clients.choice(serving) if roams else serving[0])

    def attach_to(self, node: Node) -> None:
        """Connect to this very node, which serves, and send again what was not answered."""
        assert self.node is None and node.serving
        self.node = node
        node.clients.append(self)
        unanswered, self._unanswered = self._unanswered, []
        for index, op in enumerate(unanswered):
            if not self.submit(op.again()):
                # The connection broke again; `detached` has kept those that were sent.
                self._unanswered += unanswered[index + 1 :]
                break

    def leave(self) -> None:
        """Close the connection; the node finishes what is in flight without answering."""
        if self.node is not None:
            self.node.clients.remove(self)
            self.node.client_gone()
            self.detached()

    def detached(self) -> None:
        """The connection is closed, by whichever side."""
        self.node = None
        if self.load.resend:
            self._unanswered = [*self.in_flight, *self._unanswered]
        self.in_flight.clear()

    def pause(self, seconds: float) -> None:
        """Send nothing new for a while."""
        self._paused_until_s = self.world.clock.now_s + seconds

    def burst(self, requests: int) -> None:
        """Send so many at once, whatever is in flight."""
        for _ in range(requests if self.active else 0):
            if not self.submit(self._random_op()):
                break

    def stop(self) -> None:
        """Send nothing new; what was not answered is still sent again."""
        self.active = False

    @property
    def idle(self) -> bool:
        """Whether it waits for nothing and owes nothing."""
        return not self.in_flight and not self._unanswered

    def submit(self, op: Op) -> bool:
        """Send one request; return whether the connection was still there after it."""
        if self.node is None:
            return False
        op.owner = self
        self.in_flight[op] = None
        self.node.submit(op)
        return self.node is not None

    def holds(self, op: Op) -> bool:
        """Whether this client still waits for the request."""
        return op in self.in_flight

    def answered(self, op: Op) -> None:
        self.in_flight.pop(op)
        self.world.answered_ops += 1

    def _random_op(self) -> Op:
        choice, load = self.world.dice.clients, self.load
        number = self.world.next_version()
        drawn = choice.random()
        if drawn < load.flush:
            return Op(number, OpKind.FLUSH, 0, 0, False)
        offset, length = self._random_range()
        if drawn < load.flush + load.read:
            return Op(number, OpKind.READ, offset, length, False)
        kind = OpKind.WRITE
        if drawn < load.flush + load.read + load.trim:
            kind = OpKind.TRIM
        elif drawn < load.flush + load.read + load.trim + load.zero:
            kind = OpKind.ZERO
        return Op(number, kind, offset, length, choice.random() < load.fua)

    def _random_range(self) -> tuple[int, int]:
        choice, load = self.world.dice.clients, self.load
        size_bytes = self.world.geometry.size_bytes
        if choice.random() < load.huge:
            length = min(size_bytes, HUGE_BYTES)
            offset = choice.randrange((size_bytes - length) // SECTOR_BYTES) * SECTOR_BYTES
            return offset, length
        area = choice.choice(self._areas)
        offset = area + choice.randrange(load.area_bytes // SECTOR_BYTES) * SECTOR_BYTES
        longest = load.longest_bytes // SECTOR_BYTES
        sectors = choice.choice((1, 1, 8, 8, choice.randint(1, longest)))
        return offset, min(sectors * SECTOR_BYTES, size_bytes - offset)

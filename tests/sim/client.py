"""A client with many requests in flight: overlapping writes, trims, flushes, FUA, reads.

It re-sends nothing: a request whose connection ended is in doubt for ever. It connects to whichever
node serves, and disappears now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.sim.disk import SECTOR_BYTES
from tests.sim.ledger import Op, OpKind

if TYPE_CHECKING:
    from tests.sim.node import Node
    from tests.sim.world import World


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


class Client:
    """One connection at a time, to the node that serves."""

    def __init__(self, world: World, load: Load) -> None:
        self.world = world
        self.load = load
        self.node: Node | None = None
        self.in_flight: dict[Op, None] = {}
        self.active = False
        choice = world.choice
        last = world.geometry.size_bytes - load.area_bytes
        self._areas = [
            choice.randrange(last // SECTOR_BYTES) * SECTOR_BYTES for _ in range(load.hot_areas)
        ] + [last // SECTOR_BYTES * SECTOR_BYTES]

    def start(self) -> None:
        self.active = True
        self._step()

    def _step(self) -> None:
        world = self.world
        if not self.active:
            return
        world.clock.after(self.load.pause_s * (0.2 + 1.6 * world.choice.random()), self._step)
        if self.node is None:
            self._attach()
            return
        if world.choice.random() < self.load.vanish:
            world.say("client", f"vanishes with {len(self.in_flight)} requests in flight")
            self.leave()
            return
        while self.node is not None and len(self.in_flight) < self.load.depth:
            if not self.submit(self._random_op()) or world.choice.random() < 0.4:
                break

    def _attach(self) -> None:
        for node in self.world.nodes.values():
            if node.serving and not node.ghosts:
                self.node = node
                node.clients.append(self)
                return

    def attach_to(self, node: Node) -> None:
        """Connect to this very node, which serves."""
        assert self.node is None and node.serving
        self.node = node
        node.clients.append(self)

    def leave(self) -> None:
        """Close the connection; the node finishes what is in flight without answering."""
        if self.node is not None:
            self.node.clients.remove(self)
            self.detached()

    def detached(self) -> None:
        """The connection is closed, by whichever side."""
        self.node = None
        self.in_flight.clear()

    def submit(self, op: Op) -> bool:
        """Send one request; return whether the connection was still there."""
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
        choice, load = self.world.choice, self.load
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
        choice, load = self.world.choice, self.load
        size_bytes = self.world.geometry.size_bytes
        if choice.random() < load.huge:
            length = min(size_bytes, 300 << 10)
            offset = choice.randrange((size_bytes - length) // SECTOR_BYTES) * SECTOR_BYTES
            return offset, length
        area = choice.choice(self._areas)
        offset = area + choice.randrange(load.area_bytes // SECTOR_BYTES) * SECTOR_BYTES
        longest = load.longest_bytes // SECTOR_BYTES
        sectors = choice.choice((1, 1, 8, 8, choice.randint(1, longest)))
        return offset, min(sectors * SECTOR_BYTES, size_bytes - offset)

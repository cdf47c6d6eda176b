"""A simulated node's side of its clients, as the engine does it: requests in, one answer each.

Holds every answer against the promises: who must hold the write, that this node is the only
primary, that what is read may be read, that no request is answered twice or let go of twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from tests.sim.cells import Event
from tests.sim.disk import SECTOR_BYTES
from tests.sim.ledger import WRITES, Op, OpKind
from tests.sim.requests import give
from tests.sim.violation import Rule, Violation

if TYPE_CHECKING:
    from tests.sim.client import Client
    from tests.sim.node import Node

_EVENTS = {
    OpKind.WRITE: Event.WRITE,
    OpKind.ZERO: Event.ZERO,
    OpKind.TRIM: Event.ZERO,
    OpKind.FLUSH: Event.FLUSH,
    OpKind.READ: Event.READ,
}
#: How often a read finds its blocks in the cache, and is answered within the turn.
CACHED = 0.7


class ClientPort:
    """The clients of one process and their requests in flight."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.clients: list[Client] = []
        self._in_flight: set[Op] = set()
        #: Requests that wait until the peer's socket has taken more, as in the engine.
        self._stalled: list[Op] = []

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def writes_in_flight(self) -> bool:
        return any(op.kind in WRITES for op in self._in_flight)

    @property
    def ghosts(self) -> int:
        """Requests of closed connections that may still have an effect."""
        return sum(1 for op in self._in_flight if not cast("Client", op.owner).holds(op))

    def submit(self, op: Op) -> None:
        """A request of a client that is attached here."""
        self._in_flight.add(op)
        self._node.ledger.submitted(op)
        if op.kind in WRITES and self._node.running:
            self._node.laws.requested(op.offset, op.length)
        self._node.backlog.unless_frozen(lambda: self._take(op))

    def _take(self, op: Op) -> None:
        if op not in self._in_flight or not self._node.running:
            return  # it waited in a socket that was closed meanwhile
        if self._stalled or self._node.port.congested:
            self._stalled.append(op)
        else:
            self._node.turn(lambda: self._feed(op))

    def resume(self) -> None:
        """The turn is over: what was stalled goes on if the socket has room."""
        if self._stalled and not self._node.port.congested:
            self._node.later(0.0, self._feed_stalled)

    def _feed_stalled(self) -> None:
        stalled, self._stalled = self._stalled, []
        for op in stalled:
            self._feed(op)

    def _feed(self, op: Op) -> None:
        if self._node.core.serving:
            self._node.note(_EVENTS[op.kind])
        give(self._node.core, op)

    def reply(self, op: Op) -> None:
        """The core says that the request is done."""
        node = self._node
        if op not in self._in_flight:
            raise Violation(Rule.OPS, f"{node.name}: {op} was answered twice")
        self._in_flight.discard(op)
        client = cast("Client", op.owner)
        ledger = op.ledger
        assert ledger is not None
        if not client.holds(op):
            node.laws.forgotten(op)
            ledger.given_up(op)
            return
        members = node.laws.answered(op)
        node.world.check_lone_primary(node)
        if ledger is not node.ledger:
            raise Violation(Rule.KEPT, f"{node.name}: {op} answered by another line of copies")
        node.world.check_permitted(node)
        node.world.lines.answered_under.add(node.laws.facts.generation.id)
        made = ledger.answered(op, node.world.names_of(members))
        node.world.check_answer(node, op, members, made)
        client.answered(op)

    def read(self, op: Op) -> None:
        """The core lets a read go: from the cache at once, or from the disk a little later.

        A slow one may return what was there when it began, whatever happened since.
        """
        node = self._node
        node.world.check_lone_primary(node)
        if node.laws.facts.inconsistent:
            raise Violation(Rule.INCONSISTENT, f"{node.name}: {op} from an inconsistent copy")
        before = node.data.image[op.offset : op.offset + op.length]
        assert op.ledger is not None
        op.ledger.check(before, f"{op} on {node.name}", op.offset)
        if node.world.dice.disks.random() < CACHED:
            self._read(op, before)
        else:
            node.later(node.world.disk_delay_s(node), lambda: self._read(op, before))

    def _read(self, op: Op, before: bytearray) -> None:
        node = self._node
        if op not in self._in_flight:
            return
        try:
            found = node.data.pread(op.offset, op.length)
        except OSError as error:
            node.disk_failed(f"read: {error}")
            node.core.forget(op)
            return
        self._in_flight.discard(op)
        assert op.ledger is not None
        client = cast("Client", op.owner)
        if client.holds(op):
            self._check_read(op, before, found)
            client.answered(op)
        op.ledger.given_up(op)

    def _check_read(self, op: Op, before: bytearray, found: bytes) -> None:
        assert op.ledger is not None
        what = f"{op} on {self._node.name}"
        for place in range(0, op.length, SECTOR_BYTES):
            sector = found[place : place + SECTOR_BYTES]
            if sector != before[place : place + SECTOR_BYTES]:
                op.ledger.check(sector, what, op.offset + place)

    def forget(self, op: Op) -> None:
        """Nothing of this request happened; its client's connection is closed."""
        if op not in self._in_flight:
            raise Violation(Rule.OPS, f"{self._node.name}: {op} was let go of twice")
        client = cast("Client", op.owner)
        if client.holds(op):
            self.clients.remove(client)
            client.detached()
        self._free(op)

    def _free(self, op: Op) -> None:
        """The engine is done with a request that nobody waits for."""
        self._in_flight.discard(op)
        self._node.laws.forgotten(op)
        assert op.ledger is not None
        op.ledger.given_up(op)

    def abandon(self) -> None:
        """Close every client's connection without an answer."""
        for client in list(self.clients):
            client.detached()
        self.clients.clear()

    def end(self) -> None:
        """The process is gone, and with it all that it had not answered."""
        self.abandon()
        for op in list(self._in_flight):
            self._free(op)

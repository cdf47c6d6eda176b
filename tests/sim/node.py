"""One simulated node: drives a real `Volume` as the engine does, over simulated disk and link.

Disk writes and applies happen within the turn; commits, syncs and copy reads take time, and a crash
may come between any two of their steps, or in the middle of a turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from repl.core import wire
from repl.core.facts import Facts, PeerRecord
from repl.core.outbox import Outbox, SendJob
from repl.core.promotion import PromoteRequest
from repl.core.states import Phase
from repl.core.verdict import Verdict
from repl.core.volume import Volume
from repl.core.wire import PeerError, Type
from repl.store.format import Layout
from repl.store.metadata import Metadata
from repl.store.stamp import BackingKind, Stamp
from tests.sim.backlog import Backlog
from tests.sim.disk import DataDisk, Loss, SectorDisk
from tests.sim.disk_work import DiskWork
from tests.sim.laws import Laws
from tests.sim.ledger import Op, Violation
from tests.sim.network import Connection, Frame
from tests.sim.requests import give

if TYPE_CHECKING:
    from tests.sim.client import Client
    from tests.sim.world import World

VOLUME = "r0"
TICK_S = 0.2
LEAVE_TIMEOUT_S = 5.0

#: Frames that no trace shows.
_DULL = frozenset({Type.PING, Type.PONG, Type.STATUS})


class FuseBlown(Exception):
    """The process dies here, in the middle of a turn."""


class Node:
    """A machine with two disks, and (while it runs) the process that owns the volume."""

    def __init__(self, world: World, name: str, peer: str, node_id: int) -> None:
        self.world = world
        self.name = name
        self.peer = peer
        self.node_id = node_id
        self.ledger = world.ledger  # what this copy is judged by
        size_bytes = world.geometry.size_bytes
        self.data = DataDisk(size_bytes)
        self.meta = SectorDisk(-(-Layout.for_volume(size_bytes).file_bytes // 512) * 512)
        self.boot_number = 0
        self.incarnation = 0
        self.running = False
        self.backlog = Backlog()
        self.volume: Volume | None = None
        self.laws: Laws
        self.work: DiskWork
        self.connection: Connection | None = None
        self.clients: list[Client] = []
        #: What is held back for now: "commits", "syncs", "reads"; and the events that wait.
        self.held: set[str] = set()
        self.fail_syncs = self.fail_writes = False
        #: No new block can be allocated on the data disk. Outlives the process.
        self.full = False
        self._waiting: list[Callable[[], None]] = []
        self.fuse: int | None = None
        self.fuse_loses_power = False
        self.stopping = False
        self.turns = 0
        self.contact_lost_step = 0
        self._answers: dict[int, Callable[[Verdict], None]] = {}
        self._answer_number = 0
        self._seen: tuple[bool, Phase, int] = (False, Phase.DOWN, 0)
        self._working_since = 0
        self._in_flight: set[Op] = set()

    # Disks and life.

    def make_metadata(self, *, known_zeroes: bool) -> None:
        """What `repld` does when a volume is first opened."""
        self.meta = SectorDisk(self.meta.size_bytes)
        facts = Facts(
            node_id=self.node_id,
            size_bytes=self.data.size_bytes,
            known_zeroes=known_zeroes,
            peers=(PeerRecord(self.peer),),
        )
        Metadata.create(self.meta, VOLUME, facts, Stamp(BackingKind.FILE, self.data.size_bytes))

    def stored_facts(self) -> Facts:
        """What the metadata file holds at this moment, as a restart would read it."""
        copy = SectorDisk(self.meta.size_bytes)
        copy.image[:] = self.meta.image
        return Metadata.load(copy, VOLUME).facts

    def start(self) -> None:
        """Start the process."""
        assert not self.running
        world = self.world
        loaded = Metadata.load(self.meta, VOLUME)
        for report in loaded.reports:
            world.say(self.name, f"metadata: {report}")
        self.incarnation += 1
        self.running = True
        self.backlog = Backlog()
        self.stopping = False
        self.fuse = None
        self.held.clear()
        self.fail_syncs = self.fail_writes = False
        self._waiting.clear()
        self._answers.clear()
        self._seen = (False, Phase.DOWN, 0)
        self.laws = Laws(self.name, loaded.facts, loaded.maps)
        self.volume = Volume(
            VOLUME,
            self.name,
            loaded.facts,
            loaded.maps,
            boot_id=f"{self.name}-{self.boot_number}",
            random_id=world.random_id,
            now_s=world.clock.now_s,
            wall_clock_s=world.clock.wall_clock_s,
            provider=world.provider(),
        )
        self.work = DiskWork(self, self.volume, loaded.metadata)
        self.turn(lambda: None)
        self._tick()

    def _tick(self) -> None:
        assert self.volume is not None
        self.later(TICK_S, self._tick)
        self.volume.tick()
        self.work.look_for_room()

    def disk_failed(self, reason: str) -> None:
        assert self.volume is not None
        self.volume.disk_failed(reason)
        if self.world.nodes[self.peer].laws.facts.inconsistent:
            self.world.nothing_left = True

    def crash(self) -> None:
        """SIGKILL: the process ends, the kernel's cache stays."""
        self._end(silent=False)

    def lose_power(self, loss: Loss, choice: random.Random) -> None:
        """The machine goes off, with what was not synced."""
        self._end(silent=True)
        self.boot_number += 1
        self.data.lose_power(loss, choice)
        self.meta.lose_power(loss, choice)
        self.world.cache_lost(self)

    def _end(self, *, silent: bool) -> None:
        was_running, self.running = self.running, False
        self.volume = None
        self.incarnation += 1
        if self.connection is not None:
            self.connection.close(self.name, silent=silent)
            self.connection = None
        for client in list(self.clients):
            client.detached()
        self.clients.clear()
        for op in list(self._in_flight):
            self.free(op)
        if was_running:
            self.contact_lost_step = self.world.clock.step
            self.world.process_ended(self)

    def stop(self, then: Callable[[], None] = lambda: None) -> None:
        """A clean stop, as the worker does it: leave, drop everything, close."""
        self.stopping = True
        state = {"left": False}

        def left(_verdict: Verdict | None) -> None:
            if not state["left"]:
                state["left"] = True
                self.later(0.0, close)

        def close() -> None:
            assert self.volume is not None
            self._abandon_clients()
            self.volume.sessions[self.peer].drop("this node is stopping")
            self.volume.close(lambda: self.later(0.0, closed))

        def closed() -> None:
            self._end(silent=False)
            then()

        self.admin(lambda number: self.core.leave(number), left)
        self.later(LEAVE_TIMEOUT_S, lambda: left(None))

    @property
    def core(self) -> Volume:
        assert self.volume is not None
        return self.volume

    # Events and turns.

    def later(self, delay_s: float, action: Callable[[], None]) -> None:
        """A turn of this very process, later; nothing if it is gone by then."""
        incarnation = self.incarnation

        def event() -> None:
            if self.incarnation == incarnation and self.running:
                self.backlog.unless_frozen(lambda: self.turn(action))

        self.world.clock.after(delay_s, event)

    def release(self) -> None:
        """Nothing is held back any more."""
        self.held.clear()
        waiting, self._waiting = self._waiting, []
        for action in waiting:
            self.later(0.0, action)

    def unless_held(self, what: str, action: Callable[[], None]) -> None:
        if what in self.held:
            self._waiting.append(action)
        else:
            action()

    def turn(self, action: Callable[[], None]) -> None:
        """One turn: an input, then outboxes until there are no more."""
        if not self.running:
            return
        volume, clock = self.core, self.world.clock
        try:
            volume.turn(clock.now_s, clock.wall_clock_s)
            if not volume.outbox.replies:
                self.laws.watch(volume)
            action()
            while self.running and not (box := volume.take()).empty:
                self.turns += 1
                self.laws.watch(volume)
                self._carry_out(box)
                self.work.let_go()
        except FuseBlown:
            self.world.say(self.name, "dies in the middle of a turn")
            if self.fuse_loses_power:
                self.world.power_loss(self)
            else:
                self.crash()
        if self.running:
            self._look()

    def effect(self) -> None:
        """One step towards the outside; with a fuse set, one of them is the last."""
        if self.fuse is not None:
            self.fuse -= 1
            if self.fuse <= 0:
                self.fuse = None
                raise FuseBlown

    def _look(self) -> None:
        """Notice what the turn changed, for the checkers."""
        volume, world = self.core, self.world
        session = volume.sessions[self.peer]
        generation = volume.facts.generation.id if volume.facts.lineage else 0
        seen = (volume.is_primary, session.phase, generation)
        before, self._seen = self._seen, seen
        if seen == before:
            return
        if session.phase is not before[1]:
            if session.phase is Phase.SOURCE:
                self._working_since = self.ledger.moment
            if session.phase is Phase.TARGET:
                world.lines.overwritten(self)
            if session.phase is Phase.ESTABLISHED:
                if before[1] is Phase.JOINING:
                    self.ledger.durable_everywhere(self._working_since)
                self.ledger.behind -= {self.name, self.peer}
            if session.phase is Phase.DOWN:
                self.contact_lost_step = world.clock.step
            world.cells.add((before[1].value, session.phase.value))
        if seen[0] and not before[0]:
            world.became_primary(self)

    # Carrying out.

    def _carry_out(self, box: Outbox) -> None:
        if box.commit is not None:
            self.effect()
            self.work.commit(box.commit)
        for jobs in box.send.values():
            for job in jobs:
                self.effect()
                self._send(job)
        if box.disk:
            self.work.write(box.disk)
        if box.apply:
            self.work.apply(box.apply)
        for copy in box.copies:
            self.work.copy(copy)
        if box.sync:
            self.work.sync(box.sync)
        for op in box.replies:
            self.effect()
            self._reply(cast(Op, op))
        for op in box.reads:
            self._read(cast(Op, op))
        if box.abandon_clients:
            self._abandon_clients()
        for op in box.forget:
            self._forget(cast(Op, op))
        for _peer, reason in box.drop:
            self._drop(reason)
        for note in box.notes:
            self.world.say(self.name, f"{note.code or note.level}: {note.text}")
        for number, verdict in box.answers:
            answer = self._answers.pop(number, None)
            if answer is None:
                raise Violation(f"{self.name}: request {number} was answered twice: {verdict}")
            self.world.say(self.name, f"answer: {verdict.reason} [{verdict.code}]")
            answer(verdict)

    def _send(self, job: SendJob) -> None:
        self.laws.sent(job)
        if self.connection is None:
            return
        kind, seq, offset, length, generation, flags, source = job
        payload = b""
        if kind == Type.WRITE:
            assert isinstance(source, Op)
            start = offset - source.offset
            payload = source.payload[start : start + length]
        elif kind == Type.RESYNC_WRITE:
            assert isinstance(source, int)
            payload = self.work.ready.pop(source)
        elif source is not None:
            assert isinstance(source, bytes)
            payload = source
        header = wire.encode_header(kind, payload, seq, offset, length, generation, flags)
        if self.world.verbose and kind not in _DULL:
            self.world.say(self.name, f"  → {Type(kind).name} {seq} {offset}+{length}")
        self.connection.send(self.name, header + payload)
        if kind in (Type.RESYNC_WRITE, Type.DIGEST):
            self.world.resync_bytes += len(payload)

    # Clients.

    @property
    def serving(self) -> bool:
        """Whether a client that connects now is served."""
        return self.running and not (self.stopping or self.backlog.frozen) and self.core.serving

    def submit(self, op: Op) -> None:
        """A request of a client that is attached here."""
        self._in_flight.add(op)
        self.ledger.submitted(op)
        self.backlog.unless_frozen(lambda: self.turn(lambda: self._take(op)))

    def _take(self, op: Op) -> None:
        if op not in self._in_flight:
            return  # it waited in a socket that was closed meanwhile
        give(self.core, op)

    @property
    def ghosts(self) -> int:
        """Requests of closed connections that may still have an effect."""
        return sum(1 for op in self._in_flight if not cast("Client", op.owner).holds(op))

    def _reply(self, op: Op) -> None:
        if op not in self._in_flight:
            raise Violation(f"{self.name}: {op} was answered twice")
        self._in_flight.discard(op)
        client = cast("Client", op.owner)
        if not client.holds(op):
            self.ledger.given_up(op)
            return
        members = self.laws.answered(op, self.core)
        self.world.check_permitted(self)
        self.world.check_lone_primary(self)
        holders = self.world.names_of(members)
        self.ledger.answered(op, holders)
        client.answered(op)

    def _read(self, op: Op) -> None:
        self._in_flight.discard(op)
        client = cast("Client", op.owner)
        if client.holds(op):
            self.world.check_lone_primary(self)
            found = self.data.pread(op.offset, op.length)
            self.ledger.check(found, f"{op} on {self.name}", op.offset)
            self.ledger.given_up(op)
            client.answered(op)

    def free(self, op: Op) -> None:
        """The engine is done with a request that nobody waits for."""
        self._in_flight.discard(op)
        self.ledger.given_up(op)

    def _forget(self, op: Op) -> None:
        """Nothing of this request happened; its client's connection is closed."""
        client = cast("Client", op.owner)
        if client.holds(op):
            self.clients.remove(client)
            client.detached()
        self.free(op)

    def _abandon_clients(self) -> None:
        for client in list(self.clients):
            client.detached()
        self.clients.clear()
        if not self.core.is_primary:
            # A forced step-down: nothing of them has an effect from now on.
            for op in list(self._in_flight):
                self.free(op)

    # Peers.

    def attach(self, connection: Connection) -> None:
        """A new connection; the one before it ends first, with all that it held."""
        volume = self.core
        if (old := self.connection) is not None:
            self.connection = None
            old.close(self.name)
            self.turn(lambda: volume.peer_down(self.peer, "replaced by a newer connection"))
        if not self.running:
            return
        self.connection = connection
        connection.ends[self.name] = self
        self.turn(lambda: volume.peer_up(self.peer))

    def frames_arrived(self, connection: Connection, frames: list[Frame]) -> None:
        """A batch of frames: one turn."""

        def arrive() -> None:
            if connection is self.connection:
                self.turn(lambda: self._frames(frames))

        self.backlog.unless_frozen(arrive)

    def _frames(self, frames: list[Frame]) -> None:
        volume = self.core
        try:
            for header, payload in frames:
                if self.world.verbose and header.type not in _DULL:
                    self.world.say(
                        self.name, f"  ← {header.type.name} {header.seq} {header.offset}"
                    )
                volume.peer_frame(
                    self.peer,
                    header.type,
                    header.seq,
                    header.offset,
                    header.length,
                    header.generation,
                    header.flags,
                    payload,
                )
        except PeerError as error:
            self.world.peer_error(self, str(error))
            volume.sessions[self.peer].drop(f"it broke the protocol: {error}")

    def connection_lost(self, connection: Connection, reason: str) -> None:
        """The socket broke."""
        self.backlog.unless_frozen(lambda: self._connection_lost(connection, reason))

    def _connection_lost(self, connection: Connection, reason: str) -> None:
        if connection is not self.connection or not self.running:
            return
        self.connection = None
        volume = self.core
        self.turn(lambda: volume.peer_down(self.peer, reason))

    def _drop(self, reason: str) -> None:
        if self.connection is not None:
            self.world.say(self.name, f"drops the connection: {reason}")
            connection, self.connection = self.connection, None
            connection.close(self.name)

    def admin(self, ask: Callable[[int], None], answer: Callable[[Verdict], None]) -> None:
        """Ask the core something; the verdict comes to `answer`."""
        self._answer_number += 1
        number = self._answer_number
        self._answers[number] = answer
        self.backlog.unless_frozen(lambda: self.turn(lambda: ask(number)))

    def promote(self, request: PromoteRequest, answer: Callable[[Verdict], None]) -> None:
        self.world.lines.asked(self, request)
        self.admin(lambda number: self.core.promote(number, request), answer)

    def demote(self, answer: Callable[[Verdict], None], *, drop_clients: bool = True) -> None:
        self.admin(lambda number: self.core.demote(number, drop_clients=drop_clients), answer)

    @property
    def unanswered(self) -> int:
        return len(self._answers)

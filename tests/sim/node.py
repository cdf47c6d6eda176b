"""One simulated node: drives a real `Volume` as the engine does, over simulated disk and link.

Disk writes and applies happen within the turn; commits, syncs, copy reads and cold reads take time,
and a crash may come between any two of their steps, or in the middle of a turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from repl.core.changes import Kind
from repl.core.facts import Facts, PeerRecord
from repl.core.outbox import Outbox
from repl.core.promotion import PromoteRequest
from repl.core.roles import Task
from repl.core.states import Phase, Role
from repl.core.verdict import Verdict
from repl.core.volume import Volume
from repl.errors import ReplError
from repl.store.format import Layout
from repl.store.metadata import Loaded, Metadata
from repl.store.stamp import BackingKind, Stamp
from tests.sim.backlog import Backlog
from tests.sim.cells import Column, Event
from tests.sim.client_port import ClientPort
from tests.sim.disk import DataDisk, Loss, SectorDisk
from tests.sim.disk_work import DiskWork
from tests.sim.laws import Laws
from tests.sim.ledger import Ledger, Op
from tests.sim.network import Socket
from tests.sim.peer_port import PeerPort
from tests.sim.violation import Rule, Violation

if TYPE_CHECKING:
    from tests.sim.client import Client
    from tests.sim.world import World

VOLUME = "r0"
TICK_S = 0.2
LEAVE_TIMEOUT_S = 5.0
#: How often an unsynced sector of the metadata file tears when power is lost.
TEAR = 0.15


#: What the checkers and the aimed faults follow: primary, phase, procedures under way.
Seen = tuple[bool, Phase, Kind | None, Task | None]
_NOTHING_SEEN: Seen = (False, Phase.DOWN, None, None)


class FuseBlown(Exception):
    """The process dies here, in the middle of a turn."""


class Node:
    """A machine with two disks, and (while it runs) the process that owns the volume."""

    def __init__(self, world: World, name: str, peer: str, node_id: int) -> None:
        self.world = world
        self.name = name
        self.peer = peer
        self.node_id = node_id
        self.ledger: Ledger = world.ledger
        size_bytes = world.geometry.size_bytes
        self.data = DataDisk(size_bytes)
        self.meta = SectorDisk(-(-Layout.for_volume(size_bytes).file_bytes // 512) * 512)
        self.boot_number = 0
        self.incarnation = 0
        self.running = False
        #: It has had metadata.
        self.started = False
        self.backlog = Backlog()
        self.volume: Volume | None = None
        self.laws: Laws
        self._last_known: Laws | None = None
        self.work: DiskWork
        self.port = PeerPort(self)
        self.client_port = ClientPort(self)
        #: What is held back for now: "commits", "syncs", "reads", "zeroings"; and the
        #: events that wait.
        self.held: set[str] = set()
        #: No new block can be allocated on the data disk. Outlives the process.
        self.full = False
        self._waiting: list[Callable[[], None]] = []
        self.fuse: int | None = None
        self.fuse_loses_power = False
        #: Effects between the failure of the backing and the death of the process; 0: it lives on.
        self.dies_after_failure = 0
        #: A sync failed, and the process died before it had stored that its copy failed.
        self.hidden_failure = False
        #: It lost power, and was not started since.
        self.without_cache = False
        self.stopping = False
        #: The promotion that an operator asked for last.
        self.request: PromoteRequest | None = None
        #: Whether what he said of the peer was true when he said it.
        self.vouched_truly = False
        self.turns = 0
        self.contact_lost_step = 0
        self._answers: dict[int, Callable[[Verdict], None]] = {}
        self._answer_number = 0
        self._seen: Seen = _NOTHING_SEEN
        self._working_since = 0

    def say(self, text: str) -> None:
        """A line of the trace."""
        self.world.say(self.name, text)

    def note(self, column: Column) -> None:
        """Coverage: this happens to the node now."""
        self.world.coverage.note(self.core, self.peer, column)

    def note_drop(self) -> None:
        """Coverage: the turn that is about to end closed the connection."""
        primary, phase, *_ = self._seen
        role = Role.PRIMARY if primary else Role.SECONDARY
        self.world.coverage.hits[(phase, role), Event.DROPS] += 1

    # Disks and life.

    def make_metadata(self, *, known_zeroes: bool) -> None:
        """What `repld` does when a volume is first opened."""
        self.meta = SectorDisk(self.meta.size_bytes)
        self.started = True
        facts = Facts(
            node_id=self.node_id,
            size_bytes=self.data.size_bytes,
            known_zeroes=known_zeroes,
            peers=(PeerRecord(self.peer),),
        )
        Metadata.create(self.meta, VOLUME, facts, Stamp(BackingKind.FILE, self.data.size_bytes))

    def stored(self) -> Loaded:
        """What the metadata file holds at this moment, as a restart would read it."""
        return Metadata.load(self.meta.copy(), VOLUME)

    def stored_facts(self) -> Facts:
        """The stored record."""
        return self.stored().facts

    def open(self, loaded: Loaded, boot_number: int, random_id: Callable[[], int]) -> Volume:
        """Make the core of a process that starts with this metadata."""
        world = self.world
        return Volume(
            VOLUME,
            self.name,
            loaded.facts,
            loaded.maps,
            boot_id=f"{self.name}-{boot_number}",
            random_id=random_id,
            now_s=world.clock.now_s,
            wall_clock_s=world.clock.wall_clock_s,
            timeouts=world.timeouts,
            provider=world.provider(),
        )

    def start(self) -> bool:
        """Start the process; false if its disks do not let it."""
        assert not self.running
        try:
            loaded = Metadata.load(self.meta, VOLUME)
        except OSError as error:
            self.say(f"cannot start: {error}")
            return False
        except ReplError as error:
            raise Violation(Rule.METADATA, f"{self.name}: {error.lines()}") from error
        for report in loaded.reports:
            self.say(f"metadata: {report}")
        self._notice_what_was_stored(loaded.facts)
        self.incarnation += 1
        self.running, self.without_cache = True, False
        self.backlog = Backlog()
        self.stopping = False
        self.fuse = None
        self.request = None
        self.held.clear()
        self._waiting.clear()
        self._answers.clear()
        self._seen = _NOTHING_SEEN
        self.port = PeerPort(self)
        self.client_port = ClientPort(self)
        self.laws = self._last_known = Laws(self.name, loaded.facts, loaded.maps)
        self.volume = self.open(loaded, self.boot_number, self.world.random_id)
        self.work = DiskWork(self, self.volume, loaded.metadata)
        self.turn(lambda: None)
        self._tick()
        return True

    def _notice_what_was_stored(self, facts: Facts) -> None:
        """A crash may come between a record's last step and the process hearing of it."""
        if self._last_known is not None and self._last_known.facts.node_id == facts.node_id:
            self.world.lines.stored(self, self._last_known.facts, facts)

    def _tick(self) -> None:
        if self.volume is None:
            return
        self.later(TICK_S, self._tick)
        self.volume.tick()
        self.work.look_for_room()

    def disk_failed(self, reason: str) -> None:
        """The backing returned an error."""
        self.note(Event.DISK_FAILED)
        # Before the core ends what it does for its peer: whose copy is whole is asked about now.
        self.world.copy_failed(self)
        self.core.disk_failed(reason)
        if self.dies_after_failure:
            self.fuse, self.dies_after_failure = self.dies_after_failure, 0

    def metadata_failed(self, error: OSError) -> None:
        """design §6: what the file holds is unknown, and the process ends."""
        self.say(f"the metadata cannot be written: {error}")
        self.note(Event.METADATA_FAILED)
        self.crash()
        # The kernel dropped the pages that it could not write.
        self.meta.lose_power(Loss.SOME, self.world.dice.disks)

    def sync_failed(self) -> None:
        """The kernel drops the pages of the backing that it could not write."""
        self.data.lose_power(Loss.SOME, self.world.dice.disks)
        self.world.cache_lost(self)
        self.disk_failed("sync: the disk said no")

    def crash(self) -> None:
        """SIGKILL: the process ends, the kernel's cache stays."""
        if self.running:
            self.note(Event.CRASH)
        self._end(silent=False)

    def lose_power(self, loss: Loss, choice: random.Random) -> None:
        """The machine goes off, with what was not synced."""
        if self.running:
            self.note(Event.POWER_LOSS)
        self._end(silent=True)
        self.boot_number += 1
        self.without_cache = True
        self.data.lose_power(loss, choice)
        self.meta.lose_power(loss, choice, tear=TEAR)
        self.world.cache_lost(self)

    def _end(self, *, silent: bool) -> None:
        was_running, self.running = self.running, False
        if was_running and self.core.failed and not self.laws.facts.inconsistent:
            self.hidden_failure = True
        self.volume = None
        self.backlog = Backlog()
        self.incarnation += 1
        self.port.end(silent=silent)
        self.client_port.end()
        if was_running:
            self.contact_lost_step = self.world.clock.step
            self.world.process_ended(self)

    def stop(self, then: Callable[[], None] = lambda: None) -> None:
        """A clean stop, as the worker does it: leave, drop everything, close."""
        self.stopping = True
        self.note(Event.LEAVE)
        state = {"left": False}

        def left(_verdict: Verdict | None) -> None:
            if not state["left"]:
                state["left"] = True
                self.later(0.0, close)

        def close() -> None:
            self.client_port.abandon()
            self.core.sessions[self.peer].drop("this node is stopping")
            self.core.close(lambda: self.later(0.0, closed))

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
            while self.volume is volume and not (box := volume.take()).empty:
                self.turns += 1
                self.laws.watch(volume)
                self._carry_out(box)
                self.work.start_sync()
                self.work.let_go()
        except FuseBlown:
            self.say("dies in the middle of a turn")
            if self.fuse_loses_power:
                self.world.power_loss(self)
            else:
                self.crash()
        if self.volume is volume:
            self._look()
            self.client_port.resume()

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
        seen = (volume.is_primary, session.phase, volume.changes.kind, volume.roles.task)
        before, self._seen = self._seen, seen
        if seen == before:
            return
        primary, phase, kind, task = seen
        rows = world.coverage.rows
        rows.add((phase, Role.PRIMARY if primary else Role.SECONDARY))
        rows.update(row for row in (kind, task) if row is not None)
        if session.phase is not before[1]:
            if session.phase is Phase.SOURCE:
                self._working_since = self.ledger.moment
            elif session.phase is Phase.TARGET:
                world.overwritten(self)
            elif session.phase is Phase.ESTABLISHED:
                if before[1] is Phase.JOINING:
                    self.ledger.durable_everywhere(self._working_since)
                    world.check_durable(self, world.other(self))
                self.ledger.behind -= {self.name, self.peer}
                self.hidden_failure = False
            elif session.phase is Phase.DOWN:
                self.contact_lost_step = world.clock.step
            elif session.phase is Phase.SPLIT_BRAIN:
                world.lines.split(self)
        if seen[0] and not before[0]:
            world.became_primary(self)
        world.seen(self)

    # Carrying out.

    def _carry_out(self, box: Outbox) -> None:
        if box.commit is not None:
            self.effect()
            self.work.commit(box.commit)
        for jobs in box.send.values():
            self.port.send(jobs)
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
            self.client_port.reply(cast(Op, op))
        for op in box.reads:
            self.client_port.read(cast(Op, op))
        if box.abandon_clients:
            self.client_port.abandon()
        for op in box.forget:
            self.client_port.forget(cast(Op, op))
        for _peer, reason in box.drop:
            self.port.drop(reason)
        for note in box.notes:
            self.say(f"{note.code or note.level}: {note.text}")
        for number, verdict in box.answers:
            answer = self._answers.pop(number, None)
            if answer is None:
                text = f"{self.name}: request {number} was answered twice: {verdict}"
                raise Violation(Rule.OPS, text)
            self.say(f"answer: {verdict.reason} [{verdict.code}]")
            answer(verdict)

    # Clients.

    @property
    def clients(self) -> list[Client]:
        """The clients that are attached here."""
        return self.client_port.clients

    @property
    def serving(self) -> bool:
        """Whether a client that connects now is served."""
        return self.running and not (self.stopping or self.backlog.frozen) and self.core.serving

    @property
    def ghosts(self) -> int:
        """Requests of closed connections that may still have an effect."""
        return self.client_port.ghosts

    def submit(self, op: Op) -> None:
        """A request of a client that is attached here."""
        self.client_port.submit(op)

    def client_gone(self) -> None:
        """A client closed its connection."""
        if self.running:
            self.note(Event.CLIENT_GONE)

    # Operators and peers.

    def attach(self, end: Socket) -> None:
        """A new connection to the peer."""
        self.backlog.unless_frozen(lambda: self.port.attach(end))

    def admin(self, ask: Callable[[int], None], answer: Callable[[Verdict], None]) -> None:
        """Ask the core something; the verdict comes to `answer`."""
        self._answer_number += 1
        number = self._answer_number
        self._answers[number] = answer
        self.backlog.unless_frozen(lambda: self.turn(lambda: ask(number)))

    def promote(self, request: PromoteRequest, answer: Callable[[Verdict], None]) -> None:
        """`replctl promote`."""
        if not self.running:
            return
        event = Event.LOSE_DATA if request.lose_data else Event.PROMOTE
        self.note(Event.VOUCH if request.peer_dead else event)

        def ask(number: int) -> None:
            if not self.core.roles.busy and not self.core.is_primary:
                self.request = request
                self.vouched_truly = self.world.may_vouch(self)
            self.core.promote(number, request)

        def answered(verdict: Verdict) -> None:
            if not verdict.ok and self.request is request:
                self.request = None
            answer(verdict)

        self.admin(ask, answered)

    def demote(self, answer: Callable[[Verdict], None], *, drop_clients: bool = True) -> None:
        """`replctl demote`."""
        self.note(Event.DEMOTE)
        self.admin(lambda number: self.core.demote(number, drop_clients=drop_clients), answer)

    def adopt(self, answer: Callable[[Verdict], None]) -> None:
        """`replctl volume adopt`."""
        self.note(Event.ADOPT)
        self.admin(self.core.adopt, answer)

    def disconnect(self) -> None:
        """`replctl disconnect`."""
        self.turn(lambda: self.core.sessions[self.peer].drop("an operator disconnected it"))

    @property
    def unanswered(self) -> int:
        """Operators' requests without a verdict."""
        return len(self._answers)

    @property
    def writes_in_flight(self) -> bool:
        return self.client_port.writes_in_flight

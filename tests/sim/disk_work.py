"""What a simulated node's disks do: commits step by step, syncs, copy reads, writes and applies.

A commit is carried out as its single writes and syncs, so that a crash may come between any two.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from repl.core.outbox import ApplyJob, Commit, CopyJob, DiskJob
from repl.core.states import Phase
from repl.core.volume import Volume
from repl.node.applying import Applier, digests_of
from repl.node.writing import Writer
from repl.store.backing import Backing
from repl.store.iothreads import IoThreads
from repl.store.metadata import Metadata
from tests.sim.cells import Event
from tests.sim.disk import SECTOR_BYTES, Operation

if TYPE_CHECKING:
    from tests.sim.node import Node


class _Recorder:
    """Takes the steps of a commit, so that they can be carried out one by one."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, bytes] | None] = []

    def pread(self, offset: int, length: int) -> bytes:
        raise AssertionError("a commit reads nothing")

    def pwrite(self, offset: int, data: bytes) -> None:
        self.steps.append((offset, data))

    def sync(self) -> None:
        self.steps.append(None)


class _Backing:
    """The data disk as the real `Applier` sees it; every write is held against the law."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def preadv(self, buffers: list[bytearray], offset: int) -> None:
        (buffer,) = buffers
        buffer[:] = self._node.data.pread(offset, len(buffer))

    def _take_room(self, offset: int, length: int) -> None:
        """On a full disk only blocks that exist can be written."""
        if self._node.full and not self._node.data.is_allocated(offset, length):
            if not self._node.core.full:
                # What finds no room and is tried again is no new event.
                self._node.note(Event.DISK_FULL)
            raise OSError(errno.ENOSPC, "no room in the simulated disk")

    def reserve(self, offset: int, length: int) -> bool:
        self._take_room(offset, length)
        return True

    def pwrite(self, buffer: bytes, offset: int) -> None:
        self.pwritev([buffer], offset)

    def pwritev(self, buffers: list[bytes], offset: int) -> None:
        for buffer in buffers:
            self._take_room(offset, len(buffer))
            self._node.effect()
            self._node.laws.data_written(offset, len(buffer))
            self._node.data.write(offset, buffer)
            offset += len(buffer)

    def punch(self, offset: int, length: int) -> None:
        self._zero(offset, length, punch=True)

    def zero(self, offset: int, length: int) -> None:
        self._zero(offset, length, punch=False)

    def _zero(self, offset: int, length: int, *, punch: bool) -> None:
        if not punch:
            self._take_room(offset, length)
        self._node.effect()
        self._node.laws.data_written(offset, length)
        self._node.data.zero(offset, length, punch=punch)


class _Threads:
    """Where a long zeroing is carried out: it ends some time later, and much happens meanwhile."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def run(
        self,
        work: Callable[[DiskJob], bool],
        job: DiskJob,
        *,
        done: Callable[[bool | None, Exception | None], None],
    ) -> None:
        def end() -> None:
            ended, failure = None, None
            try:
                ended = work(job)
            except OSError as error:
                failure = error
            done(ended, failure)

        node = self._node
        node.later(node.world.disk_delay_s(node) * 3, lambda: node.unless_held("zeroings", end))


#: What of a peer's frames does not lie side by side waits for a next turn, as in a long backlog.
NO_TIME_S = -1.0


class DiskWork:
    """One process's work on its two disks; dies with the process."""

    def __init__(self, node: Node, volume: Volume, metadata: Metadata) -> None:
        self._node = node
        self._metadata = metadata
        self._backing = _Backing(node)
        self._applier = Applier(
            volume,
            cast(Backing, self._backing),
            node.disk_failed,
            NO_TIME_S,
            self._in_next_turn,
        )
        #: Number of a sync that waits until all frames are applied, or 0.
        self._sync_waiting = 0
        threads = cast(IoThreads, _Threads(node))
        self._writer = Writer(
            volume, cast(Backing, self._backing), threads, node.disk_failed, lambda feed: feed()
        )
        self._block_bytes = 1 << volume.maps.remaining.block_shift
        #: Only what writes made hot was under an intent when the last commit began.
        self._bounded = False
        #: Chunks that were read for a resync and are not sent yet.
        self.ready: dict[int, bytes] = {}

    # Metadata.

    def commit(self, commit: Commit) -> None:
        """Begin a commit."""
        prepared = self._metadata.prepare(commit)
        recorder = _Recorder()
        file, self._metadata._file = self._metadata._file, recorder
        self._metadata.carry_out(prepared)
        self._metadata._file = file
        if commit.facts is not None:
            self._node.world.lines.mark_begins(self._node, commit.facts)
            if commit.facts.everything_suspect and not self._node.core.failed:
                self._node.world.claim_given_up(self._node)
        self._node.laws.commit_begins(commit)
        core = self._node.core
        bounded = core.is_primary and not core.intents.suspect
        if bounded and self._bounded:
            self._node.laws.check_bound(core.intents.limit)
        self._bounded = bounded
        self._commit_step(commit, recorder.steps, 0)

    def _commit_step(
        self, commit: Commit, steps: list[tuple[int, bytes] | None], index: int
    ) -> None:
        delay_s = self._node.world.disk_delay_s(self._node)
        if index < len(steps):
            step = lambda: self._commit_do(commit, steps, index)  # noqa: E731
            self._node.later(delay_s, lambda: self._node.unless_held("commits", step))
        else:
            self._node.later(0.0, lambda: self._committed(commit))

    def _commit_do(self, commit: Commit, steps: list[tuple[int, bytes] | None], index: int) -> None:
        step, meta = steps[index], self._node.meta
        try:
            if step is None:
                meta.sync()
                self._node.effect()
            else:
                offset, data = step
                for start in range(0, len(data), SECTOR_BYTES):
                    meta.pwrite(offset + start, data[start : start + SECTOR_BYTES])
                    self._node.effect()
        except OSError as error:
            self._node.metadata_failed(error)
            return
        if commit.facts is not None:
            for look in self._node.world.on_record:
                look()
        self._commit_step(commit, steps, index + 1)

    def _committed(self, commit: Commit) -> None:
        node = self._node
        before = node.laws.facts
        node.laws.commit_done(commit)
        after = node.laws.facts
        node.world.lines.stored(node, before, after)
        if after.lineage and (not before.lineage or before.generation != after.generation):
            generation = after.generation
            made = not before.lineage or before.generation.id != generation.id
            if not made:
                pass  # its mark: nothing new has to be durable for that
            elif generation.members == (after.node_id,):
                node.ledger.went_alone(node.name)
                node.world.check_durable(node)
            elif node.core.sessions[node.peer].phase is Phase.JOINING:
                node.ledger.durable_everywhere(node.ledger.moment)
                node.world.check_durable(node, node.world.other(node))
            node.say(
                f"stored generation {generation.counter} ({generation.id & 0xFFFF:04x}) "
                f"{sorted(node.world.names_of(generation.members))} {generation.origin.value}"
                f"{' answered' if generation.answered else ''}",
            )
        node.note(Event.METADATA_DONE)
        node.core.metadata_done(commit.number)

    # The backing.

    def write(self, jobs: list[DiskJob]) -> None:
        """The clients' writes of a turn."""
        self._writer.write(jobs)

    def _in_next_turn(self, feed: Callable[[], None]) -> None:
        """At once or a little later."""
        node = self._node
        choice = node.world.dice.disks.random()
        delay_s = 0.0 if choice < 0.5 else node.world.disk_delay_s(node) * 3 * choice
        node.later(delay_s, feed)

    @property
    def applier_busy(self) -> bool:
        """Whether frames wait to be applied, and their payloads with them."""
        return self._applier.busy

    def discard(self, peer: str) -> None:
        """The connection ended: what was not applied of it never will be."""
        self._applier.discard(peer)

    def sync(self, number: int) -> None:
        """Make what was written until now durable, once what waits to be applied is."""
        self._sync_waiting = number

    def start_sync(self) -> None:
        """At a turn's end: begin the sync that was asked for, if nothing of before is missing."""
        if self._sync_waiting and not self._applier.busy:
            number, self._sync_waiting = self._sync_waiting, 0
            self._sync(number)

    def look_for_room(self) -> None:
        """As the engine does at its ticks."""
        if self._writer.starved:
            self._writer.retry()
        if self._applier.starved:
            self._applier.probe()

    def let_go(self) -> None:
        """As the engine does at the end of a turn: writes of a primary that is none any more."""
        if self._writer.starved and not self._node.core.is_primary:
            self._writer.let_go()

    def apply(self, jobs: list[ApplyJob]) -> None:
        """A peer's frames."""
        self._applier.apply(jobs)

    def copy(self, job: CopyJob) -> None:
        """Read a chunk for a resync, a little later."""
        number, offset, length, digest, peer = job
        node = self._node

        def read() -> None:
            digests: bytes | None = None
            hole_end = node.data.hole_end(offset)
            if hole_end < offset + length:
                hole_end = 0
                try:
                    data = node.data.pread(offset, length)
                except OSError as error:
                    node.disk_failed(f"read for a resync: {error}")
                    return
                if digest:
                    digests = digests_of(bytearray(data), self._block_bytes)
                else:
                    self.ready[number] = data
            told = lambda: report(hole_end, digests)  # noqa: E731
            node.later(node.world.disk_delay_s(node), lambda: node.unless_held("reads", told))

        def report(hole_end: int, digests: bytes | None) -> None:
            if node.core.sessions[peer].phase is Phase.SOURCE:
                # A late answer to an earlier connection is no event.
                node.note(Event.CHUNK_READ)
            node.core.chunk_read(peer, number, hole_end, digests)
            node.later(0.0, lambda: self._forget_chunk(number))

        node.later(node.world.disk_delay_s(node), read)

    def _forget_chunk(self, number: int) -> None:
        self.ready.pop(number, None)

    def _sync(self, number: int) -> None:
        node = self._node
        mark = node.data.begin_sync()

        def done() -> None:
            try:
                node.data.check(Operation.SYNC)
            except OSError:
                node.sync_failed()
                return
            node.data.end_sync(mark)
            node.effect()
            node.note(Event.SYNC_DONE)
            node.core.sync_done(number)

        delay_s = node.world.disk_delay_s(node) * 3
        node.later(delay_s, lambda: node.unless_held("syncs", done))

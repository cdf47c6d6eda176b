"""What a simulated node's disks do: commits step by step, syncs, copy reads, writes and applies.

A commit is carried out as its single writes and syncs, so that a crash may come between any two.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, cast

from repl.core.outbox import ApplyJob, Commit, CopyJob, DiskJob
from repl.core.states import Phase
from repl.core.volume import Volume
from repl.node.applying import Applier, digests_of
from repl.node.writing import Writer
from repl.store.backing import Backing
from repl.store.iothreads import IoThreads
from repl.store.metadata import Metadata
from tests.sim.disk import SECTOR_BYTES, Loss

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
        """On a full disk only blocks that exist can be written, on a broken one nothing."""
        if self._node.fail_writes:
            raise OSError(errno.EIO, "the simulated disk said no")
        if self._node.full and not self._node.data.is_allocated(offset, length):
            raise OSError(errno.ENOSPC, "no room in the simulated disk")

    def reserve(self, offset: int, length: int) -> bool:
        self._take_room(offset, length)
        return True

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


class DiskWork:
    """One process's work on its two disks; dies with the process."""

    def __init__(self, node: Node, volume: Volume, metadata: Metadata) -> None:
        self._node = node
        self._metadata = metadata
        self._backing = _Backing(node)
        self._applier = Applier(volume, cast(Backing, self._backing), node.disk_failed)
        threads = cast(IoThreads, None)  # no simulated zeroing is so long that it needs them
        self._writer = Writer(
            volume, cast(Backing, self._backing), threads, node.disk_failed, lambda feed: feed()
        )
        #: Chunks that were read for a resync and are not sent yet.
        self.ready: dict[int, bytes] = {}

    def commit(self, commit: Commit) -> None:
        prepared = self._metadata.prepare(commit)
        recorder = _Recorder()
        file, self._metadata._file = self._metadata._file, recorder
        self._metadata.carry_out(prepared)
        self._metadata._file = file
        self._node.laws.commit_begins(commit)
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
        step = steps[index]
        if step is None:
            self._node.meta.sync()
            self._node.effect()
        else:
            offset, data = step
            for start in range(0, len(data), SECTOR_BYTES):
                self._node.meta.pwrite(offset + start, data[start : start + SECTOR_BYTES])
                self._node.effect()
        self._commit_step(commit, steps, index + 1)

    def _committed(self, commit: Commit) -> None:
        before = self._node.laws.facts
        self._node.laws.commit_done(commit)
        after = self._node.laws.facts
        self._node.world.lines.stored(self._node, before, after)
        if after.lineage and (not before.lineage or before.generation != after.generation):
            generation = after.generation
            if generation.members == (after.node_id,):
                self._node.ledger.went_alone(self._node.name)
            elif self._node.core.sessions[self._node.peer].phase is Phase.JOINING:
                self._node.ledger.durable_everywhere(self._node.ledger.moment)
            self._node.world.say(
                self._node.name,
                f"stored generation {generation.counter} ({generation.id & 0xFFFF:04x}) "
                f"{self._node.world.names_of(generation.members)} {generation.origin.value}"
                f"{' answered' if generation.answered else ''}",
            )
        self._node.core.metadata_done(commit.number)

    def write(self, jobs: list[DiskJob]) -> None:
        self._writer.write(jobs)

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
        self._applier.apply(jobs)

    def copy(self, job: CopyJob) -> None:
        number, offset, length, digest, peer = job
        world = self._node.world

        def read() -> None:
            hole_end = self._node.data.hole_end(offset)
            digests: bytes | None = None
            if hole_end < offset + length:
                hole_end = 0
                data = self._node.data.pread(offset, length)
                if digest:
                    block_bytes = 1 << self._node.core.maps.remaining.block_shift
                    digests = digests_of(bytearray(data), block_bytes)
                else:
                    self.ready[number] = data
            told = lambda: report(hole_end, digests)  # noqa: E731
            self._node.later(
                world.disk_delay_s(self._node), lambda: self._node.unless_held("reads", told)
            )

        def report(hole_end: int, digests: bytes | None) -> None:
            self._node.core.chunk_read(peer, number, hole_end, digests)
            self._node.later(0.0, lambda: self._forget_chunk(number))

        self._node.later(world.disk_delay_s(self._node), read)

    def _forget_chunk(self, number: int) -> None:
        self.ready.pop(number, None)

    def sync(self, number: int) -> None:
        mark = self._node.data.begin_sync()

        def done() -> None:
            if self._node.fail_syncs:
                # The kernel drops the pages that it could not write.
                self._node.data.lose_power(Loss.SOME, self._node.world.choice)
                self._node.world.cache_lost(self._node)
                self._node.disk_failed("sync: the disk said no")
                return
            self._node.data.end_sync(mark)
            self._node.effect()
            self._node.core.sync_done(number)

        delay_s = self._node.world.disk_delay_s(self._node) * 3
        self._node.later(delay_s, lambda: self._node.unless_held("syncs", done))

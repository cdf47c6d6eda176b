"""Reading chunks for a resync: in threads, so that a cold disk never delays a turn.

Owns the bytes of a chunk from its reading to its sending. Whether a chunk is still to be sent when
it was read is the core's decision.
"""

from __future__ import annotations

from collections.abc import Callable

from repl.core.outbox import CopyJob
from repl.core.volume import Volume
from repl.node.applying import digests_of
from repl.store.backing import Backing
from repl.store.iothreads import IoThreads


class Copier:
    """Reads `CopyJob`s and reports them to the core."""

    def __init__(
        self,
        volume: Volume,
        backing: Backing,
        threads: IoThreads,
        failed: Callable[[str], None],
        in_turn: Callable[[Callable[[], None]], None],
    ) -> None:
        self._volume = volume
        self._backing = backing
        self._threads = threads
        self._failed = failed
        self._in_turn = in_turn
        self._block_bytes = 1 << volume.maps.remaining.block_shift
        self._ready: dict[object, bytearray] = {}

    def read(self, jobs: list[CopyJob]) -> None:
        """Start to read; each chunk comes back to the core in a turn of its own or with others."""
        for job in jobs:
            self._start(*job)

    def _start(self, number: int, offset: int, length: int, digest: bool, peer: str) -> None:
        self._threads.run(
            self._read_chunk,
            offset,
            length,
            digest,
            done=lambda result, error: self._done(peer, number, result, error),
        )

    def take(self, number: object) -> bytearray:
        """Give up the bytes of a chunk that is being sent."""
        return self._ready.pop(number)

    def _read_chunk(
        self, offset: int, length: int, digest: bool
    ) -> tuple[int, bytearray | None, bytes | None]:
        """In a thread: (end of the hole or 0, data, digests)."""
        data = self._backing.next_data(offset)
        hole_end = self._backing.size_bytes if data is None else data[0]
        if hole_end >= offset + length:
            return hole_end, None, None
        buffer = bytearray(length)
        self._backing.preadv([buffer], offset)
        if digest:
            return 0, None, digests_of(buffer, self._block_bytes)
        return 0, buffer, None

    def _done(
        self,
        peer: str,
        number: int,
        result: tuple[int, bytearray | None, bytes | None],
        error: Exception | None,
    ) -> None:
        def feed() -> None:
            if error is not None:
                self._failed(f"read for a resync: {error}")
                return
            hole_end, data, digests = result
            if data is not None:
                self._ready[number] = data
            self._volume.chunk_read(peer, number, hole_end, digests)

        self._in_turn(feed)
        # Sent in this turn, or dropped because a write made it stale or the connection ended.
        self._ready.pop(number, None)

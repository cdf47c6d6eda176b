"""Receive buffers that are filled by the kernel and given back by reference count.

A `Chunk` is one contiguous buffer that many requests share: their payloads are slices of it. Its
pool gets it back when the last holder releases it. A `ByteBudget` bounds what all pools and all
unanswered reads of a process may hold together.

Chunks are anonymous mappings and not bytearrays: the kernel backs a page only when a byte arrives
in it, so that a client which announces 32 MiB and sends nothing costs an address range and no
memory. Everything here belongs to the loop's thread; nothing is locked.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable

from nbdserver.errors import LocalError
from nbdserver.protocol import PAYLOAD_BYTES_MAX, REQUEST_BYTES

# One payload of 1 MiB and the headers around it fit, so that a stream of such writes, which is
# what kernels and copy tools send, needs no larger chunk.
CHUNK_BYTES = (1 << 20) + 4096
CHUNK_BYTES_MAX = PAYLOAD_BYTES_MAX + REQUEST_BYTES + 4096


class Chunk:
    """A buffer with a count of holders. `view` is writable and spans `capacity` bytes."""

    __slots__ = ("_pool", "capacity", "charged_bytes", "holders", "view")

    def __init__(self, pool: ChunkPool, capacity: int, charged_bytes: int) -> None:
        self._pool = pool
        self.capacity = capacity
        self.charged_bytes = charged_bytes
        self.holders = 1
        mapping = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.view = memoryview(mapping)

    def retain(self) -> None:
        """Keep the bytes as they are until one more `release()`."""
        self.holders += 1

    def release(self) -> None:
        """Give up one hold; the last one sends the chunk back to its pool."""
        holders = self.holders - 1
        self.holders = holders
        if holders <= 0:
            if holders < 0:
                raise LocalError("a chunk was released more often than retained")
            self._pool.take_back(self)


class ByteBudget:
    """Bytes that connections may hold together; who finds it spent waits for its turn."""

    __slots__ = ("_pools", "_waiting", "limit_bytes", "used_bytes")

    def __init__(self, limit_bytes: int = 512 << 20) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._pools: set[ChunkPool] = set()

    @property
    def contended(self) -> bool:
        """True while somebody waits, so that nobody should keep what he does not use."""
        return bool(self._waiting)

    def take(self, count_bytes: int) -> bool:
        """Reserve `count_bytes`; False, and nothing reserved, if they are not to be had."""
        if self.used_bytes + count_bytes > self.limit_bytes:
            for pool in self._pools:
                pool.drop_spares()
            if self.used_bytes + count_bytes > self.limit_bytes:
                return False
        self.used_bytes += count_bytes
        return True

    def force(self, count_bytes: int) -> None:
        """Reserve what is already promised, above the limit if need be."""
        self.used_bytes += count_bytes

    def give(self, count_bytes: int) -> None:
        """Return `count_bytes` and let everybody who waited try again, oldest first."""
        self.used_bytes -= count_bytes
        for _ in range(len(self._waiting)):
            self._waiting.popleft()()

    def wait(self, try_again: Callable[[], None]) -> None:
        """Call `try_again` once, after something was given back."""
        self._waiting.append(try_again)

    def join(self, pool: ChunkPool) -> None:
        """From now on `pool` is asked for its spares when bytes run short."""
        self._pools.add(pool)

    def leave(self, pool: ChunkPool) -> None:
        """`pool` has nothing to give any more."""
        self._pools.discard(pool)


class ChunkPool:
    """The chunks of one connection: a few spare ones, and a bound on what is out.

    One `CHUNK_BYTES` of what a pool holds is outside the shared budget, so that every connection
    can always receive requests of up to 1 MiB, one after another, whatever the others hold.
    """

    __slots__ = (
        "_allowance_bytes",
        "_closed",
        "_spare_bytes",
        "_spares",
        "budget",
        "on_return",
        "out_bytes",
        "out_bytes_max",
        "short_of",
        "spare_bytes_max",
    )

    def __init__(self, budget: ByteBudget, out_bytes_max: int, spare_bytes_max: int) -> None:
        self.budget = budget
        self.out_bytes_max = out_bytes_max
        self.spare_bytes_max = spare_bytes_max
        self.out_bytes = 0
        self.on_return: Callable[[], None] | None = None
        #: The limit by whose name the last `take` that failed did.
        self.short_of = ""
        self._spares: list[Chunk] = []
        self._spare_bytes = 0
        self._allowance_bytes = CHUNK_BYTES
        self._closed = False
        budget.join(self)

    def take(self, capacity: int = CHUNK_BYTES) -> Chunk | None:
        """A chunk of at least `capacity` bytes with one holder, or None while limits forbid it.

        Raises LocalError above `CHUNK_BYTES_MAX`: a length from a client must be bounded before.
        """
        if capacity > CHUNK_BYTES_MAX:
            raise LocalError(f"asked for a chunk of {capacity} bytes")
        capacity = max(capacity, CHUNK_BYTES)
        # The one that came back last first: it is the likeliest to lie in the processor's cache.
        for index in range(len(self._spares) - 1, -1, -1):
            spare = self._spares[index]
            if spare.capacity >= capacity:
                del self._spares[index]
                self._spare_bytes -= spare.capacity
                self.out_bytes += spare.capacity
                spare.holders = 1
                return spare
        if self.out_bytes and self.out_bytes + capacity > self.out_bytes_max:
            self.short_of = "buffer_bytes"
            return None
        charged = capacity - self._allowance_bytes
        if charged and not self.budget.take(charged):
            self.short_of = "total_bytes"
            return None
        self._allowance_bytes = 0
        self.out_bytes += capacity
        return Chunk(self, capacity, charged)

    def take_back(self, chunk: Chunk) -> None:
        """Called by the last release of a chunk."""
        self.out_bytes -= chunk.capacity
        if (
            self._closed
            or self.budget.contended
            or self._spare_bytes + chunk.capacity > self.spare_bytes_max
        ):
            self._uncharge(chunk)
        else:
            self._spares.append(chunk)
            self._spare_bytes += chunk.capacity
        if self.on_return is not None:
            self.on_return()

    def drop_spares(self) -> None:
        """Free what nobody uses."""
        spares, self._spares = self._spares, []
        self._spare_bytes = 0
        for chunk in spares:
            self._uncharge(chunk)

    def close(self) -> None:
        """The connection is gone: chunks still held are freed when they come back."""
        self._closed = True
        self.on_return = None
        self.drop_spares()
        self.budget.leave(self)

    def _uncharge(self, chunk: Chunk) -> None:
        self._allowance_bytes += chunk.capacity - chunk.charged_bytes
        if chunk.charged_bytes:
            self.budget.give(chunk.charged_bytes)

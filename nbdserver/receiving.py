"""Where received bytes are put: a window on a chunk that moves as requests are parsed.

The kernel fills chunks, payloads are slices of them, and nothing is copied in Python but the part
of a request that straddles the end of a chunk, once. Parsing is the subclasses'.
"""

from __future__ import annotations

from nbdserver.buffers import CHUNK_BYTES, Chunk, ChunkPool

# Below this a receive would mostly pay for the system call, so the next chunk is begun.
ROOM_BYTES_MIN = 32 << 10
# From here on it pays to end a receive at the end of a request, so that none straddles a chunk.
LARGE_REQUEST_BYTES = 64 << 10
# On a boundary the next request is expected to be as large as the last one, up to this.
EXPECTED_REQUEST_BYTES_MAX = 4 << 20


class ReceiveWindow:
    """The bytes of one connection that are received and not parsed.

    `_wanted_bytes` is how long the request at `_start` is, or on a boundary is expected to be;
    `_skip_bytes` of what comes next are of no interest. `header_bytes` is a request's least size.
    """

    __slots__ = (
        "_chunk",
        "_end",
        "_header_bytes",
        "_pool",
        "_skip_bytes",
        "_start",
        "_wanted_bytes",
    )

    def __init__(self, pool: ChunkPool, header_bytes: int) -> None:
        self._pool = pool
        self._header_bytes = header_bytes
        self._chunk: Chunk | None = None
        self._start = 0
        self._end = 0
        self._wanted_bytes = header_bytes
        self._skip_bytes = 0

    @property
    def in_mid_request(self) -> bool:
        """True if the bytes received so far end inside a request."""
        return self._start != self._end or self._skip_bytes > 0

    @property
    def waits_for_large_payload(self) -> bool:
        """True while a buffer beyond the ordinary is held for a payload that is not complete."""
        return (
            self._start != self._end
            and self._chunk is not None
            and self._chunk.capacity > CHUNK_BYTES
        )

    def room(self) -> memoryview | None:
        """Where to receive next, never empty; None while the pool's limits allow no buffer.

        Not to be asked while complete requests wait behind limits: those have to be taken first.
        """
        chunk, wanted = self._chunk, self._wanted_bytes
        if chunk is None or not self._fits(chunk, wanted):
            chunk = self._make_room(chunk, wanted)
            if chunk is None:
                return None
        if wanted >= LARGE_REQUEST_BYTES and self._start + 2 * wanted > chunk.capacity:
            # A second one of this size would straddle the end of the chunk and be moved.
            return chunk.view[self._end : self._start + wanted]
        return chunk.view[self._end :]

    def received(self, count_bytes: int) -> None:
        """`count_bytes` were put at the beginning of the last `room()`."""
        self._end += count_bytes

    def close(self) -> None:
        """Give the current chunk back; nothing is parsed any more."""
        if self._chunk is not None:
            self._chunk.release()
            self._chunk = None
        self._start = self._end = self._skip_bytes = 0

    def _fits(self, chunk: Chunk, wanted: int) -> bool:
        if self._start == self._end and chunk.holders == 1:
            # Everything received was parsed and answered.
            self._start = self._end = 0
        capacity = chunk.capacity
        if self._start + wanted > capacity:
            return False
        if capacity - self._end >= ROOM_BYTES_MIN:
            return True
        return self._start != self._end and wanted > ROOM_BYTES_MIN

    def _make_room(self, chunk: Chunk | None, wanted: int) -> Chunk | None:
        """Move the incomplete request, if any, to where `wanted` bytes fit."""
        start, end = self._start, self._end
        pending = end - start
        if chunk is not None:
            if chunk.holders == 1 and wanted <= chunk.capacity:
                # No request holds this chunk, so it serves again. The slices may overlap.
                chunk.view[:pending] = chunk.view[start:end]
                self._start, self._end = 0, pending
                return chunk
            if not pending:
                # Give it back first: it may be the very one that the pool can give out.
                chunk.release()
                self._chunk = chunk = None
                self._start = self._end = 0
        fresh = self._pool.take(wanted)
        if fresh is None:
            return None
        if chunk is not None:
            fresh.view[:pending] = chunk.view[start:end]
            chunk.release()
        self._chunk = fresh
        self._start, self._end = 0, pending
        return fresh

    def _rest_at(self, position: int, wanted: int) -> None:
        """Parsing ends here, before a request that needs or, on a boundary, may need `wanted`."""
        self._start = position
        if position == self._end and wanted > EXPECTED_REQUEST_BYTES_MAX:
            # A very large buffer is not kept for the chance that another such request follows.
            wanted = self._header_bytes
            if self._chunk is not None:
                self._chunk.release()
                self._chunk = None
                self._start = self._end = 0
        self._wanted_bytes = wanted

    def _skip(self) -> bool:
        """Pass over bytes of no interest; True once none of them is left to come."""
        skipped = min(self._skip_bytes, self._end - self._start)
        self._start += skipped
        self._skip_bytes -= skipped
        self._wanted_bytes = self._header_bytes
        return not self._skip_bytes

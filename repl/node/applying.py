"""Carrying out a peer's frames on the backing, in their order: writes, zeroes, digest comparisons.

All of it happens inside turns, straight into the page cache, so that one cumulative acknowledgement
at a turn's end covers it. Nothing behind a frame that failed or found no room is applied. Decides
nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from typing import Protocol

from repl.core.facts import Maps
from repl.core.outbox import ApplyJob
from repl.core.wire import DIGEST_BYTES, FLAG_PUNCH, Type
from repl.store.backing import NO_ROOM, Backing

_WRITES = (Type.WRITE, Type.RESYNC_WRITE)


class Core(Protocol):
    """What the applier asks and tells the volume."""

    @property
    def maps(self) -> Maps: ...
    def applied(self, peer: str, seq: int) -> None: ...
    def compared(self, peer: str, seq: int, offset: int, length: int, different: bytes) -> None: ...
    def no_space(self, reason: str) -> None: ...
    def space_back(self) -> None: ...


class Applier:
    """Applies `ApplyJob`s strictly in their order; a disk error goes to `failed` and ends all.

    What does not fit into `slice_s` of a turn is gone on with in the next ones, `in_next_turn`;
    without a slice everything is applied at once.
    """

    def __init__(
        self,
        volume: Core,
        backing: Backing,
        failed: Callable[[str], None],
        slice_s: float = 0.0,
        in_next_turn: Callable[[Callable[[], None]], None] | None = None,
    ) -> None:
        self._volume = volume
        self._backing = backing
        self._failed = failed
        self._slice_s = slice_s
        self._in_next_turn = in_next_turn
        self._scheduled = False
        self._block_bytes = 1 << volume.maps.remaining.block_shift
        self._jobs: list[ApplyJob] = []
        #: The range for which there was no room; probed until there is.
        self._wanted: tuple[int, int] | None = None

    @property
    def busy(self) -> bool:
        """Whether frames wait for a next turn; their payloads are still needed, and no sync that
        the core asked for may begin."""
        return bool(self._jobs)

    @property
    def starved(self) -> bool:
        """Whether the last frame found no room."""
        return self._wanted is not None

    def apply(self, jobs: list[ApplyJob]) -> None:
        """Carry out a turn's jobs in order, behind those that wait already."""
        self._jobs += jobs
        if not self._scheduled:
            self._work()

    def discard(self, peer: str) -> None:
        """The connection ended: what was not applied of it never will be."""
        self._jobs = [job for job in self._jobs if job[0] != peer]

    def probe(self) -> None:
        """Look whether there is room for what found none; tell the core if so."""
        assert self._wanted is not None
        try:
            self._backing.reserve(*self._wanted)
        except OSError as error:
            if error.errno in NO_ROOM:
                return
            self._failed(f"write: {error}")
        self._wanted = None
        self._volume.space_back()

    def _continue(self) -> None:
        self._scheduled = False
        self._work()

    def _work(self) -> None:
        until_s = time.monotonic() + self._slice_s if self._slice_s else math.inf
        jobs, index = self._jobs, 0
        try:
            while index < len(jobs):
                index = self._apply_run(jobs, index)
                if index < len(jobs) and time.monotonic() > until_s:
                    break
        except OSError as error:
            self._jobs = []
            peer, _kind, _seq, offset, length, *_ = jobs[index]
            if error.errno in NO_ROOM:
                self._wanted = (offset, length)
                self._volume.no_space(f"{error.strerror or error} ({length} bytes at {offset})")
            else:
                self._failed(f"write for {peer}: {error}")
            return
        self._jobs = jobs[index:]
        if self._jobs:
            assert self._in_next_turn is not None
            self._scheduled = True
            self._in_next_turn(self._continue)

    def _apply_run(self, jobs: list[ApplyJob], index: int) -> int:
        """Apply one job, or several adjacent writes at once; return the index behind them."""
        peer, kind, seq, offset, length, flags, payload = jobs[index]
        volume = self._volume
        if kind in _WRITES:
            end = offset + length
            last = index + 1
            if last == len(jobs) or jobs[last][3] != end:
                # Nothing is adjacent, as in nearly every random load.
                self._backing.pwrite(payload, offset)  # type: ignore[arg-type]
                volume.applied(peer, seq)
                return last
            buffers = [payload]
            while last < len(jobs) and len(buffers) < 256:
                _, next_kind, _, next_offset, next_length, _, next_payload = jobs[last]
                if next_offset != end or next_kind not in _WRITES:
                    break
                buffers.append(next_payload)
                end += next_length
                last += 1
            self._backing.pwritev(buffers, offset)  # type: ignore[arg-type]
            for job in jobs[index:last]:
                volume.applied(job[0], job[2])
            return last
        if kind == Type.DIGEST:
            different = self._compare(offset, length, payload)
            volume.compared(peer, seq, offset, length, different)
            return index + 1
        if flags & FLAG_PUNCH:
            self._backing.punch(offset, length)
        else:
            self._backing.zero(offset, length)
        volume.applied(peer, seq)
        return index + 1

    def _compare(self, offset: int, length: int, digests: object) -> bytes:
        """Return one bit per block: set where this copy's digest is not the source's."""
        buffer = bytearray(length)
        self._backing.preadv([buffer], offset)
        mine = digests_of(buffer, self._block_bytes)
        theirs = bytes(digests)  # type: ignore[call-overload]
        blocks = len(mine) // DIGEST_BYTES
        number = 0
        if mine != theirs:
            for block in range(blocks):
                start = block * DIGEST_BYTES
                if mine[start : start + DIGEST_BYTES] != theirs[start : start + DIGEST_BYTES]:
                    number |= 1 << block
        return number.to_bytes((blocks + 7) >> 3, "little")


def digests_of(data: bytearray, block_bytes: int) -> bytes:
    """Return the 16-byte BLAKE2b digests of consecutive blocks (the last may be short)."""
    digests = []
    zeroes, zero_digest = _zero_block(block_bytes)
    for start in range(0, len(data), block_bytes):
        block = data[start : start + block_bytes]
        # Most of a sparse volume is zeroes, and comparing costs a fiftieth of hashing.
        known = zero_digest if block == zeroes else None
        digests.append(known or blake2b(block, digest_size=DIGEST_BYTES).digest())
    return b"".join(digests)


@cache
def _zero_block(block_bytes: int) -> tuple[bytes, bytes]:
    zeroes = bytes(block_bytes)
    return zeroes, blake2b(zeroes, digest_size=DIGEST_BYTES).digest()

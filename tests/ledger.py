"""The ledger: what a client was promised, and the judge of whether the promise was kept.

`Ledger` is the book. It knows for each block which contents are legal now. A write of version *v*
is entered before it is sent and closed by its answer; a connection that dies leaves its unanswered
writes *open*: each of them may have happened or not. The rule for what a block may hold:

- the last acknowledged version, or any write that was in flight together with it or after it;
- an open write stays legal until a write that began after it was left open is acknowledged, because
  a request of an abandoned connection must never be applied after one that was sent later.

Anything else is a violation: an older version, another block's bytes, a mixture.

`judge` is strict about what it has seen: with `settle=True` the content that was found becomes the
only legal one, so a block that changes afterwards without a write is caught the next time.

`tests/ledger_client.py` drives a server with libnbd and keeps this book. This file does no I/O
except reading what it judges.
"""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

#: Magic, seed, block, version.
_STAMP = struct.Struct(">8sQQQ")
_MAGIC = b"LEDGER01"

#: Version numbers are unique in the whole book. 0 is what the volume held before the first write.
INITIAL = 0
#: A twin's versions begin so far above its model's.
TWIN_VERSIONS = 1 << 32


@dataclass(frozen=True, slots=True)
class Violation:
    """One block that holds what it must not."""

    block: int
    found: str
    legal: tuple[int, ...]

    def __str__(self) -> str:
        legal = " or ".join(f"version {version}" for version in self.legal)
        return f"block {self.block}: must hold {legal}, holds {self.found}"


class LedgerViolated(AssertionError):
    """Raised by `judge_or_raise`; its text lists the violations."""


@dataclass(slots=True)
class _Entry:
    """One write request: the run of blocks it covers and, for each, what its answer supersedes."""

    blocks: range
    version: int
    zeroes: bool
    supersedes: list[frozenset[int]]


@dataclass(slots=True)
class _Block:
    legal: set[int] = field(default_factory=lambda: {INITIAL})
    in_flight: set[int] = field(default_factory=set)


class Ledger:
    """The book of one volume of `block_count` blocks of `block_bytes`. Safe for several threads.

    `initial` gives a block's content before the first write; zeroes unless told otherwise.
    """

    def __init__(
        self,
        block_count: int,
        *,
        seed: int,
        block_bytes: int = 4096,
        initial: Callable[[int], bytes] | None = None,
    ) -> None:
        assert block_count > 0 and block_bytes >= 2 * _STAMP.size
        self.block_count = block_count
        self.block_bytes = block_bytes
        self.seed = seed
        self._zeroes = bytes(block_bytes)
        self._initial = initial or (lambda block: self._zeroes)
        self._blocks: dict[int, _Block] = {}
        self._entries: dict[int, _Entry] = {}
        #: Versions that wrote zeroes rather than a pattern.
        self._zero_versions: set[int] = set()
        self._next_version = 1
        self._lock = threading.Lock()

    def content(self, block: int, version: int) -> bytes:
        """Return the bytes that `block` holds after write number `version`."""
        if version == INITIAL:
            return self._initial(block)
        if version in self._zero_versions:
            return self._zeroes
        stamp = _STAMP.pack(_MAGIC, self.seed, block, version)
        return stamp + hashlib.shake_128(stamp).digest(self.block_bytes - _STAMP.size)

    def twin(self) -> Ledger:
        """Return a book of the same past, for a copy that is written apart from now on.

        Its versions never equal ones of this book, so that the two copies can be told apart. No
        client may be writing.
        """
        assert not self._entries, "a write is in flight"
        other = Ledger(
            self.block_count,
            seed=self.seed,
            block_bytes=self.block_bytes,
            initial=self._initial,
        )
        for number, block in self._blocks.items():
            other._blocks[number] = _Block(set(block.legal), set(block.in_flight))
        other._zero_versions = set(self._zero_versions)
        other._next_version = self._next_version + TWIN_VERSIONS
        return other

    # -- keeping the book ------------------------------------------------------------------------

    def begin(self, first_block: int, blocks: int = 1, *, zeroes: bool = False) -> int:
        """Enter a write of a run of blocks that is about to be sent; return its version."""
        assert first_block >= 0 and blocks > 0 and first_block + blocks <= self.block_count
        run = range(first_block, first_block + blocks)
        with self._lock:
            version = self._next_version
            self._next_version += 1
            if zeroes:
                self._zero_versions.add(version)
            supersedes = []
            for number in run:
                block = self._blocks.setdefault(number, _Block())
                supersedes.append(frozenset(block.legal - block.in_flight))
                block.legal.add(version)
                block.in_flight.add(version)
            self._entries[version] = _Entry(run, version, zeroes, supersedes)
            return version

    def payload(self, version: int) -> bytearray:
        """Return the bytes to send for a write that was begun and not yet closed."""
        entry = self._entries[version]
        data = bytearray()
        for number in entry.blocks:
            data += self.content(number, version)
        return data

    def acknowledge(self, version: int) -> None:
        """The server said that the write is done: what it replaced is no longer legal."""
        with self._lock:
            entry = self._entries.pop(version)
            for number, superseded in zip(entry.blocks, entry.supersedes, strict=True):
                block = self._blocks[number]
                block.in_flight.discard(version)
                # A newer write that was already acknowledged may have made this one illegal again
                # only if it began after this one ended, and this one ends now; so it stays legal.
                block.legal -= superseded

    def leave_open(self, version: int) -> None:
        """No answer will come (or it was an error): the write may have happened or not."""
        with self._lock:
            entry = self._entries.pop(version)
            for number in entry.blocks:
                self._blocks[number].in_flight.discard(version)

    @property
    def in_flight(self) -> int:
        """Number of writes that are neither acknowledged nor left open."""
        return len(self._entries)

    @property
    def last_version(self) -> int:
        """The newest version that was begun; pass it to `blocks_written_since` later."""
        return self._next_version - 1

    def blocks_written_since(self, version: int) -> set[int]:
        """Return the blocks for which a write newer than `version` is legal: an upper bound of
        what a copy lacks that saw everything up to `version`."""
        with self._lock:
            return {number for number, block in self._blocks.items() if max(block.legal) > version}

    # -- judging ---------------------------------------------------------------------------------

    def judge(
        self,
        read_block: Callable[[int], bytes],
        *,
        blocks: Iterable[int] | None = None,
        settle: bool = True,
    ) -> list[Violation]:
        """Compare what `read_block(number)` returns with the book; return every violation.

        All blocks are judged, the never written ones too, unless `blocks` names some. Call it while
        nothing is in flight.
        """
        assert not self._entries, f"{len(self._entries)} writes are still in flight"
        violations = []
        for number in blocks if blocks is not None else range(self.block_count):
            block = self._blocks.get(number)
            legal = block.legal if block is not None else {INITIAL}
            found = read_block(number)
            match = next((v for v in sorted(legal) if found == self.content(number, v)), None)
            if match is None:
                text = self._describe(number, found)
                violations.append(Violation(number, text, tuple(sorted(legal))))
            elif settle and block is not None and len(legal) > 1:
                block.legal = {match}
        return violations

    def judge_or_raise(self, read_block: Callable[[int], bytes], what: str) -> None:
        """Judge all blocks and raise `LedgerViolated` naming `what` if any is wrong."""
        violations = self.judge(read_block)
        if violations:
            shown = "\n  ".join(str(violation) for violation in violations[:20])
            raise LedgerViolated(
                f"{what} (seed {self.seed}): {len(violations)} blocks are wrong\n  {shown}"
            )

    def judge_file(self, path: Path) -> None:
        """Judge a raw image or block device as it is read through the page cache."""
        with path.open("rb") as image:

            def read_block(number: int) -> bytes:
                image.seek(number * self.block_bytes)
                return image.read(self.block_bytes)

            self.judge_or_raise(read_block, str(path))

    def _describe(self, number: int, found: bytes) -> str:
        if len(found) != self.block_bytes:
            return f"{len(found)} bytes instead of {self.block_bytes}"
        if found == self._zeroes:
            return "zeroes"
        magic, seed, block, version = _STAMP.unpack_from(found)
        if magic != _MAGIC:
            return f"foreign bytes that begin {found[:16].hex()}"
        if seed != self.seed:
            return f"bytes of another ledger (seed {seed})"
        if block != number:
            return f"block {block}'s bytes, version {version}"
        if found != self.content(number, version):
            return f"a mixture that begins as version {version}"
        return f"version {version}"

"""Write intents: which extents may differ between the nodes after a crash (design §6).

A bit is durable *before* the data of a write can reach this node's disk, and cleared lazily, when
everything written in the extent is durable here and, at every other known node, durable or covered
by a persisted dirty bit. Simplest form: fixed extents, one bit each.
"""

from __future__ import annotations

from collections.abc import Iterable

from repl.core.blockmap import BlockMap

#: No write makes more extents hot than this (4 GiB in extents of 1 MiB) but one that covers more by
#: itself: it waits for room.
HOT_EXTENTS_MAX = 4096
#: A write that goes on from a hot extent into a cold one marks so many behind it too, so that a
#: sequential stream costs one commit for several extents.
AHEAD_EXTENTS = 7


class Intents:
    """The intent map with, in memory, when each marked extent was last written.

    `hot` extents are durable on disk and carry the number of their last write; `coming` ones wait
    for a commit; `suspect` ones were left by a crash or by a connection that ended, and stay until
    a settle or a join has made both copies the same.
    """

    def __init__(self, bitmap: BlockMap) -> None:
        self.bitmap = bitmap
        self.shift = bitmap.block_shift
        self.hot: dict[int, int] = {}
        self.coming: set[int] = set()
        self.suspect: set[int] = {
            extent for first, last in bitmap.runs() for extent in range(first, last)
        }
        self.limit = HOT_EXTENTS_MAX
        #: Extents that are cleared here, and on disk with a commit under way: they take room still.
        self.clearing = 0

    @property
    def crowded(self) -> bool:
        """Whether it is time to make room, before a write has to wait for it."""
        return len(self.hot) >= self.limit - self.limit // 8

    def missing(self, offset: int, length: int) -> int:
        """Return how many extents of a range are not hot."""
        hot = self.hot
        extents = range(offset >> self.shift, ((offset + length - 1) >> self.shift) + 1)
        return sum(extent not in hot for extent in extents)

    def has_room(self, extents: int) -> bool:
        """Whether so many more may become hot; more than the limit only where it is kept now."""
        taken = len(self.hot) + self.clearing
        return taken + extents <= self.limit or (extents > self.limit and taken <= self.limit)

    def touch(self, offset: int, length: int, number: int) -> bool:
        """Note a write; return whether all its extents are durable intents already.

        If not, the missing ones are marked in the map and `coming`: the caller asks for a commit
        and lets the data go only after `stored`.
        """
        first = offset >> self.shift
        last = (offset + length - 1) >> self.shift
        hot = self.hot
        if first == last and first in hot and first not in self.coming:
            hot[first] = number
            return True
        ready = True
        for extent in range(first, last + 1):
            if extent not in hot and self.bitmap.mark_blocks(extent, extent + 1):
                self.coming.add(extent)
            hot[extent] = number
            ready = ready and extent not in self.coming
        if not ready and first - 1 in hot:
            self._mark_ahead(last + 1, number)
        return ready

    def _mark_ahead(self, first: int, number: int) -> None:
        room = self.limit - len(self.hot) - self.clearing
        ahead = min(AHEAD_EXTENTS, room)
        for extent in range(first, min(first + ahead, self.bitmap.bits)):
            if extent not in self.hot and self.bitmap.mark_blocks(extent, extent + 1):
                self.coming.add(extent)
                self.hot[extent] = number

    def stored(self, extents: Iterable[int]) -> None:
        """These marks are durable now."""
        self.coming.difference_update(extents)

    def any_rested(self, number: int) -> bool:
        """Whether `clear_up_to` would clear any extent, or a commit under way lets it."""
        return any(
            last <= number and extent not in self.suspect for extent, last in self.hot.items()
        )

    def clear_up_to(self, number: int) -> int:
        """Clear hot extents last written at or below `number`; suspects stay. Return how many."""
        rested = [
            extent
            for extent, last in self.hot.items()
            if last <= number and extent not in self.coming and extent not in self.suspect
        ]
        for extent in rested:
            del self.hot[extent]
            self.bitmap.clear_blocks(extent, extent + 1)
        return len(rested)

    def make_room(self, number: int, keep: int) -> int:
        """Do the same in the order of the last writes until `keep` are left. A suspect is only not
        hot any more: it stays marked. Return how many were cleared."""
        hot, cleared = self.hot, 0
        ended = [e for e, last in hot.items() if last <= number and e not in self.coming]
        ended.sort(key=hot.__getitem__)
        for extent in ended[: max(0, len(hot) - keep)]:
            del hot[extent]
            if extent not in self.suspect:
                self.bitmap.clear_blocks(extent, extent + 1)
                cleared += 1
        return cleared

    def any_ended(self, number: int) -> bool:
        """Whether `make_room` would find any extent."""
        return any(last <= number and e not in self.coming for e, last in self.hot.items())

    def connection_ended(self) -> None:
        """Numbers belong to a connection: what was hot under it becomes suspect."""
        self.suspect.update(self.hot)
        self.hot.clear()

    def clear_suspects(self) -> None:
        """Both copies are known to be equal and durable: only extents still hot stay marked."""
        for extent in self.suspect:
            if extent not in self.hot:
                self.bitmap.clear_blocks(extent, extent + 1)
        self.suspect.clear()

    def mark_suspects_in(self, blocks: BlockMap) -> None:
        """Set every block of `blocks` that a suspect extent covers."""
        self._mark(self.suspect, blocks)

    def mark_all_in(self, blocks: BlockMap) -> None:
        """Set every block of `blocks` that any marked extent covers."""
        self._mark((*self.suspect, *self.hot), blocks)

    def _mark(self, extents: Iterable[int], blocks: BlockMap) -> None:
        for extent in extents:
            start = extent << self.shift
            blocks.mark(start, min(1 << self.shift, blocks.size_bytes - start))

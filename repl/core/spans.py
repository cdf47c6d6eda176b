"""The byte ranges of writes in flight, which never overlap each other.

A write that overlaps one in flight waits, so that all nodes apply overlapping writes in one order
(design §7). Two sorted lists make a test or a change cost a bisection.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right


class Spans:
    """A set of disjoint half-open ranges."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def claim(self, start: int, end: int) -> bool:
        """Add a range unless it shares a byte with one that is there; return whether it was added.

        What this adds never overlaps: two neighbours are looked at before.
        """
        starts, ends = self._starts, self._ends
        index = bisect_right(starts, start)
        if (index and ends[index - 1] > start) or (index < len(starts) and starts[index] < end):
            return False
        starts.insert(index, start)
        ends.insert(index, end)
        return True

    def remove(self, start: int) -> None:
        """Remove the range that begins at `start`."""
        starts = self._starts
        index = bisect_left(starts, start)
        assert starts[index] == start
        del starts[index], self._ends[index]

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

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any range shares a byte with start..end."""
        index = bisect_right(self._starts, start)
        if index and self._ends[index - 1] > start:
            return True
        return index < len(self._starts) and self._starts[index] < end

    def add(self, start: int, end: int) -> None:
        """Add a range that overlaps none; an overlap is our bug."""
        index = bisect_right(self._starts, start)
        assert not index or self._ends[index - 1] <= start, "writes in flight never overlap"
        assert index == len(self._starts) or end <= self._starts[index]
        self._starts.insert(index, start)
        self._ends.insert(index, end)

    def remove(self, start: int) -> None:
        """Remove the range that begins at `start`."""
        index = bisect_left(self._starts, start)
        assert self._starts[index] == start
        del self._starts[index], self._ends[index]

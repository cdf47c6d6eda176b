"""Requests that meet a long operation in progress wait for it, in their order.

A zeroing may take minutes, in many steps. A request that touches its range is held until it is
done, and so is a later one that touches a range of one that is held: whatever overlaps happens in
the order in which it came. Everything else goes on.

Every byte has at most one owner: whoever came last of those who work there or wait. A newcomer
waits for the owners of its range, for they wait for all who came before; so it is enough to count
them. What a request costs does not grow with the square of how many there are.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from nbdserver.protocol import NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES
from nbdserver.requests import Request

_LONG: Final = frozenset((NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES))


class _Held:
    """A request that works or waits. `position` is from where on it still has to work."""

    __slots__ = ("behind", "end", "number", "position", "request", "start", "waits_for")

    def __init__(self, request: Request, number: int) -> None:
        self.request = request
        self.number = number
        self.start = request.offset
        self.end = request.offset + request.length
        self.position = request.offset
        self.waits_for = 0
        #: Those who wait for this one, by where they end: the work frees them in that order.
        self.behind: list[tuple[int, int, _Held]] = []


class Overlaps:
    """The long operations on one export and those who wait for them. `busy` is cheap to ask."""

    __slots__ = ("_count", "_ends", "_owners", "_starts", "_working")

    def __init__(self) -> None:
        self._working: dict[Request, _Held] = {}
        self._count = 0
        # Disjoint ranges in their order, and whose each is.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._owners: list[_Held] = []

    @property
    def busy(self) -> bool:
        """Whether anything is in progress, so that requests have to ask `must_wait`."""
        return bool(self._working)

    def begin(self, request: Request) -> None:
        """`request`, which need not wait, is a long operation and works from now on until `end`.

        One that has waited works since it was given out.
        """
        if request not in self._working:
            held = self._new(request)
            assert not self._owners_for(held), "two long operations on one range"
            self._claim(held)
            self._working[request] = held

    def must_wait(self, request: Request) -> bool:
        """Whether the request is held here; a later `advance` or `end` gives it out."""
        held = self._new(request)
        owners = self._owners_for(held)
        if not owners:
            return False
        held.waits_for = len(owners)
        for owner in owners:
            heappush(owner.behind, (held.end, held.number, held))
        self._claim(held)
        return True

    def advance(self, request: Request, position: int) -> Sequence[Request]:
        """The operation is done before `position`: those who need not wait any more, in their
        order. They go on now, without asking again; the long ones among them work already."""
        held = self._working[request]
        held.position = position
        return self._given_out(held, position if position < held.end else None)

    def end(self, request: Request) -> Sequence[Request]:
        """The operation is done: those who need not wait any more; see `advance`."""
        held = self._working.pop(request)
        self._disown(held)
        return self._given_out(held, None)

    def _new(self, request: Request) -> _Held:
        self._count += 1
        return _Held(request, self._count)

    def _given_out(self, held: _Held, position: int | None) -> Sequence[Request]:
        """Who waited only for what `held` has done before `position`, or for all of it."""
        ready: list[tuple[int, _Held]] = []
        _free(held, position, ready)
        heapify(ready)
        given_out: list[Request] = []
        while ready:
            _, next_one = heappop(ready)
            request = next_one.request
            given_out.append(request)
            if request.command in _LONG:
                self._working[request] = next_one
            else:
                self._disown(next_one)
                freed: list[tuple[int, _Held]] = []
                _free(next_one, None, freed)
                for entry in freed:
                    heappush(ready, entry)
        return given_out

    def _owners_for(self, held: _Held) -> set[_Held]:
        """Whom it has to wait for."""
        first, behind = self._met(held)
        end = held.end
        owners = self._owners[first:behind]
        return {each for each in owners if each.position < end and each.position < each.end}

    def _met(self, held: _Held) -> tuple[int, int]:
        """The first of the ranges that it overlaps, and the first behind them."""
        first = bisect_right(self._ends, held.start)
        return first, max(first, bisect_left(self._starts, held.end))

    def _claim(self, held: _Held) -> None:
        """All of its range is its own now; those who had parts of it keep the rest."""
        first, behind = self._met(held)
        starts, ends, owners = [held.start], [held.end], [held]
        if first < behind:
            if self._starts[first] < held.start:
                starts.insert(0, self._starts[first])
                ends.insert(0, held.start)
                owners.insert(0, self._owners[first])
            if held.end < self._ends[behind - 1]:
                starts.append(held.end)
                ends.append(self._ends[behind - 1])
                owners.append(self._owners[behind - 1])
        self._replace(first, behind, starts, ends, owners)

    def _disown(self, held: _Held) -> None:
        """Nothing is its own any more."""
        first, behind = self._met(held)
        kept = [index for index in range(first, behind) if self._owners[index] is not held]
        self._replace(
            first,
            behind,
            [self._starts[index] for index in kept],
            [self._ends[index] for index in kept],
            [self._owners[index] for index in kept],
        )

    def _replace(
        self, first: int, behind: int, starts: list[int], ends: list[int], owners: list[_Held]
    ) -> None:
        self._starts[first:behind] = starts
        self._ends[first:behind] = ends
        self._owners[first:behind] = owners


def _free(held: _Held, position: int | None, ready: list[tuple[int, _Held]]) -> None:
    """Those who end before `position` wait no longer for `held`; add who waits for nobody."""
    behind = held.behind
    while behind and (position is None or behind[0][0] <= position):
        _, number, waiter = heappop(behind)
        waiter.waits_for -= 1
        if not waiter.waits_for:
            ready.append((number, waiter))

"""Requests that meet a long operation in progress wait for it, in their order.

A zeroing may take minutes, in many steps. A request that touches its range is held until it is
done, and so is a later one that touches a range of one that is held: whatever overlaps happens in
the order in which it came. Everything else goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

from nbdserver.requests import Request


class Overlaps:
    """The long operations on one export and those who wait for them. `busy` is cheap to ask."""

    __slots__ = ("_waiting", "_working")

    def __init__(self) -> None:
        #: Where each operation still has to work: from here to the request's end.
        self._working: dict[Request, int] = {}
        self._waiting: list[Request] = []

    @property
    def busy(self) -> bool:
        """Whether anything is in progress, so that requests have to ask `must_wait`."""
        return bool(self._working)

    def begin(self, request: Request) -> None:
        """`request` is a long operation, which works from now on until `end`."""
        assert not self._meets_work(request), "two long operations on one range"
        self._working[request] = request.offset

    def must_wait(self, request: Request) -> bool:
        """Whether the request is held here; a later `advance` or `end` gives it out."""
        if self._meets_work(request) or self._meets_waiting(request):
            self._waiting.append(request)
            return True
        return False

    def advance(self, request: Request, position: int) -> Sequence[Request]:
        """The operation is done before `position`: all who wait, to ask `must_wait` again."""
        self._working[request] = position
        return self._all_waiting()

    def end(self, request: Request) -> Sequence[Request]:
        """The operation is done: all who wait, in their order, to ask `must_wait` again."""
        del self._working[request]
        return self._all_waiting()

    def _all_waiting(self) -> Sequence[Request]:
        waiting, self._waiting = self._waiting, []
        return waiting

    def _meets_work(self, request: Request) -> bool:
        start, end = request.offset, request.offset + request.length
        return any(
            position < end and start < each.offset + each.length
            for each, position in self._working.items()
        )

    def _meets_waiting(self, request: Request) -> bool:
        start, end = request.offset, request.offset + request.length
        return any(
            each.offset < end and start < each.offset + each.length for each in self._waiting
        )

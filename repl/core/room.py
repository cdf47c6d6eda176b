"""Room among the hot extents: which client writes wait until intents of other extents are cleared.

A bounded number of extents is hot at a time (`intents.HOT_EXTENTS_MAX`). Of a write that waits here
nothing has happened but that it claimed its range, so that whatever overlaps it comes behind it. A
write to extents that are all hot waits for nobody, unless that kept the first that waits here from
ever finding room: then all wait, what is in flight comes to its end, and everything can be cleared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from repl.core.intents import Intents

if TYPE_CHECKING:
    from repl.core.writes import Write


class Room:
    """The writes that wait for room, in their order."""

    def __init__(self, intents: Intents) -> None:
        self._intents = intents
        self.waiting: deque[Write] = deque()
        self._closed = False

    @property
    def wanted(self) -> int:
        """How many extents the first one needs; 0 if none waits."""
        return self._missing(self.waiting[0]) if self.waiting else 0

    def takes(self, write: Write) -> bool:
        """Whether a write that comes now is admitted; else it waits, and counts as waiting."""
        missing = self._missing(write)
        if missing:
            admitted = not self.waiting and self._intents.has_room(missing)
        else:
            admitted = not self._closed
        if not admitted:
            self.waiting.append(write)
        return admitted

    def made(self, admit: Callable[[Write], None]) -> None:
        """Intents were cleared, durably: admit those that waited, as far as there is room."""
        while self.waiting:
            missing = self._missing(self.waiting[0])
            if missing and not self._intents.has_room(missing):
                self._closed = True
                return
            admit(self.waiting.popleft())
        self._closed = False

    def clear(self) -> None:
        """Nobody waits any more."""
        self.waiting.clear()
        self._closed = False

    def _missing(self, write: Write) -> int:
        return self._intents.missing(write.offset, write.length)

"""A process that is stopped by SIGSTOP: what happens to it meanwhile waits, in its order."""

from __future__ import annotations

from collections.abc import Callable


class Backlog:
    """The events of one process while it is frozen."""

    def __init__(self) -> None:
        self.frozen = False
        self._events: list[Callable[[], None]] = []

    def unless_frozen(self, event: Callable[[], None]) -> None:
        """Run the event now, or when the process runs on."""
        if self.frozen:
            self._events.append(event)
        else:
            event()

    def thaw(self) -> None:
        """Run on, with everything that has come in meanwhile before it."""
        self.frozen = False
        events, self._events = self._events, []
        for event in events:
            event()

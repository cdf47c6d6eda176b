"""How many NBD clients came and went, told now and then instead of each time.

A client that comes and goes a hundred times a second is one event every few seconds, with both
counts; nothing of it is told in the data path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

#: Between two events of one volume.
INTERVAL_S: Final = 5.0
#: Names in one event.
NAMES_MAX: Final = 8


class ClientTally:
    """Counts the clients of one volume. `tell(text, fields)` tells an event."""

    def __init__(self, tell: Callable[[str, dict[str, object]], None]) -> None:
        self._tell = tell
        self.attached_total = 0
        self._told_attached = 0
        self._told_detached = 0
        self._told_s: float | None = None

    def attached(self) -> None:
        """A client was taken."""
        self.attached_total += 1

    def look(self, names: Sequence[str], now_s: float) -> None:
        """Tell what changed since the last event, if it is time; `names` are those there now."""
        detached_total = self.attached_total - len(names)
        came = self.attached_total - self._told_attached
        went = detached_total - self._told_detached
        if not (came or went):
            return
        if self._told_s is not None and now_s - self._told_s < INTERVAL_S:
            return
        self._told_s = now_s
        self._told_attached, self._told_detached = self.attached_total, detached_total
        parts = [f"{came} attached"] if came else []
        parts += [f"{went} detached"] if went else []
        shown = [str(name) for name in names[:NAMES_MAX]]
        here = f": {', '.join(shown)}" if shown else ""
        more = ", …" if len(names) > NAMES_MAX else ""
        self._tell(
            f"clients: {' and '.join(parts)}; {len(names)} there now{here}{more}",
            {"attached": came, "detached": went, "clients": len(names), "names": shown},
        )

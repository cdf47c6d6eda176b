"""What is logged because of what clients do: bounded, so that nobody can fill a disk with lines.

A burst is logged in full; beyond that a few lines a second, and how many were left out between.
What is counted does not depend on it. Our own errors never go through here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

#: Lines that may come at once, and how many a second after that.
BURST_LINES: Final = 500
LINES_PER_S: Final = 5.0


class ClientLog:
    """Writes to `log` as far as its lines go. Used on one thread."""

    def __init__(self, log: logging.Logger, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock_s = clock_s
        self._lines_left = float(BURST_LINES)
        self._counted_s = clock_s()
        self._left_out = 0

    def warning(self, text: str, *values: object) -> None:
        """A client did what it must not, or met a limit."""
        self._write(logging.WARNING, text, values)

    def info(self, text: str, *values: object) -> None:
        """A client did not get what it asked for."""
        self._write(logging.INFO, text, values)

    def _write(self, level: int, text: str, values: tuple[object, ...]) -> None:
        if not self._log.isEnabledFor(level):
            return
        now_s = self._clock_s()
        earned = (now_s - self._counted_s) * LINES_PER_S
        self._lines_left = min(self._lines_left + earned, float(BURST_LINES))
        self._counted_s = now_s
        if self._lines_left < 1:
            self._left_out += 1
            return
        self._lines_left -= 1
        if self._left_out:
            self._log.log(level, "%d lines about clients were left out here", self._left_out)
            self._left_out = 0
        self._log.log(level, text, *values)


client_log: Final = ClientLog(logging.getLogger("nbdserver"))

"""How much may wait for a peer's socket: about what its link takes in two seconds.

A queue that is bounded by bytes alone is a minute long on a slow link, and everything that waits
for the peer, such as the end of a resync, waits behind it. Pure: bytes and times in, a bound out.
Never decides what happens at the bound (the engine lets clients wait).
"""

from __future__ import annotations

#: The bound never goes below this (a resync's window and some writes) nor above that.
UNSENT_BYTES_MIN = 4 << 20
UNSENT_BYTES_MAX = 64 << 20
UNSENT_S_MAX = 2.0
#: Two looks closer than this say nothing of a rate.
LOOK_S_MIN = 0.05


class Drain:
    """The bound of one connection. It begins low and doubles while the link keeps up."""

    def __init__(self) -> None:
        self.unsent_bytes_max = 2 * UNSENT_BYTES_MIN
        self._queued = False
        self._at_s = -LOOK_S_MIN
        self._sent_bytes = 0

    def look(self, now_s: float, sent_bytes: int, unsent_bytes: int) -> None:
        """Look at the connection, some times a second: bytes sent in all, bytes that wait now."""
        elapsed_s = now_s - self._at_s
        if elapsed_s < LOOK_S_MIN:
            return
        if not unsent_bytes:
            self.unsent_bytes_max = min(UNSENT_BYTES_MAX, self.unsent_bytes_max * 2)
        elif self._queued:
            # Something waited at both looks: what was sent between them is what the link takes.
            taken_bytes = int((sent_bytes - self._sent_bytes) / elapsed_s * UNSENT_S_MAX)
            self.unsent_bytes_max = min(max(taken_bytes, UNSENT_BYTES_MIN), UNSENT_BYTES_MAX)
        self._queued, self._at_s, self._sent_bytes = unsent_bytes > 0, now_s, sent_bytes

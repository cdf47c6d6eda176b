"""When an attachment whose daemon does not answer is frozen, and when it is dead. Pure.

Frozen means: requests wait, nothing fails (design §7). That is right as long as the volume may come
back to this device: while the daemon is restarted, while it decides whether it resumes its role,
while the volume is secondary here and nobody else has it. Dead means that waiting is over:

- the daemon is gone (nothing listens on its NBD address, or it has no such volume any more) for
  `dead_after_s` without a break; or
- the volume has been another node's meanwhile. A filesystem's cache is then older than the volume,
  and a write of it would spoil what the other node wrote. That is final, however short it was.

The device is then taken away, since a device that hangs for ever would hold processes and mounts.
"""

from __future__ import annotations

from dataclasses import dataclass

DEAD_AFTER_S = 5.0
"""The default; long enough for a service manager to start a daemon again."""


@dataclass(slots=True)
class Lifeline:
    """What is known of the way to the daemon. Times are those of one monotonic clock."""

    dead_after_s: float
    connected: bool = False
    #: Why it is not connected, in words; empty while it is.
    reason: str = ""
    _gone_since_s: float | None = None
    _final: bool = False

    def up(self) -> None:
        """Requests flow."""
        self.connected, self.reason, self._gone_since_s = True, "", None

    def waits(self, reason: str) -> None:
        """The daemon is there and does not serve the volume to this node now."""
        self.connected, self.reason, self._gone_since_s = False, reason, None

    def gone(self, now_s: float, reason: str) -> None:
        """Nothing of the daemon, or of the volume in it, is there."""
        self.connected, self.reason = False, reason
        if self._gone_since_s is None:
            self._gone_since_s = now_s

    def served_elsewhere(self, reason: str) -> None:
        """Another node had the volume since this device last wrote to it."""
        self.connected, self.reason, self._final = False, reason, True

    def is_dead(self, now_s: float) -> bool:
        """Whether the device must be taken away; `reason` says why."""
        if self._final:
            return True
        return self._gone_since_s is not None and now_s - self._gone_since_s >= self.dead_after_s

"""What happened to clients, in numbers that only grow. Nothing here decides anything.

Connections add themselves when they end, so that counting costs nothing per request; who shows
totals adds the living ones with `TransmissionCounters.with_living`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from nbdserver.limits import IN_HANDSHAKE, IN_TRANSMISSION

if TYPE_CHECKING:
    from nbdserver.connection import Connection


def none_of(limits: Iterable[str]) -> dict[str, int]:
    """A count for each of the limits, at 0."""
    return dict.fromkeys(limits, 0)


@dataclass(slots=True)
class HandshakeCounters:
    """Negotiations since the start."""

    accepted: int = 0
    agreed: int = 0
    ended: int = 0  # left or were refused, by the rules
    dropped: int = 0  # broke a rule
    timed_out: int = 0
    over_limit: int = 0  # turned away because a limit was reached
    tls_refused: int = 0  # asked for TLS and did not get through its handshake
    encrypted: int = 0  # got through it, however it went on
    tls_proxies_lost: int = 0  # processes that ended with their clients
    # How often each limit was met, by its name.
    limits: dict[str, int] = field(default_factory=lambda: none_of(IN_HANDSHAKE))

    def turned_away(self, limit: str) -> None:
        """A client had to go, or to try again later, because of this limit of all clients."""
        self.over_limit += 1
        self.limits[limit] += 1


class End(Enum):
    """Why a connection in transmission ended; the value is the counter's name."""

    FINISHED = "finished"  # said goodbye or half-closed, and got every answer
    HUNG_UP = "hung_up"  # the socket broke
    VIOLATION = "violations"  # sent bytes that cannot be followed
    STALLED = "stalled"  # held what others need and did not go on
    IDLE = "idle"  # asked nothing for longer than allowed
    FILE_FAILED = "file_failures"  # data that was promised could not be read
    ABANDONED = "abandoned"  # closed by us: the export is not served any more
    BUG = "bugs"  # our own error; this client paid for it


@dataclass(slots=True)
class TransmissionCounters:
    """Transmission since the start: work done, and how connections ended."""

    connections: int = 0
    requests: int = 0
    errors: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    limit_waits: int = 0  # turns after which a client was not read because of its limits
    finished: int = 0
    hung_up: int = 0
    violations: int = 0
    stalled: int = 0
    idle: int = 0
    file_failures: int = 0
    abandoned: int = 0
    bugs: int = 0
    # How often each limit was met, by its name; of those that were waited for, how many waits.
    limits: dict[str, int] = field(default_factory=lambda: none_of(IN_TRANSMISSION))

    def ended(self, connection: Connection, end: End) -> None:
        """Add a connection that ended."""
        self._add(connection)
        setattr(self, end.value, getattr(self, end.value) + 1)

    def with_living(self, connections: Iterable[Connection]) -> TransmissionCounters:
        """These totals and what the given connections, which have not ended, did so far."""
        total = dataclasses.replace(self)
        for connection in connections:
            total._add(connection)
        return total

    def _add(self, connection: Connection) -> None:
        self.connections += 1
        self.requests += connection.requests
        self.errors += connection.errors
        self.bytes_read += connection.bytes_read
        self.bytes_written += connection.bytes_written
        self.limit_waits += connection.limit_waits

"""What the NBD clients of one volume share: limits, a budget of bytes, and what was counted.

Makes the connection of a client that the supervisor negotiated with. Whether and when it is served
is the engine's to say.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Collection
from typing import Any, NamedTuple

from nbdserver.buffers import ByteBudget
from nbdserver.connection import Connection
from nbdserver.counters import TransmissionCounters
from nbdserver.export import Backend, ExportInfo
from nbdserver.limits import Limits, make
from nbdserver.terms import Terms


class Arrived(NamedTuple):
    """A client as the supervisor hands it over. `leftover` was received beyond the handshake;
    `wire` is its own connection if `sock` is the plaintext of that."""

    sock: socket.socket
    wire: socket.socket | None
    agreed: tuple[ExportInfo, Terms]
    leftover: bytes
    peer_name: str

    def close(self) -> None:
        """It cannot be served."""
        self.sock.close()
        if self.wire is not None:
            self.wire.close()


class VolumeClients:
    """`limits` are values by their names (`nbdserver.limits`), defaults for those not given."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: dict[str, float]) -> None:
        self.limits: Limits = make(limits)
        self._loop = loop
        self._budget = ByteBudget(self.limits.total_bytes)
        self._counters = TransmissionCounters()
        #: Turned away because as many as may be (`clients`) are attached.
        self._over_limit = 0

    def connection(
        self, client: Arrived, backend: Backend, others: Collection[Connection]
    ) -> Connection | None:
        """The client's connection, not begun; None, and the client closed, at the limit."""
        if len(others) >= self.limits.clients:
            self._over_limit += 1
            client.close()
            return None
        export, terms = client.agreed
        return Connection(
            self._loop,
            client.sock,
            export,
            backend,
            client.leftover,
            self.limits,
            client.peer_name,
            self._budget,
            terms,
            self._counters,
            client.wire,
        )

    def totals(self, living: Collection[Connection]) -> dict[str, Any]:
        """The counters with those of living connections, and what is held now."""
        return dataclasses.asdict(self._counters.with_living(living)) | {
            "over_limit": self._over_limit,
            "bytes_held": self._budget.used_bytes,
        }

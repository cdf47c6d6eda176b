"""The daemon as mounting and unmounting need it."""

from __future__ import annotations

from typing import Protocol


class Volumes(Protocol):
    """What is asked of the daemon. Every call may raise ReplError."""

    def role(self, volume: str) -> str: ...

    def primaries(self) -> list[str]:
        """Return the volumes of which this node is primary."""
        ...

    def other_clients(self, volume: str, own_pid: int) -> list[str]:
        """Return the names of who holds the export besides that process, if it is primary here.

        Clients that are about to leave are waited for. Where the process cannot be told from
        others by its name, one client is taken for it.
        """
        ...

    def promote(self, volume: str, peer_dead: str | None) -> None: ...

    def demote(self, volume: str, timeout_s: float = ...) -> None:
        """Make this node a secondary of the volume; nothing happens if it is one.

        timeout_s: how long the daemon may say nothing.
        """
        ...

    def address(self, volume: str) -> str:
        """Return where this node reaches the export: a Unix socket's path, or `HOST:PORT`."""
        ...

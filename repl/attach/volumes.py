"""The daemon as mounting and unmounting need it."""

from __future__ import annotations

from typing import Protocol


class Volumes(Protocol):
    """What is asked of the daemon. Every call may raise ReplError."""

    def role(self, volume: str) -> str: ...

    def promote(self, volume: str, peer_dead: str | None) -> None: ...

    def demote(self, volume: str) -> None: ...

    def address(self, volume: str) -> str:
        """Return where this node reaches the export: a Unix socket's path, or `HOST:PORT`."""
        ...

"""What waits until all that was written is durable here and on every member (G2)."""

from __future__ import annotations

import enum
from collections.abc import Callable


class Waiter(enum.Enum):
    """For whom a barrier waits. Only a client's need is a reason to go on without a peer and to
    say that its generation has answered; upkeep is no need at all."""

    CLIENT = "client"
    ROLE = "role"
    UPKEEP = "upkeep"


class Barrier:
    """Waits until all completed writes are durable here and on every member."""

    __slots__ = ("local", "peers", "then", "waiter")

    def __init__(self, peers: set[str], waiter: Waiter, then: Callable[[], None]) -> None:
        self.waiter = waiter
        self.local = False
        self.peers = peers
        self.then = then

    def local_done(self) -> None:
        self.local = True
        self._finish()

    def peer_done(self, peer: str) -> None:
        """This peer has it durable, or is no member any more."""
        if peer in self.peers:
            self.peers.discard(peer)
            self._finish()

    def _finish(self) -> None:
        if self.local and not self.peers:
            self.then()

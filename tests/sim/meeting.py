"""A meeting of two nodes as it would be, on throwaway cores: from their start to the moment at
which a copy or comparison begins.

The cores exchange their real frames; commits and syncs succeed at once, nothing is read, written or
copied. What comes out is which one is the source and which blocks it is going to look at.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from repl.core.blockmap import BlockMap
from repl.core.outbox import SendJob
from repl.core.states import Phase
from repl.core.volume import Volume
from repl.core.wire import Type

#: Connections that two nodes need at most: a fork is given up, a primary steps down, they copy.
CONNECTIONS_MAX = 4
#: Outboxes and frames of one conversation; it takes a few dozen.
STEPS_MAX = 2000


@dataclass(frozen=True, slots=True)
class Plot:
    """What two nodes are going to do: `source` copies to, or compares with, the other one."""

    source: Volume
    target: Volume
    rule: str
    #: The blocks that are looked at.
    blocks: BlockMap


class Meeting:
    """Two cores that were just opened."""

    def __init__(self, alpha: Volume, beta: Volume) -> None:
        self._volumes = (alpha, beta)
        self._frames: deque[tuple[Volume, SendJob]] = deque()
        self._broken = False
        self._steps = 0

    def plot(self) -> Plot | None:
        """Let them meet; None if they end without data to exchange."""
        alpha, beta = self._volumes
        self._talk()
        for _ in range(CONNECTIONS_MAX):
            self._broken = False
            self._frames.clear()
            for volume in self._volumes:
                volume.peer_up(_peer(volume))
            plot = self._talk()
            if plot is not None:
                return plot
            if not self._broken:
                return None
            for volume in self._volumes:
                volume.peer_down(_peer(volume), "the other side closed it")
            self._talk()
        raise AssertionError(f"{alpha.node} and {beta.node} meet for ever")

    def _talk(self) -> Plot | None:
        """Go on until nobody has anything to say, a side closes, or a copy begins."""
        moving = True
        while moving:
            moving = self._take_outboxes()
            while self._frames and not self._broken:
                moving = True
                volume, job = self._frames.popleft()
                self._deliver(volume, job)
                plot = self._begun()
                if plot is not None:
                    return plot
        return None

    def _take_outboxes(self) -> bool:
        moving = False
        for volume in self._volumes:
            while not (box := volume.take()).empty:
                moving = True
                self._steps += 1
                assert self._steps < STEPS_MAX, "the conversation does not end"
                if box.commit is not None:
                    volume.metadata_done(box.commit.number)
                if box.sync:
                    volume.sync_done(box.sync)
                for job in box.send.get(_peer(volume), ()):
                    self._frames.append((self._other(volume), job))
                self._broken |= bool(box.drop)
        return moving

    def _deliver(self, volume: Volume, job: SendJob) -> None:
        kind, seq, offset, length, generation, flags, payload = job
        frame = (Type(kind), seq, offset, length, generation, flags, payload or b"")
        volume.peer_frames(_peer(volume), [frame])

    def _begun(self) -> Plot | None:
        for volume in self._volumes:
            session = volume.sessions[_peer(volume)]
            if session.phase is Phase.SOURCE:
                assert session.decision is not None
                blocks = volume.maps.dirty[session.name]
                return Plot(volume, self._other(volume), session.decision.rule, blocks)
        return None

    def _other(self, volume: Volume) -> Volume:
        alpha, beta = self._volumes
        return beta if volume is alpha else alpha


def _peer(volume: Volume) -> str:
    (name,) = volume.sessions
    return name

"""A simulated node's side of the link: the real `PeerConnection` over a simulated socket.

Does what the engine does with a peer's frames, and holds each frame that leaves against the
ordering law.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, cast

from repl.core import wire
from repl.core.outbox import SendJob
from repl.core.wire import Frame, PeerError, Type
from repl.link.connection import PeerConnection
from tests.sim.cells import Event
from tests.sim.ledger import Op
from tests.sim.network import Loop, Socket
from tests.sim.violation import Rule, Violation

if TYPE_CHECKING:
    import asyncio

    from tests.sim.node import Node

#: The engine's limit, small enough to be met.
UNSENT_BYTES_MAX = 256 << 10
#: Frames that no trace shows.
_DULL = frozenset({Type.PING, Type.PONG, Type.STATUS})


class PeerPort:
    """The connection of one process to its peer, if there is one."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._loop = Loop(node.world.clock, node.backlog)
        self._connection: PeerConnection | None = None
        self._socket: Socket | None = None

    @property
    def connected(self) -> bool:
        return self._connection is not None

    @property
    def congested(self) -> bool:
        """Whether clients must wait until the socket has taken more."""
        connection = self._connection
        return connection is not None and connection.unsent_bytes > UNSENT_BYTES_MAX

    def attach(self, end: Socket) -> None:
        """A new connection; the one before it ends first, with all that it held."""
        node, volume = self._node, self._node.core
        if (old := self._connection) is not None:
            self._connection = None
            old.close()
            node.work.discard(node.peer)
            node.turn(lambda: volume.peer_down(node.peer, "replaced by a newer connection"))
            if not node.running:
                end.close()
                return
        self._loop.own(end)
        connection = PeerConnection(
            cast("asyncio.AbstractEventLoop", self._loop),
            cast(socket.socket, end),
            self._frames_arrived,
            self._lost,
            volume.timeouts.peer_timeout_s,
        )
        self._connection, self._socket = connection, end
        connection.start()
        node.turn(lambda: self._up(connection))

    def _up(self, connection: PeerConnection) -> None:
        if connection is self._connection:
            self._node.note(Event.PEER_UP)
            self._node.core.peer_up(self._node.peer)

    # What arrives.

    def _frames_arrived(self, connection: PeerConnection, frames: list[Frame]) -> None:
        node = self._node
        if connection is not self._connection:
            return
        node.turn(lambda: self._frames(frames))
        if not node.running or connection.closed:
            return
        if node.core.sessions[node.peer].receiver.backlog or node.work.applier_busy:
            connection.keep_received()

    def _frames(self, frames: list[Frame]) -> None:
        node, volume = self._node, self._node.core
        session = volume.sessions[node.peer]
        verbose = node.world.verbose
        try:
            for run in _runs(frames):
                for kind, seq, offset, *_ in run:
                    if verbose and kind not in _DULL:
                        node.say(f"  ← {kind.name} {seq} {offset}")
                    if session.connected and not volume.failed:
                        node.note(kind)
                volume.peer_frames(node.peer, run)
        except PeerError as error:
            node.world.peer_error(node, str(error))
            session.broke_protocol(error)

    def _lost(self, connection: PeerConnection, reason: str) -> None:
        """The socket broke."""
        node = self._node
        if connection is not self._connection or not node.running:
            return
        assert self._socket is not None
        if "broken frame" in reason and not self._socket.incoming.corrupted:
            raise Violation(Rule.PROTOCOL, f"{node.name}: {reason}, though no byte was changed")
        self._connection = None
        volume = node.core

        def down() -> None:
            node.work.discard(node.peer)
            node.note(Event.PEER_DOWN)
            volume.peer_down(node.peer, reason, broken=connection.broken)

        node.turn(down)

    # What leaves.

    def send(self, jobs: list[SendJob]) -> None:
        """Send a turn's frames; a process that dies in the middle has sent some of them."""
        connection = self._connection
        pieces: list[bytes | memoryview] = []
        for job in jobs:
            self._node.effect()
            pieces += self._encoded(job)
            if self._node.fuse is not None and connection is not None:
                connection.send(pieces)
                pieces = []
        if connection is not None:
            connection.send(pieces)

    def _encoded(self, job: SendJob) -> list[bytes]:
        node = self._node
        node.laws.sent(job)
        kind, seq, offset, length, generation, flags, source = job
        payload = b""
        if kind == Type.WRITE:
            assert isinstance(source, Op)
            start = offset - source.offset
            payload = source.payload[start : start + length]
        elif kind == Type.RESYNC_WRITE:
            assert isinstance(source, int)
            payload = node.work.ready.pop(source)
        elif source is not None:
            assert isinstance(source, bytes)
            payload = source
        if self._connection is None:
            return []
        if node.world.verbose and kind not in _DULL:
            node.say(f"  → {Type(kind).name} {seq} {offset}+{length}")
        if kind in (Type.RESYNC_WRITE, Type.DIGEST):
            node.world.resync_bytes += len(payload)
        header = wire.encode_header(kind, payload, seq, offset, length, generation, flags)
        return [header, payload] if payload else [header]

    def drop(self, reason: str) -> None:
        """The core wants the connection closed."""
        self._node.work.discard(self._node.peer)
        if self._connection is not None:
            self._node.say(f"drops the connection: {reason}")
            self._node.note_drop()
            connection, self._connection = self._connection, None
            connection.close()

    def end(self, *, silent: bool) -> None:
        """The process is gone; `silent`: with its machine, so that nobody is told."""
        self._loop.stop()
        if self._connection is not None:
            assert self._socket is not None
            if silent:
                self._socket.vanish()
            self._connection.close()
            self._connection = None


def _runs(frames: list[Frame]) -> list[list[Frame]]:
    """Single frames, and runs of WRITE frames, which the core takes as one."""
    runs: list[list[Frame]] = []
    for frame in frames:
        if runs and frame[0] is Type.WRITE is runs[-1][-1][0]:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs

"""One volume's turn: inputs → core → carry out the outbox. The hot path of the whole product.

One turn per wake-up: whatever a socket held is parsed, fed to the core, and its one outbox is
carried out: one sendmsg per peer, coalesced pwritev, one batch of replies per client. No task, no
future, no log line and no copy per request. Threads are used only for what blocks: syncs, metadata
commits and cold reads.

Owns where the bytes are: payloads stay in their client's (or peer's) buffer until the local write
is done and the kernel has taken them for every peer. Decides nothing: the core does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from nbdserver.connection import Connection
from nbdserver.limits import Limits
from nbdserver.protocol import (
    NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLUSH,
    NBD_CMD_TRIM,
    NBD_CMD_WRITE,
    NBD_CMD_WRITE_ZEROES,
    NBD_ENOTSUP,
)
from nbdserver.requests import Request
from nbdserver.succession import Succession
from repl.core import wire
from repl.core.outbox import Commit, Outbox, SendJob, WriteKind
from repl.core.promotion import PromoteRequest
from repl.core.verdict import Verdict
from repl.core.volume import Volume
from repl.core.wire import Frame, PeerError, Type
from repl.events import Note
from repl.link.connection import Owner, PeerConnection
from repl.node.applying import Applier
from repl.node.clock import volume_now_s
from repl.node.copying import Copier
from repl.node.reading import Reader
from repl.node.writing import Writer
from repl.store.iothreads import IoThreads
from repl.store.open import Store

TICK_S = 0.2
#: Turns longer than this are counted and shown.
SLOW_TURN_S = 0.1
#: How long a turn may apply a peer's frames before the rest waits for the next one.
APPLY_SLICE_S = 0.05
#: How often a disk without room is tried again.
ROOM_INTERVAL_S = 1.0


class Engine:
    """Drives one `Volume` with real sockets, files and clocks. Implements nbdserver's `Backend`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        volume: Volume,
        store: Store,
        *,
        on_note: Callable[[Note], None],
        on_change: Callable[[], None],
        on_lost: Callable[[str, str], None],
        on_fatal: Callable[[str], None],
        limits: Limits | None = None,
    ) -> None:
        self.volume = volume
        self._loop = loop
        self._store = store
        self._backing = store.backing
        self._on_note = on_note
        self._on_change = on_change
        self._on_lost = on_lost
        self._on_fatal = on_fatal
        self._commit_threads = IoThreads(loop, "commit", 1)
        self._disk_threads = IoThreads(loop, "disk", 4)
        self._peers: dict[str, PeerConnection] = {}
        #: Who holds the export.
        self.clients: set[Connection] = set()
        #: New clients wait until nobody who left can act any more.
        self._succession = Succession(loop, (limits or Limits()).leave_s, lambda _gone: None)
        self._stalled: list[tuple[Connection, Sequence[Request]]] = []
        self._answers: dict[int, Callable[[Verdict], None]] = {}
        self._answer_number = 0
        self._applier = Applier(
            volume, store.backing, self._disk_error, APPLY_SLICE_S, self._in_next_turn
        )
        self._writer = Writer(
            volume, store.backing, self._disk_threads, self._disk_error, self._run_again
        )
        self._reader = Reader(
            volume, store.backing, self._disk_threads, self._disk_error, self._run_again
        )
        #: Number of a sync that waits until all frames are applied, or 0.
        self._sync_waiting = 0
        self._copier = Copier(
            volume, store.backing, self._disk_threads, self._disk_error, self._run_again
        )
        self._room_at_s = 0.0
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._shown: tuple[object, ...] = ()
        #: A promotion that waits is given up when one more was ordered.
        self.demotions_ordered = 0
        self.slow_turns = 0
        self.turns = 0
        self.closed = False

    # Life.

    def start(self) -> None:
        """Begin: the core's first commit, and the clock."""
        self.run()
        self._tick()

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._now()
        self.volume.client_names = self.client_names
        self.volume.tick()
        for peer in self._peers.values():
            peer.tick(self.volume.now)
        self._reader.forget_holes()
        self._look_for_room()
        self.run()

    def _look_for_room(self) -> None:
        if self.volume.now < self._room_at_s:
            return
        self._room_at_s = self.volume.now + ROOM_INTERVAL_S
        if self._writer.starved:
            self._writer.retry()
        if self._applier.starved:
            self._applier.probe()

    def close(self) -> None:
        """Carry out the last commit and let go of everything. Blocks for what is under way."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.abandon_clients()
        for peer in list(self._peers.values()):
            peer.close()
        self._writer.close()
        self._reader.close()
        self._disk_threads.close()
        self._commit_threads.close()

    def _now(self) -> None:
        self.volume.turn(volume_now_s(), int(time.time()))

    # Clients (nbdserver's Backend).

    def add_client(self, connection: Connection) -> None:
        """Serve a negotiated client, once no request of a closed one can take effect any more."""
        if not self.volume.serving:
            connection.abandon("this node is not primary any more")
            return
        self.clients.add(connection)
        self._succession.begin(connection)
        self._on_change()

    def submit(self, connection: Connection, requests: Sequence[Request]) -> None:
        """A turn that begins with client requests."""
        if self._stalled or self._congested():
            self._stalled.append((connection, requests))
            return
        self._now()
        self._feed(requests)
        self.run()

    def _feed(self, requests: Sequence[Request]) -> None:
        volume, write, plain = self.volume, self.volume.client_write, WriteKind.WRITE
        for request in requests:
            command = request.command
            if command == NBD_CMD_WRITE:
                fua = request.flags & NBD_CMD_FLAG_FUA != 0
                write(request, plain, request.offset, request.length, fua)
            elif command == NBD_CMD_FLUSH:
                volume.client_flush(request)
            elif command in (NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES):
                self._feed_zeroing(request)
            else:
                volume.client_read(request)

    def _feed_zeroing(self, request: Request) -> None:
        flags = request.flags
        punch = request.command == NBD_CMD_TRIM or not flags & NBD_CMD_FLAG_NO_HOLE
        fast = not flags & NBD_CMD_FLAG_FAST_ZERO or (punch and self._backing.zeroes_fast())
        if self.volume.serving and not fast:
            connection = request.connection
            assert connection is not None
            connection.reply(request, NBD_ENOTSUP, text="not known to be quicker than writing")
            connection.send_replies()
            return
        self._reader.forget_holes()
        self.volume.client_write(
            request,
            WriteKind.TRIM if punch else WriteKind.ZERO,
            request.offset,
            request.length,
            bool(flags & NBD_CMD_FLAG_FUA),
        )

    def disconnected(self, connection: Connection) -> None:
        """A client is gone; its requests in flight are finished, unanswered."""
        self.clients.discard(connection)
        if not self.closed:
            self._loop.call_soon(self._on_change)

    def abandon_clients(self) -> None:
        """Close all client connections without an answer."""
        for connection in list(self.clients):
            connection.abandon("the volume is not served here any more")

    @property
    def client_names(self) -> list[str]:
        """Who holds the export, for people."""
        return sorted(connection.peer_name for connection in self.clients)

    def _congested(self) -> bool:
        """Whether requests have to wait until a peer's socket has taken more."""
        for peer in self._peers.values():  # noqa: SIM110 (a generator costs more than the rest)
            if peer.congested:
                return True
        return False

    # Peers.

    def add_peer(self, name: str, peer: PeerConnection) -> None:
        """A new connection to a peer; an earlier one ends first, with all that it held."""
        old = self._peers.pop(name, None)
        self._now()
        if old is not None:
            old.close()
            self._applier.discard(name)
            self.volume.peer_down(name, "replaced by a newer connection")
            self.run()
        self._peers[name] = peer
        self.volume.peer_up(name)
        peer.start()
        self.run()

    def drop_peer(self, name: str, reason: str) -> None:
        """End the connection to a peer, if there is one."""
        if name in self._peers:
            self._now()
            self.volume.sessions[name].drop(reason)
            self.run()

    def frames_received(self, name: str, peer: PeerConnection, frames: list[Frame]) -> None:
        """A turn that begins with a peer's frames."""
        if self._peers.get(name) is not peer:
            return
        self._now()
        volume = self.volume
        try:
            volume.peer_frames(name, frames)
        except PeerError as error:
            volume.sessions[name].broke_protocol(error)
        self.run()
        backlog = volume.sessions[name].receiver.backlog or self._applier.busy
        if backlog and not peer.closed:
            peer.keep_received()

    def peer_lost(self, name: str, peer: PeerConnection, reason: str) -> None:
        """The socket broke."""
        if self._peers.get(name) is not peer:
            return
        del self._peers[name]
        self._now()
        self._applier.discard(name)
        self.volume.peer_down(name, reason, broken=peer.broken)
        self.run()
        self._on_lost(name, reason)

    # Operators.

    def promote(self, request: PromoteRequest, answer: Callable[[Verdict], None]) -> None:
        """Ask the core; the verdict comes to `answer`."""
        self.ask(lambda number: self.volume.promote(number, request), answer)

    def demote(self, drop_clients: bool, answer: Callable[[Verdict], None]) -> None:
        """Ask the core; the verdict comes to `answer`."""
        self.ask(lambda number: self.volume.demote(number, drop_clients=drop_clients), answer)

    def adopt(self, answer: Callable[[Verdict], None]) -> None:
        """Ask the core; the verdict comes to `answer`."""
        self.ask(self.volume.adopt, answer)

    def leave(self, answer: Callable[[Verdict], None]) -> None:
        """Ask the core to prepare a clean stop; the verdict comes to `answer`."""
        self.ask(self.volume.leave, answer)

    def last_commit(self, done: Callable[[], None]) -> None:
        """The clean stop's last commit."""
        self._now()
        self.volume.close(done)
        self.run()

    def ask(self, ask: Callable[[int], None], answer: Callable[[Verdict], None]) -> None:
        """Let `ask` ask the core under a number; the verdict comes to `answer`."""
        self._answer_number += 1
        self._answers[self._answer_number] = answer
        self._now()
        ask(self._answer_number)
        self.run()

    # The turn.

    def run(self) -> None:
        """Take and carry out outboxes until the core asks for nothing more."""
        if self._running or self.closed:
            return
        self._running = True
        begun = time.monotonic()
        try:
            while not (box := self.volume.take()).empty:
                self._carry_out(box)
                self._start_sync()
                if self._writer.starved and not self.volume.is_primary:
                    self._writer.let_go()
        finally:
            self._running = False
        self.turns += 1
        if time.monotonic() - begun > SLOW_TURN_S:
            self.slow_turns += 1
        if self._stalled and not self._congested():
            self._loop.call_soon(self._resume_stalled)

    def _carry_out(self, box: Outbox) -> None:
        if box.commit is not None:
            self._commit(box.commit)
        for name, jobs in box.send.items():
            self._send(name, jobs)
        if box.disk:
            self._writer.write(box.disk)
        if box.apply:
            self._applier.apply(box.apply)
        if box.copies:
            self._copier.read(box.copies)
        if box.sync:
            # It covers all frames given out until now: those that wait for a turn come first.
            self._sync_waiting = box.sync
        self._answer_clients(box)
        if box.abandon_clients or box.forget:
            self._abandon(box)
        for name, reason in box.drop:
            self._drop(name, reason)
        for note in box.notes:
            self._on_note(note)
        for number, verdict in box.answers:
            if (answer := self._answers.pop(number, None)) is not None:
                answer(verdict)
        if box.changed or box.answers or box.drop:
            self._on_change()

    def _in_next_turn(self, feed: Callable[[], None]) -> None:
        self._loop.call_soon(self._run_again, feed)

    def _run_again(self, feed: Callable[[], None]) -> None:
        """A turn that begins with what a thread brought, or with what the last one left."""
        if not self.closed:
            self._now()
            feed()
            self.run()

    def _commit(self, commit: Commit) -> None:
        prepared = self._store.metadata.prepare(commit)
        self._commit_threads.run(
            self._store.metadata.carry_out,
            prepared,
            done=lambda _result, error: self._committed(commit.number, error),
        )

    def _committed(self, number: int, error: Exception | None) -> None:
        if self.closed:
            return  # delivered while closing: the core is not asked any more
        if error is not None:
            # design §6: a failed metadata sync stops the volume; what it holds is unknown.
            self._on_fatal(f"the metadata cannot be written: {error}")
            return
        self._now()
        self.volume.metadata_done(number)
        self.run()

    def _start_sync(self) -> None:
        if self._sync_waiting and not self._applier.busy:
            number, self._sync_waiting = self._sync_waiting, 0
            self._sync(number)

    def _sync(self, number: int) -> None:
        self._disk_threads.run(
            self._backing.sync, done=lambda _result, error: self._synced(number, error)
        )

    def _synced(self, number: int, error: Exception | None) -> None:
        if self.closed:
            return
        self._now()
        if error is not None:
            self.volume.disk_failed(f"sync: {error}")
        else:
            self.volume.sync_done(number)
        self.run()

    def _send(self, name: str, jobs: list[SendJob]) -> None:
        peer = self._peers.get(name)
        if peer is None:
            return
        write = Type.WRITE
        pieces: list[bytes | memoryview] = []
        owners: list[Owner] = []
        for kind, seq, offset, length, generation, flags, source in jobs:
            payload: Any = b""
            if kind is write:
                assert isinstance(source, Request) and source.payload is not None
                payload = source.payload
                if length != source.length:
                    start = offset - source.offset
                    payload = payload[start : start + length]
                if source.chunk is not None:
                    owners.append(source.chunk)
            elif kind == Type.RESYNC_WRITE:
                payload = self._copier.take(source)
            elif source is not None:
                payload = source
            header = wire.encode_header(kind, payload, seq, offset, length, generation, flags)
            pieces.append(header)
            if payload:
                pieces.append(payload)
        peer.send(pieces, owners)

    def _disk_error(self, reason: str) -> None:
        self.volume.disk_failed(reason)

    def _answer_clients(self, box: Outbox) -> None:
        answered: set[Connection] = set()
        replies, index = box.replies, 0
        while index < len(replies):
            connection = replies[index].connection  # type: ignore[attr-defined]
            index = connection.reply_done(replies, index)
            answered.add(connection)
        for request in box.reads:
            self._reader.answer(request, answered)  # type: ignore[arg-type]
        for connection in answered:
            connection.send_replies()

    def _abandon(self, box: Outbox) -> None:
        if box.abandon_clients:
            self.abandon_clients()
        for request in box.forget:
            connection = request.connection  # type: ignore[attr-defined]
            if connection is not None:
                connection.abandon("the volume is not served here any more")
                connection.reply(request)

    def _drop(self, name: str, reason: str) -> None:
        self._applier.discard(name)
        peer = self._peers.pop(name, None)
        if peer is not None:
            peer.close()
            self._loop.call_soon(self._on_lost, name, reason)

    def _resume_stalled(self) -> None:
        if self.closed:
            return
        stalled, self._stalled = self._stalled, []
        self._now()
        for _connection, requests in stalled:
            self._feed(requests)
        self.run()

"""The source's side of a settle, a resync or a full copy (design §7, Resync).

Blocks known to differ are copied, blocks that may differ are compared by digest first, holes
travel as holes. The work goes in ascending runs within a window of bytes, while the primary's own
writes go on being mirrored. A chunk is read only where no write is in flight and is dropped if one
starts before it is queued. Before the end the maps are looked at again: no cursor is trusted. A
dirty bit is cleared only when the target's durable watermark has passed the copy or the equal
digest.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from repl.core import chronicle
from repl.core.blockmap import BlockMap, runs_of
from repl.core.handshake import Action
from repl.core.outbox import MapName
from repl.core.states import Phase
from repl.core.wire import FLAG_PUNCH, PAYLOAD_BYTES_MAX, Fields, PeerError, Type
from repl.core.writes import END_NOT_TOLD, Reservation, send_zeroes

if TYPE_CHECKING:
    from repl.core.session import Session

#: Bytes that may be read or sent and not yet acknowledged.
WINDOW_BYTES = 4 << 20
CHUNK_BYTES = PAYLOAD_BYTES_MAX
#: Bytes between two commits that persist what is done.
PERSIST_BYTES = 256 << 20


@dataclass(slots=True)
class _Chunk:
    """Blocks being read. A write into `offset..offset+length` makes it stale; one into the rest of
    `offset..reach` (the contiguous work behind it) forbids to treat that as part of a hole."""

    offset: int
    length: int
    reach: int
    compare: bool
    stale: bool = False
    #: Keeps writes out while a block is read that was written again at every attempt.
    reservation: Reservation | None = None


class Source:
    """The work towards one peer on one connection."""

    def __init__(self, session: Session, action: Action) -> None:
        self._session = session
        self._volume = session.volume
        self.action = action
        blank = self._volume.maps.remaining
        self._copy = BlockMap(blank.size_bytes, blank.block_shift, blank.page_bytes)
        self._compare = BlockMap(blank.size_bytes, blank.block_shift, blank.page_bytes)
        self._dirty = self._volume.maps.dirty[session.name]
        self._chunks: dict[int, _Chunk] = {}
        #: Reservations asked for and not given back, granted or not.
        self._reserved: list[Reservation] = []
        #: Digest frames without an answer: number → (offset, length).
        self._asked: dict[int, tuple[int, int]] = {}
        #: Ranges equal at the target once it is durable up to the number.
        self._equal: deque[tuple[int, int, int]] = deque()
        self._cleared_durable = 0
        #: Sent frames that are not acknowledged: (number, bytes of the window).
        self._window: deque[tuple[int, int]] = deque()
        self._window_bytes = 0
        #: A chunk's length: shorter where writes keep making chunks stale, down to one block.
        self._chunk_bytes = CHUNK_BYTES
        self._persist_bytes = 0
        self._working = False
        self._finishing = False
        self._here_durable = False
        #: Number up to which the target must be durable before the end.
        self._target_durable = 0
        self.total_bytes = 0

    # Start.

    def start(self) -> None:
        """Tell the target what begins, and which blocks it must count as not its own."""
        session, volume = self._session, self._volume
        their_hello = session.their_hello
        assert their_hello is not None
        half_copied = self.action is not Action.SETTLE_SOURCE
        if session.is_member and (their_hello.cache_lost or half_copied):
            volume.writes.sync_first[session.name] = END_NOT_TOLD
        if self.action is Action.RESYNC_SOURCE:
            for page_no in self._dirty.set_pages():
                session.send(Type.MAP, offset=page_no, source=self._dirty.page(page_no))
        facts = volume.facts
        session.send_control(
            Type.START,
            {
                "settle": self.action is Action.SETTLE_SOURCE,
                "whole": self.action is Action.FULL_SOURCE,
                "generation": facts.generation.id if facts.lineage else 0,
            },
        )

    def map_page(self, page_no: int, bits: bytes) -> None:
        """A page of the target's union arrived: those blocks are compared."""
        if self._working or page_no >= self._compare.page_count:
            raise PeerError("MAP: no map is expected now")
        if len(bits) != self._compare.page_bytes:
            raise PeerError("MAP: the page does not fit the volume")
        self._compare.load_page(page_no, bits)

    def ready(self, fields: Fields) -> None:
        """The target has stored its part; the work begins."""
        if self._session.phase is not Phase.SOURCE_STARTING:
            raise PeerError("READY: not expected now")
        session, volume = self._session, self._volume
        their_hello = session.their_hello
        assert their_hello is not None
        if fields.flag("whole") != (self.action is Action.FULL_SOURCE):
            raise PeerError("READY: it does not answer what was started")
        volume.intents.mark_suspects_in(self._compare)
        if fields.flag("whole"):
            everything = self._copy if their_hello.known_zeroes else self._compare
            everything.mark_all()
        elif self.action is Action.SETTLE_SOURCE:
            self._compare.merge(self._dirty)
        else:
            self._copy.merge(self._dirty)
            for first, last in self._compare.runs():
                self._copy.clear_blocks(first, last)
        self._dirty.merge(self._compare)
        self._dirty.merge(self._copy)
        self.total_bytes = self._dirty.set_bytes
        self._working = True
        session.progress.begin(volume.now)
        session.move(Phase.SOURCE)
        volume.send_status()
        if self.total_bytes:
            chronicle.copy_started(session, self.total_bytes, source=True)
        self.advance()

    # Work.

    def advance(self) -> None:
        """Ask for as many reads as the window has room for, or end."""
        if not self._working or self._finishing:
            return
        while self._window_bytes < WINDOW_BYTES and self._may_read():
            chunk = self._next_chunk(self._copy, False) or self._next_chunk(self._compare, True)
            if chunk is None:
                break
            self._read(chunk)
        if not (
            self._copy.count or self._compare.count or self._chunks or self._asked or self._reserved
        ):
            self._finish()

    @property
    def target_is_incomplete(self) -> bool:
        """Whether the target has stored, before anything was sent, that its copy is no copy now.

        Such a copy may be held back by an operator's pause or rate limit; a settle may not, since
        writes wait for it.
        """
        working = self._session.phase is Phase.SOURCE
        return working and self.action in (Action.RESYNC_SOURCE, Action.FULL_SOURCE)

    def _may_read(self) -> bool:
        if not self.target_is_incomplete:
            return True
        return self._volume.pacing.may_read(self._session.their_wish, self._volume.now)

    def _read(self, chunk: _Chunk) -> None:
        number = self._volume.next_chunk()
        self._chunks[number] = chunk
        self._window_bytes += chunk.length
        if self.target_is_incomplete:
            self._volume.pacing.spent(chunk.length)
        self._volume.outbox.copies.append(
            (number, chunk.offset, chunk.length, chunk.compare, self._session.name)
        )

    def _next_chunk(self, todo: BlockMap, compare: bool) -> _Chunk | None:
        shift = todo.block_shift
        position = 0
        while (run := todo.next_run(position)) is not None:
            first, last = run
            start = first << shift
            reach = min(last << shift, todo.size_bytes)
            end = min(start + self._chunk_bytes, reach)
            if self._volume.writes.applying(start, end):
                # Someone writes there: look further on, come back when it is done.
                position = (end + (1 << shift) - 1) >> shift
                continue
            todo.clear(start, end - start)
            reach = self._volume.writes.applying_from(end, reach)
            return _Chunk(start, end - start, reach, compare)
        return None

    def write_launched(self, offset: int, length: int) -> None:
        """A client write goes out: chunks being read under it are not to be sent any more."""
        end = offset + length
        for chunk in self._chunks.values():
            if chunk.offset < end and offset < chunk.offset + chunk.length:
                chunk.stale = True
            elif chunk.offset < end and offset < chunk.reach:
                chunk.reach = chunk.offset + chunk.length

    def chunk_read(self, number: int, hole_end: int, digests: bytes | None) -> None:
        """The engine has read a chunk: a hole up to `hole_end`, or (0) data it holds ready."""
        chunk = self._chunks.pop(number, None)
        if chunk is None:
            return  # asked for on an earlier connection
        if chunk.reservation is not None:
            self._reserved.remove(chunk.reservation)
        if chunk.stale:
            self._window_bytes -= chunk.length
            self._again(chunk)
        elif hole_end:
            self._send_hole(chunk, min(hole_end, chunk.reach))
        elif chunk.compare:
            assert digests is not None
            seq = self._session.send_numbered(Type.DIGEST, chunk.offset, chunk.length, 0, digests)
            self._sent(seq, chunk.length, len(digests))
            self._asked[seq] = (chunk.offset, chunk.length)
        else:
            seq = self._session.send_numbered(
                Type.RESYNC_WRITE, chunk.offset, chunk.length, 0, number
            )
            self._sent(seq, chunk.length, chunk.length)
            self._equal.append((seq, chunk.offset, chunk.length))
        if chunk.reservation is not None:
            self._volume.writes.release(chunk.reservation)
        elif not chunk.stale:
            self._chunk_bytes = min(CHUNK_BYTES, self._chunk_bytes * 2)
        self.advance()

    def _again(self, chunk: _Chunk) -> None:
        """A write made the chunk stale: try shorter ones, at last one block behind the writes."""
        block_bytes = 1 << self._copy.block_shift
        todo = self._compare if chunk.compare else self._copy
        # A write that waits for this very peer holds its range until this copy has ended: nothing
        # of the copy may wait in line with it.
        if chunk.length > block_bytes or self._session.orphans:
            self._chunk_bytes = max(block_bytes, chunk.length // 4 // block_bytes * block_bytes)
            todo.mark(chunk.offset, chunk.length)
            return
        retry = _Chunk(chunk.offset, chunk.length, chunk.offset + chunk.length, chunk.compare)
        retry.reservation = Reservation(chunk.offset, chunk.length, lambda: self._read(retry))
        self._reserved.append(retry.reservation)
        self._volume.writes.reserve(retry.reservation)

    def ended(self) -> None:
        """The connection is gone: let all writes in again."""
        reserved, self._reserved = self._reserved, []
        for reservation in reserved:
            self._volume.writes.release(reservation)

    def _send_hole(self, chunk: _Chunk, end: int) -> None:
        length = max(chunk.length, end - chunk.offset)
        for todo in (self._copy, self._compare):
            todo.clear(chunk.offset, length)
        if self.target_is_incomplete:
            # Nothing had to be read: the limit is for disks and the link.
            self._volume.pacing.spent(-chunk.length)
        hello = self._session.their_hello
        assert hello is not None
        if self.action is Action.FULL_SOURCE and hello.known_zeroes:
            # The target's backing is new and reads as zeroes there already.
            self._window_bytes -= chunk.length
            self._done(chunk.offset, length)
            return
        seq = send_zeroes(self._session, Type.RESYNC_ZERO, chunk.offset, length, FLAG_PUNCH)
        self._sent(seq, chunk.length, 0)
        self._equal.append((seq, chunk.offset, length))

    def _sent(self, seq: int, window_bytes: int, payload_bytes: int) -> None:
        self._window.append((seq, window_bytes))
        self._session.resync_sent_bytes += payload_bytes
        self._persist_bytes += window_bytes

    def different(self, seq: int, bits: bytes) -> None:
        """The target compared a chunk: bit n set means that its n-th block differs."""
        asked = self._asked.pop(seq, None)
        if asked is None:
            raise PeerError("DIFFERENT: it answers no digest")
        offset, length = asked
        shift = self._copy.block_shift
        blocks = (length + (1 << shift) - 1) >> shift
        if len(bits) != (blocks + 7) >> 3:
            raise PeerError("DIFFERENT: it does not fit the chunk")
        end = offset + length
        for differs, first, last in runs_of(bits, blocks):
            start = offset + (first << shift)
            size = min(end, offset + (last << shift)) - start
            if differs:
                self._copy.mark(start, size)
            else:
                self._equal.append((seq, start, size))
        self.advance()

    def acked(self, applied: int, durable: int) -> None:
        """The target's watermarks moved: the window opens, dirty bits go."""
        window = self._window
        while window and window[0][0] <= applied:
            self._window_bytes -= window.popleft()[1]
            self._session.progress.moved(self._volume.now)
        # Answers to digests come in any order relative to copies; look at each.
        if self._equal and durable > self._cleared_durable:
            self._cleared_durable = durable
            left: deque[tuple[int, int, int]] = deque()
            for seq, offset, length in self._equal:
                if seq <= durable:
                    self._done(offset, length)
                else:
                    left.append((seq, offset, length))
            self._equal = left
        if self._persist_bytes >= PERSIST_BYTES:
            self._persist_bytes = 0
            self._volume.commits.request(with_maps=True)
        self.advance()

    def _done(self, offset: int, length: int) -> None:
        before_bytes = self._dirty.set_bytes
        self._dirty.clear(offset, length)
        self._session.progress.done(before_bytes - self._dirty.set_bytes, self._volume.now)

    # What it waits for, as far as `stalls.py` cannot see it.

    @property
    def reading(self) -> bool:
        """Whether a chunk is being read from this node's disk."""
        return bool(self._chunks)

    @property
    def waits_for_writes(self) -> bool:
        """Whether a block waits until writes in flight let it be read."""
        return bool(self._reserved)

    @property
    def waits_for_own_sync(self) -> bool:
        """Whether all is copied and this node's disk has to make it durable."""
        return self._finishing and not self._here_durable

    # End.

    def _finish(self) -> None:
        """Nothing is left to look at: make it durable on both sides, then settle or join."""
        self._finishing = True
        session = self._session
        self._target_durable = session.sent_seq
        self._here_durable = False
        if session.durable_seq < session.sent_seq:
            session.ask_sync()
        self._volume.syncs.request(self._synced_here)

    def _synced_here(self) -> None:
        self._here_durable = True

    def try_end(self) -> None:
        """Called every turn: end when both sides are durable and no bit is left."""
        session = self._session
        if not self._finishing or not self._here_durable or session.phase is not Phase.SOURCE:
            return
        if session.durable_seq < self._target_durable:
            return
        if self._dirty.count:
            # Dirtied or left behind meanwhile: no cursor is trusted, look again.
            self._finishing = False
            self._compare.merge(self._dirty)
            self.advance()
            return
        if self.action is Action.SETTLE_SOURCE:
            self._end_settle()
        elif session.probation.over(self._volume.now) or session.is_member:
            self._volume.changes.join(session)

    def _end_settle(self) -> None:
        session, volume = self._session, self._volume
        volume.change_facts(cache_lost=False, crashed=False, outdated=False)
        volume.intents.clear_suspects()
        volume.commits.empty(MapName.DIRTY, session.name)
        volume.commits.empty(MapName.REMAINING)
        volume.set_base(session.name, volume.facts.generation.id)
        session.move(Phase.JOINING)
        volume.commits.request(self._settle_stored)

    def _settle_stored(self) -> None:
        session, sync_first = self._session, self._volume.writes.sync_first
        if session.source is self and session.phase is Phase.JOINING:
            session.send(Type.SETTLED)
            if session.name in sync_first:
                # It is not stored there yet; what is sent from now on is applied after that.
                sync_first[session.name] = session.sent_seq
            session.established()
            session.clear_intents_there(self._target_durable)

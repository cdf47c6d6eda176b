"""What a peer's stream does to this node's copy: apply in order, acknowledge, make durable.

Frames are taken strictly in the order in which they came. A frame that needs a commit first (a cold
extent, a new generation, the start of a resync) holds all behind it. The target side of a settle or
a resync lives here too; the source side is `source.py`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from repl.core import chronicle, lineage
from repl.core import hello as hellos
from repl.core.lineage import Lineage, Relation
from repl.core.outbox import ApplyJob, MapName
from repl.core.states import Phase
from repl.core.wire import DIGEST_BYTES, PAYLOAD_BYTES_MAX, Fields, Frame, PeerError, Type

if TYPE_CHECKING:
    from repl.core.session import Session

#: Unsynced bytes of the stream that start a sync without being asked (background watermark); what
#: is written again before that reaches the disk once.
BACKGROUND_SYNC_BYTES = 512 << 20
#: As many unsynced frames do too, whatever their size: the sender remembers each of them, which is
#: 20 MiB of memory.
BACKGROUND_SYNC_FRAMES = 1 << 17

_RESYNC = frozenset({Type.RESYNC_WRITE, Type.RESYNC_ZERO, Type.DIGEST})
_WITH_PAYLOAD = frozenset({Type.WRITE, Type.RESYNC_WRITE})
_ZEROING = frozenset({Type.ZERO, Type.RESYNC_ZERO})
_WRITE = Type.WRITE


class Receiver:
    """One connection's incoming stream. Dies with the connection."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._volume = session.volume
        self._inbox: deque[Frame] = deque()
        self._held = False
        self._started = False
        self._last_seq = 0
        #: Number of the last frame handed to the engine; a sync asked for now covers it.
        self._queued_seq = 0
        #: The number that the newest sync covers.
        self._sync_seq = 0
        self.applied_seq = 0
        self._durable_seq = 0
        self._acked: tuple[int, int] = (0, 0)
        self._unsynced_bytes = 0
        #: Id of the generation that numbered frames must carry.
        self._generation_id = 0
        #: Resynced ranges that leave the remaining map when they are durable.
        self._brought: deque[tuple[int, int, int]] = deque()
        #: The source's map pages arrive here before START.
        self._whole = False
        self._alive = True
        self._settling = False

    # Input.

    def frame(self, frame: Frame) -> None:
        """Take a frame of the stream; it is processed now or behind those that are held."""
        self._inbox.append(frame)
        self._process()

    def writes(self, frames: list[Frame], first: int) -> int:
        """Take the WRITE frames that follow one another from `first` on, all checks done once.

        Return the index behind those that were taken: it is `first` where something is unusual, and
        such a frame goes through `frame`, which says what is wrong with it.
        """
        session, volume = self._session, self._volume
        if self._held or self._inbox or not session.receiving:
            return first
        generation, size_bytes, name = self._generation(), volume.size_bytes, session.name
        touch, queue = volume.intents.touch, volume.outbox.apply.append
        index, seq, count = first, self._last_seq, len(frames)
        while index < count:
            kind, number, offset, length, its_generation, flags, payload = frames[index]
            if (
                kind is not _WRITE
                or number != seq + 1
                or its_generation != generation
                or not 0 < length <= PAYLOAD_BYTES_MAX
                or offset + length > size_bytes
                or len(payload) != length  # type: ignore[arg-type]
            ):
                break
            seq = number
            index += 1
            self._unsynced_bytes += length
            job = (name, _WRITE, seq, offset, length, flags, payload)
            if not touch(offset, length, seq):
                self._hold_for_intents(job)
                break
            queue(job)
            self._queued_seq = seq
        self._last_seq = seq
        return index

    def applied(self, seq: int) -> None:
        """The engine has applied (or compared) this frame; called in ascending order."""
        assert seq == self.applied_seq + 1, "frames are applied in their order"
        self.applied_seq = seq

    def brought(self, seq: int, offset: int, length: int) -> None:
        """A resynced range is equal now; it leaves the remaining map once durable."""
        self._brought.append((seq, offset, length))
        self._session.progress.moved(self._volume.now)

    def ended(self) -> None:
        """The connection is gone: nothing of it may act any more."""
        self._alive = False
        self._inbox.clear()
        if (self._started or self._last_seq) and not self._volume.is_primary:
            self._volume.intents.connection_ended()

    @property
    def backlog(self) -> int:
        """Frames whose payloads are still needed: one that waits for a commit, and all behind."""
        return len(self._inbox) + self._held

    # Output at the end of a turn.

    def acknowledge(self) -> None:
        """Send one cumulative ACK if there is news, and a background sync if much is unsynced."""
        news = (self.applied_seq, self._durable_seq)
        if news != self._acked:
            self._acked = news
            self._session.send(Type.ACK, self.applied_seq, self._durable_seq)
        unsynced_frames = self._queued_seq - self._sync_seq
        if (
            self._unsynced_bytes >= BACKGROUND_SYNC_BYTES
            or unsynced_frames >= BACKGROUND_SYNC_FRAMES
        ):
            self.sync()

    def sync(self) -> None:
        """Make everything applied until now durable, then tell the peer."""
        self._unsynced_bytes = 0
        # The engine starts a sync only after it has carried out everything queued before it.
        seq = self._sync_seq = self._queued_seq
        self._volume.syncs.request(lambda: self._synced(seq))

    @property
    def unsynced(self) -> bool:
        """Whether applied frames are not known to be durable."""
        return self._durable_seq < self.applied_seq

    def _synced(self, seq: int) -> None:
        if not self._alive or seq <= self._durable_seq:
            return
        self._durable_seq = seq
        volume, remaining = self._volume, self._volume.maps.remaining
        before_bytes = remaining.set_bytes
        while self._brought and self._brought[0][0] <= seq:
            _, offset, length = self._brought.popleft()
            remaining.clear(offset, length)
        self._session.progress.done(before_bytes - remaining.set_bytes, volume.now)
        if self._session.phase is Phase.TARGET and volume.facts.inconsistent:
            self._rest_at(seq)

    def _rest_at(self, seq: int) -> None:
        """A copy that nobody may serve needs no intents where it is durable: what its source may
        still lose is marked there. Else all that a long copy brings would stay marked to its end,
        and be looked at again after every interruption. A settle's target is a copy, and waits."""
        if self._volume.intents.clear_up_to(seq):
            self._volume.commits.request(with_maps=True)

    # Frames, in order.

    def _process(self) -> None:
        while self._inbox and not self._held and self._alive:
            frame = self._inbox.popleft()
            kind = frame[0]
            if kind in _WITH_PAYLOAD or kind in _ZEROING or kind is Type.DIGEST:
                self._numbered(frame)
            else:
                self._unnumbered(frame)

    def _numbered(self, frame: Frame) -> None:
        kind, seq, offset, length, generation, flags, payload = frame
        session = self._session
        if not session.receiving:
            raise PeerError(f"{kind.name}: this node is not a receiver ({session.phase.value})")
        if kind in _RESYNC and session.phase is not Phase.TARGET:
            raise PeerError(f"{kind.name}: no resync is going on")
        if seq != self._last_seq + 1:
            raise PeerError(f"{kind.name}: number {seq} does not follow {self._last_seq}")
        if generation != self._generation():
            raise PeerError(f"{kind.name}: it belongs to another generation")
        self._check_range(frame)
        self._last_seq = seq
        job = (session.name, kind, seq, offset, length, flags, payload)
        if kind is Type.DIGEST:
            self._queue(job)
            return
        self._unsynced_bytes += length
        if kind in _RESYNC:
            self.brought(seq, offset, length)
        if self._volume.intents.touch(offset, length, seq):
            self._queue(job)
            return
        self._hold_for_intents(job)

    def _hold_for_intents(self, job: ApplyJob) -> None:
        """Neither this frame nor any behind it goes on before its extents are durable intents."""
        self._hold()
        self._volume.commit_intents(lambda: self._go_on(job))

    def _generation(self) -> int:
        if self._generation_id:
            return self._generation_id
        return self._volume.facts.generation.id if self._volume.facts.lineage else 0

    def _check_range(self, frame: Frame) -> None:
        kind, _seq, offset, length, _generation, _flags, payload = frame
        if length == 0 or offset + length > self._volume.size_bytes:
            raise PeerError(f"{kind.name}: {offset}+{length} is not inside the volume")
        if kind in _ZEROING:
            return
        if kind in _WITH_PAYLOAD and _size(payload) != length:
            raise PeerError(f"{kind.name}: the payload does not fit the range")
        if length > PAYLOAD_BYTES_MAX:
            raise PeerError(f"{kind.name}: {length} bytes are more than a frame may cover")
        if kind is Type.DIGEST:
            shift = self._volume.maps.remaining.block_shift
            blocks = (length + (1 << shift) - 1) >> shift
            if offset & ((1 << shift) - 1) or _size(payload) != blocks * DIGEST_BYTES:
                raise PeerError("DIGEST: the digests do not fit the range")

    def _queue(self, job: ApplyJob) -> None:
        self._queued_seq = job[2]
        self._volume.outbox.apply.append(job)

    def _go_on(self, job: ApplyJob) -> None:
        if self._alive:
            self._queue(job)
            self._release()

    def _hold(self) -> None:
        self._held = True

    def _release(self) -> None:
        self._held = False
        try:
            self._process()
        except PeerError as error:
            # A commit's turn, not the frame's: nobody above knows which peer this is about.
            self._session.broke_protocol(error)

    def _unnumbered(self, frame: Frame) -> None:
        kind, seq, _offset, _length, _generation, _flags, payload = frame
        session = self._session
        if kind is Type.SYNC:
            if seq > self._last_seq:
                raise PeerError("SYNC: it names a frame that was not sent")
            self.sync()
        elif kind is Type.CLEAR_INTENTS:
            self._clear_intents(seq)
        elif kind is Type.MAP:
            self._map_page(frame)
        elif kind is Type.START:
            self._start(Fields("START", _object(payload)))
        elif kind is Type.GENERATION:
            self._generation_announced(Fields("GENERATION", _object(payload)))
        elif kind is Type.PROMOTE_ASK:
            self._volume.roles.on_ask(session, Fields("PROMOTE_ASK", _object(payload)))
        elif kind is Type.LEAVE:
            self._volume.roles.on_leave(session, Fields("LEAVE", _object(payload)))
        elif kind is Type.SETTLED:
            if session.phase is not Phase.TARGET or not self._settling:
                raise PeerError("SETTLED: no settle is going on")
            self._settled()
        else:
            raise PeerError(f"{kind.name}: not a frame of the stream")

    def _clear_intents(self, seq: int) -> None:
        # design §6: only what is durable on this disk too.
        if self._volume.is_primary or seq > self._durable_seq:
            return
        if self._session.phase is Phase.ESTABLISHED and self._volume.intents.clear_up_to(seq):
            self._volume.commits.request()

    # The target's side of a copy.

    def _map_page(self, frame: Frame) -> None:
        _kind, _seq, page_no, _length, _generation, _flags, payload = frame
        remaining = self._volume.maps.remaining
        if self._session.phase is not Phase.TARGET_STARTING or self._started:
            raise PeerError("MAP: no map is expected now")
        bits = bytes(payload)  # type: ignore[call-overload]
        if page_no >= remaining.page_count or len(bits) != remaining.page_bytes:
            raise PeerError("MAP: the page does not fit the volume")
        remaining.load_page(page_no, bits)

    def _start(self, fields: Fields) -> None:
        session, volume = self._session, self._volume
        if session.phase is not Phase.TARGET_STARTING or self._started:
            raise PeerError("START: not expected now")
        self._started = True
        self._generation_id = fields.number("generation")
        settle, self._whole = fields.flag("settle"), fields.flag("whole")
        self._settling = settle
        remaining = volume.maps.remaining
        if self._whole:
            remaining.mark_all()
        remaining.merge(volume.maps.dirty[session.name])
        volume.intents.mark_suspects_in(remaining)
        self._hold()
        if not settle:
            self._volume.roles.resume_pending = False
        if not settle and self._generation_id:
            # Durable before any frame is applied: this copy is inconsistent from now on. (A first
            # contact names no generation: both copies are new and equal.)
            volume.change_facts(
                inconsistent=True,
                source_generation=self._generation_id,
                is_primary=False,
                known_zeroes=False,
            )
        volume.commits.request(self._ready, with_maps=True)

    def _ready(self) -> None:
        if not self._alive:
            return
        session, remaining = self._session, self._volume.maps.remaining
        if not self._whole:
            for page_no in remaining.set_pages():
                session.send(Type.MAP, offset=page_no, source=remaining.page(page_no))
        # Before READY, so that a pause is known there when the copy begins.
        self._volume.send_status()
        session.send_control(Type.READY, {"whole": self._whole})
        session.progress.begin(self._volume.now)
        session.move(Phase.TARGET)
        if remaining.count:
            chronicle.copy_started(session, remaining.set_bytes, source=False)
        self._release()

    def _settled(self) -> None:
        volume, name = self._volume, self._session.name
        volume.change_facts(cache_lost=False, crashed=False, outdated=False)
        volume.intents.clear_suspects()
        volume.commits.empty(MapName.REMAINING)
        volume.commits.empty(MapName.DIRTY, name)
        volume.set_base(name, volume.facts.generation.id)
        self._hold()
        volume.commits.request(self._joined)

    def _generation_announced(self, fields: Fields) -> None:
        session, volume = self._session, self._volume
        if not session.receiving:
            raise PeerError("GENERATION: this node receives none now")
        entries = hellos.lineage_from_fields(fields)
        self._check_lineage(entries)
        volume_id = fields.number("volume_id")
        if not volume_id or volume.facts.volume_id not in (0, volume_id):
            raise PeerError("GENERATION: it belongs to another volume")
        self._hold()
        self._generation_id = entries[0].id
        volume.roles.resume_pending = False
        if volume.facts.node_id not in entries[0].members:
            volume.change_facts(source_generation=entries[0].id)
            volume.commits.request(self._release_if_alive)
            return
        volume.change_facts(
            lineage=entries,
            volume_id=volume_id,
            is_primary=False,
            inconsistent=False,
            everything_suspect=False,
            source_generation=0,
            outdated=False,
            cache_lost=False,
            crashed=False,
            known_zeroes=False,
        )
        if session.phase is Phase.TARGET:
            # The source made everything durable here before it announced this (G5).
            volume.intents.clear_suspects()
            volume.commits.empty(MapName.REMAINING)
            volume.commits.empty(MapName.DIRTY, session.name)
        volume.set_base(session.name, entries[0].id)
        volume.commits.request(lambda: self._generation_stored(entries[0].id))

    def _check_lineage(self, entries: Lineage) -> None:
        mine = self._volume.facts.lineage
        if not entries:
            raise PeerError("GENERATION: the lineage is empty")
        if not mine:
            return
        if self._session.phase is Phase.ESTABLISHED:
            if len(entries) < 2 or entries[1].id != mine[0].id:
                raise PeerError("GENERATION: it does not follow the current one")
        elif lineage.relate(mine, entries) not in (Relation.ANCESTOR, Relation.EQUAL):
            raise PeerError("GENERATION: its lineage does not hold this copy's generation")

    def _generation_stored(self, generation_id: int) -> None:
        if not self._alive:
            return
        self._session.send(Type.GENERATION_STORED, generation_id)
        self._joined()

    def _joined(self) -> None:
        if not self._alive:
            return
        if self._session.phase is Phase.TARGET:
            self._generation_id = 0
            self._session.established()
        else:
            self._volume.roles.followed_generation(self._session)
        self._release()

    def _release_if_alive(self) -> None:
        if self._alive:
            self._release()


def _size(payload: object) -> int:
    return memoryview(payload).nbytes  # type: ignore[arg-type]


def _object(payload: object) -> dict[str, object]:
    assert isinstance(payload, dict)
    return payload

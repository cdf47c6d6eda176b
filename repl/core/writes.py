"""Client requests: from acceptance to the one reply (design §7, write, flush and FUA).

A write is admitted when it overlaps none in flight, launched when its extents are durable intents,
complete when this node and every member of the in-sync set have applied it, and answered when its
generation is marked answered (and, for FUA, when it is durable everywhere). While the volume is
frozen, requests wait here in their order. Never does I/O, never sees a byte of data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from repl.core.barrier import Barrier, Waiter
from repl.core.facts import Facts
from repl.core.lineage import mark_answered
from repl.core.outbox import Op, WriteKind
from repl.core.room import Room
from repl.core.spans import Spans
from repl.core.wire import FLAG_PUNCH, PAYLOAD_BYTES_MAX, ZERO_BYTES_MAX, Type

if TYPE_CHECKING:
    from repl.core.session import Session
    from repl.core.volume import Volume


#: Looked up for every write: an attribute of an enumeration costs several times more.
_WRITE = WriteKind.WRITE
_WRITE_FRAME = Type.WRITE


#: Behind every frame: the peer has not been told the end of its copy yet.
END_NOT_TOLD = 1 << 62


class Write:
    """One client write in flight. `waiting` counts the copies that have not applied it yet;
    `sync_first` says that one of those that have does not count (`ClientWrites.lost`)."""

    __slots__ = (
        *("fua", "kind", "launched", "length", "number", "offset", "op", "sync_first", "waiting"),
    )

    def __init__(self, op: Op, kind: WriteKind, offset: int, length: int, fua: bool) -> None:
        self.op = op
        self.kind = kind
        self.offset = offset
        self.length = length
        self.fua = fua
        self.number = 0
        self.waiting = 0
        self.launched = False
        self.sync_first = False


class Reservation:
    """A range that a resync keeps writes out of for a moment; it waits in line like a write."""

    __slots__ = ("epoch", "granted", "length", "offset")

    def __init__(self, offset: int, length: int, granted: Callable[[], None]) -> None:
        self.offset = offset
        self.length = length
        self.granted = granted
        self.epoch = -1


class ClientWrites:
    """All client requests of a volume that are not answered yet."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.in_flight: dict[Op, Write] = {}
        #: Launched, and not yet in the local backing.
        self._applying: dict[Op, Write] = {}
        #: All clients were closed: what was theirs is finished, and answered to nobody.
        self.silent = False
        #: Numbers the writes of this process; intents remember the last one of each extent.
        self.number = 0
        self.spans = Spans()
        #: Requests that came while frozen, in their order: (method, arguments).
        self._held: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        #: Writes that overlap one in flight or an earlier one here.
        self._blocked: list[Write | Reservation] = []
        self.room = Room(volume.intents)
        self._unanswered: list[Op] = []
        #: A member was lost that may be all that has made these durable.
        self._sync_unanswered = False
        #: Members whose copy would give way to this one if power were lost here now, since they
        #: lost power themselves or are half copied: only what is durable here survives that. By
        #: name, the number of the frame behind which the peer applies nothing before it has stored
        #: the end of it.
        self.sync_first: dict[str, int] = {}
        self._flushes: dict[Op, None] = {}
        #: Abandoned writes that the local disk still works on.
        self._abandoned: set[Op] = set()
        #: Grows when everything in flight is abandoned: late callbacks of before do nothing.
        self._epoch = 0
        #: The facts in memory and the stored ones that `_may_answer` saw, and what it found.
        self._judged: tuple[Facts | None, Facts | None, bool] = (None, None, False)
        #: The id of the generation that this process marked as answered, as long as nobody has got
        #: an answer under it; else 0.
        self.marked_ahead = 0
        #: Commits under way that take such a mark back.
        self.taking_back = 0

    @property
    def drained(self) -> bool:
        """Whether nothing is in flight; held requests do not count, nothing of them happened."""
        waiting = self.room.waiting or any(isinstance(entry, Write) for entry in self._blocked)
        return not (self.in_flight or waiting or self._unanswered or self._flushes)

    def applying(self, start: int, end: int) -> bool:
        """Whether a write into start..end is launched and not yet in the local backing."""
        return any(
            write.offset < end and start < write.offset + write.length
            for write in self._applying.values()
        )

    def applying_from(self, start: int, end: int) -> int:
        """Where in start..end the first write begins that is not in the local backing, else end."""
        return min(
            (write.offset for write in self._applying.values() if start <= write.offset < end),
            default=end,
        )

    @property
    def written_number(self) -> int:
        """Every write with this number or a lower one has been sent and is in the local backing.

        One that waits for an intent commit, or for room on the disk, has touched its extents
        already: they stay marked.
        """
        waiting = [
            write.number
            for write in self.in_flight.values()
            if not write.launched or write.op in self._applying
        ]
        return min(waiting) - 1 if waiting else self.number

    @property
    def disk_owes(self) -> bool:
        """Whether the local disk still works on a write that was abandoned.

        No handshake begins meanwhile: it would land on top of what the peer brings.
        """
        return bool(self._abandoned)

    @property
    def pending(self) -> int:
        """Requests that were accepted and not answered yet."""
        held = len(self._held) + len(self.room.waiting)
        return len(self.in_flight) + len(self._blocked) + len(self._unanswered) + held

    def write(self, op: Op, kind: WriteKind, offset: int, length: int, fua: bool) -> None:
        """Accept a write of `length` > 0 bytes inside the volume."""
        if self._volume.frozen:
            self._held.append((self.write, (op, kind, offset, length, fua)))
            return
        write = Write(op, kind, offset, length, fua)
        if self._claim(write):
            self._admit(write)
        else:
            self._blocked.append(write)

    def read(self, op: Op) -> None:
        """Accept a read: it is done now, or when the volume thaws."""
        if self._volume.frozen:
            self._held.append((self.read, (op,)))
        else:
            self._volume.outbox.reads.append(op)

    def flush(self, op: Op) -> None:
        """Accept a flush: it is answered when all that was answered before is durable."""
        if self._volume.frozen:
            self._held.append((self.flush, (op,)))
            return
        self._flush(op)

    def release_held(self) -> None:
        """The volume thawed: take up what waited, in its order."""
        while self._held and not self._volume.frozen:
            method, arguments = self._held.popleft()
            method(*arguments)

    def go_silent(self) -> None:
        """The clients were closed without an answer: nothing in flight is answered any more, so
        that a generation made only to finish it never counts as having answered."""
        self.silent = True
        self._volume.outbox.forget += self._unanswered
        self._unanswered.clear()

    def drop_held(self) -> None:
        """Forget what waited (its clients were abandoned); nothing of it has happened."""
        self._volume.outbox.forget += [arguments[0] for _, arguments in self._held]
        self._held.clear()

    def abandon(self) -> None:
        """This node is primary no more, by force: nothing in flight will ever be answered."""
        volume = self._volume
        for session in volume.sessions.values():
            session.forget_waiters()
        # What the local disk still works on is let go of when that is done.
        self._abandoned |= self._applying.keys()
        elsewhere = [op for op in self.in_flight if op not in self._abandoned]
        waiting = (*self.room.waiting, *self._blocked)
        blocked = [entry.op for entry in waiting if isinstance(entry, Write)]
        volume.outbox.forget += [*elsewhere, *blocked, *self._unanswered, *self._flushes]
        self.drop_held()
        self.in_flight.clear()
        self._applying.clear()
        self.spans = Spans()
        self._blocked.clear()
        self.room.clear()
        self._unanswered.clear()
        self._flushes.clear()
        self.silent = False
        self._epoch += 1

    def reserve(self, reservation: Reservation) -> None:
        """Keep writes out of a range: granted when those in flight there are done."""
        if self._claim(reservation):
            self._grant(reservation)
        else:
            self._blocked.append(reservation)

    def release(self, reservation: Reservation) -> None:
        """Let writes into the range again (or give up a reservation that was not granted yet)."""
        if reservation in self._blocked:
            self._blocked.remove(reservation)
        elif reservation.epoch == self._epoch:
            self.spans.remove(reservation.offset)
        self._admit_blocked()

    def _grant(self, reservation: Reservation) -> None:
        reservation.epoch = self._epoch
        reservation.granted()

    def disk_done(self, op: Op) -> None:
        """The write is in the local backing (not yet durable)."""
        write = self.in_flight.get(op)
        if write is None:
            if op in self._abandoned:
                self._abandoned.discard(op)
                self._volume.forget(op)
                if not self._abandoned:
                    for session in self._volume.sessions.values():
                        session.greet()
            return
        self._applying.pop(op, None)
        self._volume.syncs.unsynced_bytes += write.length
        self.one_done(write)

    def applied_there(self, peer: str, seq: int) -> None:
        """The peer has applied all up to this frame: it may have stored that its copy is whole."""
        if seq > self.sync_first.get(peer, seq):
            del self.sync_first[peer]

    def lost(self, peer: str) -> None:
        """The connection ended. What this member has applied it may lose or give up before this
        node has stored that it goes on without it: what is not answered is durable here first."""
        self.sync_first.pop(peer, 0)
        for write in self._applying.values():
            write.sync_first = True
        self._sync_unanswered = bool(self._unanswered)

    def never_done(self, ops: list[Op]) -> None:
        """These were abandoned before the local disk was asked for them."""
        self._abandoned.difference_update(ops)
        self._volume.outbox.forget += ops

    def one_done(self, write: Write) -> None:
        """One of the copies that the write waits for has applied it, or left the set."""
        write.waiting -= 1
        if write.waiting == 0:
            self._complete(write)

    def barrier(self, waiter: Waiter, then: Callable[[], None]) -> None:
        """Call `then` when all writes completed until now are durable on every member (G2).

        One for upkeep is given up when a member is not settled: it never calls `then`.
        """
        members = self._volume.member_sessions()
        barrier = Barrier({session.name for session in members}, waiter, then)
        for session in members:
            session.require_durable(barrier)
        self._volume.syncs.request(barrier.local_done)

    def _claim(self, entry: Write | Reservation) -> bool:
        """Take its range, unless it overlaps what is in flight, or what waits already and so comes
        first; return whether it was taken."""
        start, end = entry.offset, entry.offset + entry.length
        if self._blocked and any(
            other.offset < end and start < other.offset + other.length for other in self._blocked
        ):
            return False
        return self.spans.claim(start, end)

    def _admit(self, write: Write) -> None:
        intents = self._volume.intents
        most = len(intents.hot) + intents.clearing + (write.length >> intents.shift) + 2
        if (self.room.waiting or most > intents.limit) and not self.room.takes(write):
            return
        self._admit_now(write)

    def room_made(self) -> None:
        """Intents were cleared, durably: admit those that waited for room."""
        self.room.made(self._admit_now)

    def _admit_now(self, write: Write) -> None:
        self.in_flight[write.op] = write
        self.number += 1
        write.number = self.number
        volume = self._volume
        if volume.intents.touch(write.offset, write.length, write.number):
            self._launch(write)
        else:
            epoch = self._epoch
            volume.commit_intents(lambda: self._launch(write) if epoch == self._epoch else None)

    def _launch(self, write: Write) -> None:
        volume = self._volume
        write.launched = True
        self._applying[write.op] = write
        write.waiting = 1
        for session in volume.sessions.values():
            replicate(session, write)
        volume.outbox.disk.append((write.op, write.kind, write.offset, write.length))

    def _complete(self, write: Write) -> None:
        del self.in_flight[write.op]
        self.spans.remove(write.offset)
        if write.fua:
            self._flush(write.op)
        elif self.sync_first or write.sync_first:
            self._reply_synced(write.op)
        else:
            self._reply(write.op)
        if self._blocked:
            self._admit_blocked()

    def _admit_blocked(self) -> None:
        waiting, self._blocked = self._blocked, []
        for entry in waiting:
            if not self._claim(entry):
                self._blocked.append(entry)
            elif isinstance(entry, Write):
                self._admit(entry)
            else:
                self._grant(entry)

    def _flush(self, op: Op) -> None:
        self._flushes[op] = None
        epoch = self._epoch
        self.barrier(Waiter.CLIENT, lambda: self._flushed(op, epoch))

    def _reply_synced(self, op: Op) -> None:
        self._flushes[op] = None
        epoch = self._epoch
        self._volume.syncs.request(lambda: self._flushed(op, epoch))

    def _flushed(self, op: Op, epoch: int) -> None:
        if epoch == self._epoch:
            del self._flushes[op]
            self._reply(op)

    def _reply(self, op: Op) -> None:
        if self.silent:
            self._volume.forget(op)
            return
        if self._may_answer():
            self._volume.outbox.replies.append(op)
            return
        self._unanswered.append(op)
        if len(self._unanswered) == 1 and not self._volume.absence.doubtful:
            # Else `answer_waiting` does it: a generation that was superseded meanwhile has to give
            # way as one that answered nobody.
            self.mark_answered()

    def _may_answer(self) -> bool:
        """The present set, and its generation's mark, are durable before a reply (§5, G4); and
        what this node knows of the members is of now."""
        volume = self._volume
        if volume.absence.doubtful:
            return False
        facts, stored = volume.facts, volume.commits.stored
        if facts is not self._judged[0] or stored is not self._judged[1]:
            # Both are immutable: what they say needs to be looked at once.
            generation = stored.generation
            # What is being stored without the mark may be on the disk already.
            answered = generation.answered and not self.taking_back
            answered = answered and generation.id == facts.generation.id
            self._judged = facts, stored, answered
            if answered:
                self.marked_ahead = 0  # whoever asks replies now
        return self._judged[2]

    def mark_answered(self) -> None:
        """Make the current generation's mark durable, then send the replies that wait for it.

        In doubt about its peers a node answers nobody, and says of no generation that it has.
        """
        facts = self._volume.facts
        if self._volume.absence.doubtful:
            return  # `answer_waiting` comes back to it
        if not facts.generation.answered:
            self._volume.change_facts(lineage=mark_answered(facts.lineage))
            self.marked_ahead = facts.generation.id
        self._volume.commits.request(self._answer)

    def take_back_mark(self) -> None:
        """Nobody was answered under the mark that this process made, and now nobody may be: without
        it this node can still give way to one that was promoted in its place."""
        volume = self._volume
        facts, marked = volume.facts, self.marked_ahead
        if marked and marked == facts.generation.id:
            self.marked_ahead = 0
            self.taking_back += 1
            volume.change_facts(lineage=mark_answered(facts.lineage, False))
            volume.commits.request(self._taken_back)

    def _taken_back(self) -> None:
        self.taking_back -= 1
        self._judged = (None, None, False)

    def answer_waiting(self) -> None:
        """Answer what waited only for this node to meet the members again, if nothing else."""
        self._answer()

    def _answer(self) -> None:
        if not self._unanswered or self._volume.absence.doubtful:
            return
        if not self._may_answer():
            # A new generation came in between; its own mark is needed.
            self.mark_answered()
            return
        unanswered, self._unanswered = self._unanswered, []
        sync, self._sync_unanswered = self._sync_unanswered or bool(self.sync_first), False
        if sync:
            for op in unanswered:
                self._reply_synced(op)
        else:
            self._volume.outbox.replies += unanswered


def replicate(session: Session, write: Write) -> None:
    """Send a launched write to a peer, or mark it dirty if the peer does not receive it."""
    if not session.mirroring:
        _mark_for_absent(session, write)
        return
    offset, length = write.offset, write.length
    if write.kind is _WRITE and length <= PAYLOAD_BYTES_MAX:
        seq = session.send_numbered(_WRITE_FRAME, offset, length, 0, write.op)
    else:
        seq = _send_pieces(session, write)
    session.recent.append((seq, offset, length))
    if session.source is not None:
        session.source.write_launched(offset, length)
    if session.is_member:
        write.waiting += 1
        session.awaiting.append((seq, write))


def _mark_for_absent(session: Session, write: Write) -> None:
    """A member that does not receive it is still waited for."""
    session.volume.maps.dirty[session.name].mark(write.offset, write.length)
    if session.is_member:
        write.waiting += 1
        session.orphans.append(write)
        session.need()


def _send_pieces(session: Session, write: Write) -> int:
    """Send what is no single WRITE frame; return the last one's number."""
    if write.kind is not _WRITE:
        flags = FLAG_PUNCH if write.kind is WriteKind.TRIM else 0
        return send_zeroes(session, Type.ZERO, write.offset, write.length, flags)
    op: Op = write.op
    offset, end = write.offset, write.offset + write.length
    while end - offset > PAYLOAD_BYTES_MAX:
        session.send_numbered(_WRITE_FRAME, offset, PAYLOAD_BYTES_MAX, 0, op)
        offset += PAYLOAD_BYTES_MAX
    return session.send_numbered(_WRITE_FRAME, offset, end - offset, 0, op)


def send_zeroes(session: Session, kind: Type, offset: int, length: int, flags: int) -> int:
    """Queue a range of zeroes as frames of the stream; return the last one's number."""
    end = offset + length
    while end - offset > ZERO_BYTES_MAX:
        session.send_numbered(kind, offset, ZERO_BYTES_MAX, flags, None)
        offset += ZERO_BYTES_MAX
    return session.send_numbered(kind, offset, end - offset, flags, None)

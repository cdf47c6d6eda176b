"""What the clock starts: timeouts, pings, G4, background watermarks, intent checkpoints.

`tick` is called every fraction of a second and compares times; it never sleeps and owns no timer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from repl.core import chronicle
from repl.core.barrier import Barrier, Waiter
from repl.core.stalls import held_back
from repl.core.states import Phase

if TYPE_CHECKING:
    from repl.core.session import Session
    from repl.core.volume import Volume

#: Intents of extents at rest are cleared this often.
CHECKPOINT_INTERVAL_S = 2.0
#: A receiver makes what it applied durable at least this often, unasked.
WATERMARK_INTERVAL_S = 5.0


class Upkeep:
    """The periodic work of one volume."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.synced_at_s = volume.now
        self._checkpoint_at_s = volume.now + CHECKPOINT_INTERVAL_S
        self._checkpointing = False
        #: The number of the last write when the last checkpoint was due: an extent that was not
        #: written since is at rest.
        self._rested_number = 0

    def checkpoint_given_up(self) -> None:
        """The checkpoint under way will never be told its end: the next one begins anew."""
        self._checkpointing = False

    def tick(self) -> None:
        """Do whatever is due at the volume's present time."""
        volume = self._volume
        volume.absence.tick()
        for session in volume.sessions.values():
            self._tick_session(session)
        self.look_for_losses()
        if volume.intents.crowded:
            self.make_room()
        if volume.now >= self._checkpoint_at_s:
            self._checkpoint_at_s = volume.now + CHECKPOINT_INTERVAL_S
            self._checkpoint()

    def _tick_session(self, session: Session) -> None:
        if session.phase is Phase.DOWN:
            return
        now, timeouts = self._volume.now, self._volume.timeouts
        debt = session.live.worst(now, timeouts)
        if debt.part > 1:
            session.drop(f"it did not answer for {debt.for_s:.1f} s: {debt.what}")
            return
        if session.live.slowness_changed(now, debt):
            self._volume.outbox.changed = True
            chronicle.slowness_changed(session, debt)
        if now - session.live.sent_s >= timeouts.ping_interval_s:
            session.ping()
        if held_back(session):
            session.progress.begin(now)
        else:
            session.progress.measure(now)
        chronicle.look_at_copy(session)
        if session.split is not None:
            session.split.tick()
        if session.receiver.unsynced and now - self.synced_at_s >= WATERMARK_INTERVAL_S:
            session.receiver.sync()

    def look_for_losses(self) -> None:
        """G4: go on without a member that did not answer, if that is permitted."""
        volume = self._volume
        if not volume.is_primary or volume.changes.busy or volume.failed:
            return
        if volume.absence.doubtful:
            return
        for session in volume.member_sessions():
            if (
                not session.settled
                and session.needed_since_s is not None
                and self._given_up(session)
            ):
                volume.changes.lose_unanswered(session)
                return

    def _given_up(self, session: Session) -> bool:
        """G4 begins when an answer is needed and the connection had its time to come back."""
        timeouts, now = self._volume.timeouts, self._volume.now
        assert session.needed_since_s is not None
        if session.phase in (Phase.SOURCE, Phase.JOINING):
            # It is back and being settled: that may take a while, but not for ever. A copy of which
            # nothing is trusted may take hours, and gets no more than a connection that broke.
            limit = timeouts.reconnect_grace_s
            if session.source is None or not session.source.target_is_incomplete:
                limit += timeouts.peer_timeout_s
            return now - session.needed_since_s >= limit
        return now - session.down_since_s >= timeouts.reconnect_grace_s

    def _checkpoint(self) -> None:
        """Clear intents at rest, once everything is durable wherever it must be (design §6).

        Extents that were written since the last time stay hot: clearing them would cost their next
        write a commit. Where nothing rests, nothing is synced.
        """
        volume, intents = self._volume, self._volume.intents
        if volume.changes.busy or self._checkpointing or not volume.is_primary or volume.failed:
            return
        if not self._nothing_is_copied():
            return
        number, self._rested_number = self._rested_number, volume.writes.written_number
        clear_there = [session.rested() for session in volume.member_sessions()]
        if not (intents.suspect or intents.any_rested(number)):
            return
        self._checkpointing = True
        generation = volume.facts.generation.id
        volume.writes.barrier(
            Waiter.UPKEEP, lambda: self._checkpoint_durable(number, generation, clear_there)
        )

    def _nothing_is_copied(self) -> bool:
        """A settle or a resync clears bits as it goes; its end clears the suspects."""
        return all(
            session.settled if session.is_member else not session.connected or session.split
            for session in self._volume.sessions.values()
        )

    def _checkpoint_durable(
        self, number: int, generation: int, clear_there: list[Callable[[], None]]
    ) -> None:
        volume = self._volume
        self._checkpointing = False
        if not volume.is_primary or volume.facts.generation.id != generation:
            return
        if not self._nothing_is_copied():
            return
        outside = [session for session in volume.sessions.values() if not session.is_member]
        for session in outside:
            # Covered by dirty bits, which the same commit persists before it clears intents.
            volume.intents.mark_suspects_in(volume.maps.dirty[session.name])
        volume.intents.clear_suspects()
        cleared = volume.intents.clear_up_to(number)
        for clear in clear_there:
            clear()
        self._cleared(cleared, with_maps=bool(outside))

    # Room among the hot extents.

    def make_room(self) -> None:
        """Clear the hot extents that were written longest ago, whatever else is going on.

        Unlike a checkpoint this does not wait for a copy, for a change or for a member that is
        away, since clients wait for it: what a peer lacks or may lose is in its dirty map, or this
        waits until it is durable there, and one commit stores that map and clears the intents.
        Suspects stay: the end of the copy, or a checkpoint, clears them.
        """
        volume = self._volume
        if self._checkpointing or volume.intents.clearing or not volume.is_primary or volume.failed:
            return
        number = volume.writes.written_number
        if not volume.intents.any_ended(number):
            return
        self._checkpointing = True
        mirrors = [session for session in volume.sessions.values() if session.mirroring]
        clear_there = [self._told_there(session) for session in mirrors]
        barrier = Barrier(
            {session.name for session in mirrors},
            Waiter.UPKEEP,
            lambda: self._room_durable(number, clear_there),
        )
        for session in mirrors:
            session.require_durable(barrier, settled=False)
        volume.syncs.request(barrier.local_done)

    def _told_there(self, session: Session) -> Callable[[], None]:
        seq = session.sent_seq

        def tell() -> None:
            # What waits for room on this disk is not durable here: it stays marked on both nodes.
            if session.settled and not self._volume.full:
                session.clear_intents_there(seq)

        return session.on_this_connection(tell)

    def _room_durable(self, number: int, clear_there: list[Callable[[], None]]) -> None:
        volume, intents = self._volume, self._volume.intents
        self._checkpointing = False
        if not volume.is_primary:
            return
        # What the first that waits needs; one that needs more than there is takes what is over.
        wanted = min(volume.writes.room.wanted, intents.limit)
        cleared = intents.make_room(number, min(intents.limit // 2, intents.limit - wanted))
        for clear in clear_there:
            clear()
        self._cleared(cleared, with_maps=True)

    def _cleared(self, extents: int, *, with_maps: bool) -> None:
        """So many intents were cleared in memory: there is room when they are on disk too."""
        volume, intents = self._volume, self._volume.intents
        intents.clearing += extents

        def stored() -> None:
            intents.clearing -= extents
            volume.writes.room_made()

        volume.commits.request(stored, with_maps=with_maps)

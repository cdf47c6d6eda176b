"""This node did not run for a while (stopped, suspended, starved): what it knew of others is old.

Meanwhile a member of its set may have given it up and been promoted by an operator's word. So a
primary that runs again answers nobody, reads included, before it has met each member anew: by the
answer to a ping of now, or by a handshake that began now. What lies in its buffers from before
proves nothing. It waits for a bounded time; then it goes on like any primary whose peer is out of
reach (G4). A node that is alone in its set and has answered somebody since waits for nobody:
whoever was promoted in its place lacks what it acknowledged, and only a person can choose. One that
has answered nobody yet can still give way; so can one whose generation is marked as answered while
the answer is still on its way: it takes the mark back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from repl.core.lineage import sole_and_answered
from repl.core.roles import Task

if TYPE_CHECKING:
    from repl.core.session import Session
    from repl.core.volume import Volume

_FREEZE = "absent"
#: Procedures that end with this node as primary.
_BECOMING = (Task.ASKING, Task.PROMOTING)
#: A busy machine or a slow disk explains a shorter absence, and one ping ends it: not worth a line.
LONG_S = 3.0


class Absence:
    """Whether this primary has to meet peers before it may answer."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._back_at_s = volume.now
        #: Peers not met since: the number of the ping whose answer will do on the connection that
        #: there was, or 0 where only a handshake will.
        self._unmet: dict[str, int] = {}
        #: It happened while this node was becoming primary; 0 if none did.
        self._away_before_s = 0.0

    @property
    def doubtful(self) -> bool:
        """Whether nothing may be answered, and nobody given up, for now."""
        return bool(self._unmet)

    @property
    def unmet(self) -> list[str]:
        """The names of the peers that are waited for."""
        return list(self._unmet)

    def ended(self, away_s: float) -> None:
        """This node runs again; the turn that begins is the first one for so long."""
        volume = self._volume
        for session in volume.sessions.values():
            # Its silence, or its lack of answers, was this node's own.
            session.live.excuse(away_s)
            session.progress.excuse(away_s)
        if volume.roles.task in _BECOMING and not volume.is_primary:
            self._away_before_s = max(self._away_before_s, away_s)
        self._doubt(away_s)

    def became_primary(self) -> None:
        """What gave leave to that may be from before an absence, and another's by now."""
        away_s, self._away_before_s = self._away_before_s, 0.0
        if away_s:
            self._doubt(away_s)

    def _doubt(self, away_s: float) -> None:
        volume = self._volume
        if volume.is_primary and not any(each.split for each in volume.sessions.values()):
            volume.writes.take_back_mark()
        to_meet = volume.member_sessions()
        if not to_meet and not sole_and_answered(volume.facts.lineage, volume.facts.node_id):
            to_meet = list(volume.sessions.values())
        if not volume.is_primary or not to_meet:
            return
        self._back_at_s = volume.now
        for session in to_meet:
            self._unmet[session.name] = session.ping() if session.connected else 0
        volume.freeze(_FREEZE)
        names = ", ".join(self._unmet)
        if away_s > LONG_S:
            text = f"this node did not run for {away_s:.1f} s: clients wait for word of {names}"
            volume.tell("NODE_WAS_ABSENT", text, away_s=round(away_s, 1))

    def answered(self, session: Session, number: int) -> None:
        """The peer has answered this connection's ping with this number."""
        wanted = self._unmet.get(session.name, 0)
        if wanted and number >= wanted:
            self._met(session)

    def shook_hands(self, session: Session) -> None:
        """A handshake with the peer was decided: it is known how both stand.

        On a connection of before the absence that may be old news, and the ping's answer counts.
        """
        if self._unmet.get(session.name) == 0:
            self._met(session)

    def _met(self, session: Session) -> None:
        del self._unmet[session.name]
        if not self._unmet:
            self._go_on()

    def connection_ended(self, session: Session) -> None:
        """What was asked on this connection will not be answered."""
        if session.name in self._unmet:
            self._unmet[session.name] = 0

    def tick(self) -> None:
        """Wait no longer than two nodes that can reach each other need to meet."""
        volume = self._volume
        if volume.writes.taking_back:
            # This node greets nobody before that is stored.
            self._back_at_s = volume.now
        if self._unmet and volume.now - self._back_at_s >= volume.timeouts.meeting_s:
            volume.note("warning", f"{', '.join(self._unmet)} cannot be reached: going on")
            self.forget()

    def forget(self) -> None:
        """The doubt ends, or this node is not primary any more."""
        if self._unmet:
            self._unmet.clear()
            self._go_on()

    def _go_on(self) -> None:
        self._volume.thaw(_FREEZE)
        self._volume.writes.answer_waiting()

"""No client begins before every request of a client that left is finished.

A client that lost its connection sends again, on a new one, what was not answered. If a request of
the abandoned connection took effect after that, it could undo what was written since. So whoever
lets a client begin asks here first: it waits until nobody who left can still act.

Left means: closed with requests in flight, half-closed with answers still due, or shown by the
socket to be gone while its last bytes are not read yet. A client that left but does not take its
answers is closed after `leave_s`, with what it had not been served yet dropped, so that it holds up
nobody; what is in flight in the backend is always waited for.

A client whose bytes fill all the room of its socket here may have left, too: its goodbye stands
behind them. It is looked at until there is room, or until it has shown by all that it sends that it
lives; for as long as nothing of it is read (the volume is frozen, say) it is waited for.

Not seen here: a goodbye that is still under way in the network. Everything here is the loop's
thread's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nbdserver.connection import Connection

#: How often a client that may hide its end is looked at, and how many looks in a row have to find
#: room in its socket: its goodbye comes at once then.
LOOK_S: Final = 0.05
LOOKS_WITH_ROOM: Final = 3


@dataclass(slots=True)
class _Look:
    """At one client that may hide its end."""

    received_bytes: int
    with_room: int = 0


class Succession:
    """The connections to one export. `gone` is called for each, once, when it can act no more."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        leave_s: float,
        gone: Callable[[Connection], None],
    ) -> None:
        #: Everybody who began or waits to, until he can act no more.
        self.connections: set[Connection] = set()
        self._loop = loop
        self._leave_s = leave_s
        self._gone = gone
        self._waiting: list[tuple[set[Connection], Callable[[], None]]] = []

    def begin(self, connection: Connection) -> None:
        """Start to serve `connection`, now or when those who left are finished."""
        connection.on_idle = self._ended
        self.when_clear(connection.start)
        self.connections.add(connection)

    def when_clear(self, then: Callable[[], None]) -> None:
        """Call `then` once nobody who has left by now can act any more; now if that is so."""
        hiding = {
            each: _Look(each.bytes_received)
            for each in self.connections
            if each.may_hide_its_end and not each.client_has_left
        }
        if hiding:
            self._look_later(hiding, self._loop.time() + self._leave_s, then)
        else:
            self._after_those_who_left(then)

    def _look_later(
        self, hiding: dict[Connection, _Look], until_s: float, then: Callable[[], None]
    ) -> None:
        self._loop.call_later(LOOK_S, self._look, hiding, until_s, then)

    def _look(
        self, hiding: dict[Connection, _Look], until_s: float, then: Callable[[], None]
    ) -> None:
        late = self._loop.time() > until_s
        for each, look in list(hiding.items()):
            look.with_room = 0 if each.may_hide_its_end else look.with_room + 1
            shown = each.client_has_left or look.with_room >= LOOKS_WITH_ROOM
            if shown or (late and each.bytes_received > look.received_bytes):
                del hiding[each]
        if hiding:
            self._look_later(hiding, until_s, then)
        else:
            self._after_those_who_left(then)

    def _after_those_who_left(self, then: Callable[[], None]) -> None:
        leaving = {each for each in self.connections if each.may_still_act and each.client_has_left}
        if not leaving:
            then()
            return
        self._waiting.append((leaving, then))
        self._loop.call_later(self._leave_s, self._hurry, leaving)

    async def clear(self) -> None:
        """Wait until nobody who has left by now can act any more."""
        done = self._loop.create_future()
        self.when_clear(lambda: None if done.done() else done.set_result(None))
        await done

    def _hurry(self, leaving: set[Connection]) -> None:
        """Those who had their time are closed; only what the backend works on is waited for."""
        for connection in list(leaving):
            connection.abandon("it left, and others wait", "leave_s")

    def _ended(self, connection: Connection) -> None:
        self.connections.discard(connection)
        ready = []
        for entry in list(self._waiting):
            leaving, then = entry
            leaving.discard(connection)
            if not leaving:
                self._waiting.remove(entry)
                ready.append(then)
        self._gone(connection)
        for then in ready:
            then()

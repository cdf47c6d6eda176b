"""No client begins before every request of a client that left is finished.

A client that lost its connection sends again, on a new one, what was not answered. If a request of
the abandoned connection took effect after that, it could undo what was written since. So whoever
lets a client begin asks here first: it waits until nobody who left can still act.

Left means: closed with requests in flight, half-closed with answers still due, or shown by the
socket to be gone while its last bytes are not read yet. A client that left but does not take its
answers is closed after `leave_s`, with what it had not been served yet dropped, so that it holds up
nobody; what is in flight in the backend is always waited for.

Not seen here: a client whose goodbye has not arrived yet. Everything here is the loop's thread's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from nbdserver.connection import Connection


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

"""A client that behaves, and whose every answer is checked while others misbehave."""

from __future__ import annotations

from tests.nbdserver.serving import ServerProcess
from tests.nbdserver.wire import RawClient, write

#: Where it writes; the tests leave that part alone.
LAST_MIB = 63 << 20


class Honest:
    """A client whose every answer is checked."""

    def __init__(self, server: ServerProcess) -> None:
        self.client = RawClient.to_unix(server.socket)
        self.client.go()
        self._round = 0

    def works(self) -> None:
        self._round += 1
        data = bytes([self._round % 256]) * 5000
        assert self.client.ask(write(LAST_MIB, data)) == 0
        assert self.client.ask_read(LAST_MIB, 5000) == data

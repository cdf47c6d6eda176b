"""One file as the only export of a server: who may connect, who is connected, how it ends.

Joins `Server`, `Connection` and `FileBackend`. A new client is agreed with only after the last
request of every connection that ended without its answers is finished, so that nothing of an old
connection can overwrite what the same client sends again on a new one.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence

from nbdserver.buffers import ByteBudget
from nbdserver.connection import Connection, State
from nbdserver.export import ExportInfo, Refusal
from nbdserver.file_backend import FileBackend
from nbdserver.protocol import Reply
from nbdserver.server import Server, ServerLimits

DRAIN_S = 10.0  # for clients to take their last replies


class FileService:
    """Serves `export` from `backend`; `server` is the front to add listeners to."""

    def __init__(
        self, export: ExportInfo, backend: FileBackend, limits: ServerLimits | None = None
    ) -> None:
        self.server = Server(self, self._begin, limits)
        self.connections: set[Connection] = set()
        self._export = export
        self._backend = backend
        self._budget = ByteBudget()
        self._changed = asyncio.Event()

    async def find(self, name: str) -> ExportInfo | Refusal:
        """The export, for its own name and for the empty one."""
        if name not in ("", self._export.name):
            return Refusal(
                Reply.ERR_UNKNOWN,
                f"no such export; the only one here is {self._export.name!a}",
            )
        await self._wait_until(
            lambda: all(each.state is not State.CLOSED for each in self.connections)
        )
        return self._export

    async def list(self) -> Sequence[tuple[str, str]]:
        """The one export."""
        return [(self._export.name, self._export.description)]

    async def drain(self) -> None:
        """Take no more clients, answer what was received, close everything and the file."""
        await self.server.stop()
        for connection in list(self.connections):
            connection.finish()
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._wait_until(lambda: not self.connections)
        except TimeoutError:
            for connection in list(self.connections):
                connection.abandon("it did not take its last replies")
            await self._wait_until(lambda: not self.connections)
        self._backend.close()

    def _begin(
        self, sock: socket.socket, export: ExportInfo, leftover: bytes, peer_name: str
    ) -> None:
        loop = asyncio.get_running_loop()
        connection = Connection(
            loop,
            sock,
            export,
            self._backend,
            leftover,
            peer_name=peer_name,
            budget=self._budget,
        )
        connection.on_idle = self._ended
        self.connections.add(connection)
        connection.start()

    def _ended(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.server.client_gone()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        """Until `holds()`, which only the end of a connection can change."""
        while not holds():
            await self._changed.wait()

"""Files as the exports of a server: who may connect, who is connected, how it ends.

Joins `Server`, `Connection` and one `FileBackend` for each export. GO is answered only after the
last request of every client that left is finished, so that nothing of an abandoned connection can
overwrite what the same client sends again on a new one (`succession.py`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from nbdserver.admission import Credentials, TlsMode, refusal
from nbdserver.buffers import ByteBudget
from nbdserver.connection import Connection
from nbdserver.counters import TransmissionCounters
from nbdserver.export import ExportInfo, Refusal
from nbdserver.file_backend import FileBackend
from nbdserver.handshake import Agreed
from nbdserver.limits import Limits
from nbdserver.protocol import Option, Reply
from nbdserver.server import Server
from nbdserver.succession import Succession
from nbdserver.tls import TlsServerFiles

DRAIN_S: Final = 10.0  # for clients to take their last replies


class _Exported:
    """One export, its file, and its clients."""

    def __init__(self, export: ExportInfo, backend: FileBackend, succession: Succession) -> None:
        self.export = export
        self.backend = backend
        self.succession = succession


class FileService:
    """Serves files; `server` is the front to add listeners to. Raises ValueError for equal names.

    A client that names no export gets the only one there is. `clients` are, by an export's name,
    the names of the certificates for which it is; for everybody's if there are none.
    """

    def __init__(
        self,
        exports: Sequence[tuple[ExportInfo, FileBackend]],
        limits: Limits | None = None,
        tls: TlsMode = TlsMode.OFF,
        tls_files: TlsServerFiles | None = None,
        clients: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._clients = clients or {}
        self.server = Server(self, self._begin, self._limits, tls, tls_files)
        self.counters = TransmissionCounters()
        self._budget = ByteBudget(self._limits.total_bytes)
        self._changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._exports: dict[str, _Exported] = {}
        for export, backend in exports:
            if export.name in self._exports:
                raise ValueError(f"two exports are called {export.name!r}")
            succession = Succession(loop, self._limits.leave_s, self._ended)
            self._exports[export.name] = _Exported(export, backend, succession)

    @property
    def connections(self) -> set[Connection]:
        """Everybody connected, and everybody whose last request is not finished."""
        each = (exported.succession.connections for exported in self._exports.values())
        return set().union(*each)

    async def find(self, name: str, option: Option, client: Credentials) -> ExportInfo | Refusal:
        """The export, once nobody who left it can act any more if the client is to begin."""
        exported = self._exports.get(name)
        if exported is None and not name and len(self._exports) == 1:
            (exported,) = self._exports.values()
        if exported is None:
            names = ", ".join(ascii(each) for each, _ in await self.list(client))
            return Refusal(Reply.ERR_UNKNOWN, f"no export {name!a} is here; there are: {names}")
        refused = refusal(client, self._clients.get(exported.export.name, ()))
        if refused is not None:
            return refused
        if option in (Option.GO, Option.EXPORT_NAME):
            await exported.succession.clear()
        return exported.export

    async def list(self, client: Credentials) -> Sequence[tuple[str, str]]:
        """All exports that are for this client."""
        exports = [exported.export for exported in self._exports.values()]
        return [
            (export.name, export.description)
            for export in exports
            if refusal(client, self._clients.get(export.name, ())) is None
        ]

    def totals(self) -> dict[str, dict[str, Any]]:
        """What happened since the start: counters and the present numbers of clients."""
        server = self.server
        return {
            "handshakes": dataclasses.asdict(server.counters),
            "transmission": dataclasses.asdict(self.counters.with_living(self._living())),
            "now": {
                "clients": server.clients,
                "handshakes": server.handshakes,
                "held": server.held,
                "bytes_held": self._budget.used_bytes,
            },
        }

    async def drain(self) -> None:
        """Take no more clients, answer what was received, close everything and the files."""
        await self.server.stop()
        for connection in self.connections:
            connection.finish()
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._wait_until(lambda: not self.connections)
        except TimeoutError:
            for connection in self.connections:
                connection.abandon("it did not take its last replies")
            await self._wait_until(lambda: not self.connections)
        for exported in self._exports.values():
            exported.backend.close()
        await self.server.end_tls()

    def _living(self) -> Iterable[Connection]:
        return (each for each in self.connections if not each.closed)

    def _begin(
        self, sock: socket.socket, agreed: Agreed, peer_name: str, wire: socket.socket | None
    ) -> None:
        exported = self._exports[agreed.export.name]
        connection = Connection(
            asyncio.get_running_loop(),
            sock,
            agreed.export,
            exported.backend,
            agreed.leftover,
            self._limits,
            peer_name,
            self._budget,
            agreed.terms,
            self.counters,
            wire,
        )
        exported.succession.begin(connection)

    def _ended(self, connection: Connection) -> None:
        self.server.client_gone()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _wait_until(self, holds: Callable[[], bool]) -> None:
        """Until `holds()`, which only the end of a connection can change."""
        while not holds():
            await self._changed.wait()

"""NBD negotiation: which volume a client gets, when, or why not; then its worker has the socket.

Owns the answers to GO, INFO, EXPORT_NAME and LIST. The haggling itself is `nbdserver`'s. It must
never answer an export of which the worker does not say that it is served, and never turn a restart
into an error: a client is refused for what an operator must change (it is secondary here), and
otherwise held until the worker has decided, or disconnected, upon which it connects again.

| The volume | GO |
|---|---|
| is served | granted |
| waits to resume its role after a restart | held |
| has a worker that is being restarted or hangs | held up to `WORKER_WAIT_S`, then disconnected |
| is secondary, or cannot be opened | refused with the reason; held by when_secondary = "hold" |
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from nbdserver import terms
from nbdserver.admission import Credentials, TlsMode, refusal
from nbdserver.export import ExportInfo, Refusal
from nbdserver.handshake import Agreed
from nbdserver.limits import Limits
from nbdserver.protocol import Option, Reply
from nbdserver.server import Server
from nbdserver.tls import TlsServerFiles
from repl.node.block_status import contexts_of
from repl.node.listeners import Listener
from repl.node.logs import logger
from repl.node.volume_status import VolumeObject
from repl.node.worker_process import WorkerProcess

#: For a worker that is not running to come back, before its client is disconnected.
WORKER_WAIT_S: Final = 10.0
#: A held client is looked at again this often even if nothing is heard of its volume.
HOLD_LOOK_S: Final = 5.0
#: What a client sends ahead of the answer goes to the worker within one message, as base64.
LEFTOVER_BYTES_MAX: Final = 64 << 10


class NbdFront:
    """Negotiates on the listeners given to `start` until `close`."""

    def __init__(
        self,
        node_name: str,
        workers: Mapping[str, WorkerProcess],
        *,
        hold_secondary: bool,
        limits: Limits | None = None,
        tls: TlsMode = TlsMode.OFF,
        tls_files: TlsServerFiles | None = None,
        clients: Mapping[str, Sequence[str]] | None = None,
        proxy_lost: Callable[[str], None] | None = None,
    ) -> None:
        """`clients` are, by volume, the names of the certificates that it is for; all if none.
        `proxy_lost` is told, in a sentence, of a TLS process that ends by itself."""
        self._clients = clients or {}
        self._node_name = node_name
        self._workers = workers
        self._hold_secondary = hold_secondary
        self._limits = limits or Limits()
        waiting_bytes = min(self._limits.waiting_bytes, LEFTOVER_BYTES_MAX)
        self._server = Server(
            self,
            self._agreed,
            dataclasses.replace(self._limits, waiting_bytes=waiting_bytes),
            tls,
            tls_files,
            proxy_lost,
        )
        self._log = logger("nbd")

    def start(self, listeners: Sequence[Listener]) -> None:
        """Accept clients."""
        for listener in listeners:
            self._server.adopt(listener.sock)

    async def close(self) -> None:
        """Stop accepting, disconnect whoever still negotiates. Clients of workers live on."""
        await self._server.stop()

    async def end_tls(self) -> None:
        """End the TLS proxies; to be called once the workers have disconnected their clients."""
        await self._server.end_tls()

    def totals(self) -> dict[str, Any]:
        """Counters of negotiations since the start, and how many go on now."""
        return dataclasses.asdict(self._server.counters) | {
            "handshakes": self._server.handshakes,
            "held": self._server.held,
            "tls_proxies": len(self._server.tls_proxy_pids),
        }

    # What `nbdserver.server.Lookup` asks.

    async def find(self, name: str, option: Option, client: Credentials) -> ExportInfo | Refusal:
        """Return the export or the refusal, once it is known which. Raises TimeoutError."""
        worker = self._worker(name)
        if worker is None:
            return Refusal(
                Reply.ERR_UNKNOWN, f"{self._node_name} has no volume {name or 'as its default'}"
            )
        refused = refusal(client, self._clients.get(worker.name, ()))
        if refused is not None:
            return refused
        waits_left_s = WORKER_WAIT_S
        while True:
            if worker.answers:
                waits_left_s = WORKER_WAIT_S
                answer = self._answer(worker, begins=option in (Option.GO, Option.EXPORT_NAME))
                if answer is not None:
                    return answer
                await worker.changed(HOLD_LOOK_S)
            else:
                if waits_left_s <= 0:
                    raise TimeoutError(f"the worker of {worker.name} is not up")
                waits_left_s -= await worker.changed(waits_left_s)

    async def list(self, client: Credentials) -> Sequence[tuple[str, str]]:
        """Return the name of each volume that is for this client, and what a person wants to know
        before choosing it."""
        return [
            (name, self._description(worker.last_volume()))
            for name, worker in self._workers.items()
            if refusal(client, self._clients.get(name, ())) is None
        ]

    def _worker(self, name: str) -> WorkerProcess | None:
        if not name and len(self._workers) == 1:
            return next(iter(self._workers.values()))
        return self._workers.get(name)

    def _answer(self, worker: WorkerProcess, *, begins: bool) -> ExportInfo | Refusal | None:
        """Decide by the last status; None means that the client is held."""
        volume = worker.last_volume()
        export = volume["export"]
        if begins and export["serving"] and volume["clients"] >= self._limits.clients:
            self._server.counters.turned_away("clients")
            message = f"{volume['clients']} clients are attached to {worker.name}, the limit"
            return Refusal(Reply.ERR_POLICY, message)
        if export["serving"]:
            return ExportInfo(
                name=worker.name,
                size_bytes=volume["size_bytes"],
                read_only=bool(export.get("read_only", False)),
                can_multi_conn=bool(export.get("can_multi_conn", False)),
                description=self._description(volume),
                can_fast_zero=True,
                contexts=contexts_of(peer["name"] for peer in volume["peers"]),
            )
        if export.get("pending") or self._hold_secondary:
            return None
        return Refusal(Reply.ERR_POLICY, self._description(volume))

    def _description(self, volume: VolumeObject) -> str:
        """Say in one line what the volume is here, and where else to look."""
        name, export, problem = volume["name"], volume["export"], volume["problem"]
        if problem is not None:
            return f"{name} is not available on {self._node_name}: {problem['what']}"
        if export["serving"]:
            return f"{name} is primary on {self._node_name}"
        if export.get("pending"):
            return f"{name} is about to resume its role on {self._node_name}: {export['reason']}"
        primary = export["primary"]
        here = f"{name} is {volume['role']} on {self._node_name}"
        if primary is None or primary == self._node_name:
            reason = export["reason"]
            return f"{here}; {'no node is known to be primary' if reason == here else reason}"
        return f"{here}; its primary is {primary}"

    # After agreement.

    def _agreed(
        self, sock: socket.socket, agreed: Agreed, client: str, wire: socket.socket | None
    ) -> None:
        # From here on the worker counts and limits its clients.
        self._server.client_gone()
        message = {
            "kind": "client",
            "peer_name": client,
            "leftover": base64.b64encode(agreed.leftover).decode(),
            "agreed": terms.to_json(agreed.export, agreed.terms),
        }
        name = agreed.export.name
        with sock, wire or contextlib.nullcontext():
            sockets = [sock] if wire is None else [sock, wire]
            if not self._workers[name].pass_socket(message, *sockets):
                self._log.warning(
                    "Disconnected a client: the worker takes none at the moment.",
                    volume=name,
                    client=client,
                )

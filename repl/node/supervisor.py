"""The daemon as a whole: what it owns, the order in which it starts, and the reverse on stop.

Owns the state directory's lock, the listeners, the workers, the fronts and the control server,
and is the control API's backend. It must never wait for one volume on behalf of another, and it
holds no state of a volume: whatever a worker knows is asked of the worker.

Start: lock, listeners (so that a busy address stops the daemon before anything runs), workers,
control, fronts. Stop: fronts, all workers in parallel, control, listeners, lock.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import repl
from nbdserver.admission import TlsMode
from nbdserver.tls import TlsServerFiles
from repl import build
from repl.addresses import Address
from repl.config import Config, VolumeSettings
from repl.control.events import EventStreams
from repl.control.server import ControlServer
from repl.errors import NoSuchThing
from repl.events import SEVERITIES, event
from repl.node.channel import Message
from repl.node.event_file import EventFile
from repl.node.event_ring import EVENTS_MAX, EventRing
from repl.node.listeners import Listener, listen_tcp, listen_unix
from repl.node.logs import log_event, logger
from repl.node.nbd_front import NbdFront
from repl.node.peer_front import PeerFront
from repl.node.state_dir import StateDirLock
from repl.node.volume_status import unknown_volume
from repl.node.worker_process import WORKER_COMMAND, WorkerProcess, WorkerTimes

CONTROL_MODE: Final = 0o600
#: NBD clients such as qemu run as other users; the group of the daemon may connect.
NBD_MODE: Final = 0o660
#: Orders that outlive the worker they were given to, though not this daemon.
PACE_VERBS: Final = frozenset({"resync-pause", "resync-resume", "resync-limit"})


class Supervisor:
    """One node's daemon, from `start` to `stop`. Implements `repl.control.schema.Backend`."""

    def __init__(
        self,
        config: Config,
        *,
        worker_command: Sequence[str] = WORKER_COMMAND,
        worker_times: WorkerTimes | None = None,
    ) -> None:
        self._config = config
        times = worker_times or WorkerTimes(silent_s=config.timeouts.worker_timeout_s)
        self.workers: dict[str, WorkerProcess] = {
            name: WorkerProcess(
                worker_settings(config, volume),
                unknown_volume(name, volume.size_bytes, volume.peers),
                command=worker_command,
                times=times,
                on_event=partial(self._said, name),
            )
            for name, volume in config.volumes.items()
        }
        self._nbd_front: NbdFront | None = None
        self._streams: EventStreams | None = None
        self._event_file = EventFile(config.node.state_dir)
        self.events = EventRing(keep=self._event_file.keep)
        self._up = False
        self._started_s = time.monotonic()
        self._stack = AsyncExitStack()
        self._log = logger("node").bind(node=config.node.name)

    async def start(self) -> None:
        """Start everything. Raises ReplError, with nothing left running or changed."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        self._up = True
        self._tell(
            "DAEMON_STARTED",
            "The node is up.",
            volumes=len(self.workers),
            version=repl.__version__,
            build=build.kind(),
        )

    async def stop(self) -> None:
        """Stop all volumes cleanly, in parallel, then everything else. Bounded. Idempotent."""
        await self._stack.aclose()

    async def _start(self) -> None:
        node, nbd = self._config.node, self._config.nbd
        self._stack.callback(StateDirLock(node.state_dir).close)
        self.events.resume(*self._event_file.load(EVENTS_MAX))
        self._event_file.start()
        self._stack.callback(self._event_file.close)
        self._stack.callback(self._tell_end)
        control = self._own(listen_unix(node.control, CONTROL_MODE, "[node] control"))
        nbd_listeners = []
        if nbd.socket is not None:
            nbd_listeners.append(self._own(listen_unix(nbd.socket, NBD_MODE, "[nbd] socket")))
        if nbd.listen is not None:
            nbd_listeners.append(self._listen_tcp(nbd.listen, "[nbd] listen"))
        peers = self._listen_tcp(node.listen, "[node] listen") if node.listen is not None else None
        metrics = (
            self._listen_tcp(node.metrics, "[node] metrics") if node.metrics is not None else None
        )

        control_server = ControlServer(control.sock, self, self.events)
        self._streams = control_server.streams
        self._stack.push_async_callback(control_server.close)
        await control_server.start()
        if metrics is not None:
            await self._serve_metrics(metrics)
        self._nbd_front = self._make_nbd_front()
        # After the workers: until then its clients' last answers pass through the TLS proxies.
        self._stack.push_async_callback(self._nbd_front.end_tls)
        self._stack.push_async_callback(self._stop_workers)
        for worker in self.workers.values():
            worker.start()
        if peers is not None:
            self._accept_peers(peers)
        self._nbd_front.start(nbd_listeners)
        self._stack.push_async_callback(self._nbd_front.close)

    def _make_nbd_front(self) -> NbdFront:
        config = self._config
        nbd = config.nbd
        files = None
        if nbd.tls is not TlsMode.OFF:
            assert config.tls is not None, "the configuration demands a [tls] table"
            authority = config.tls.authority if nbd.tls_verify_clients else ""
            files = TlsServerFiles(config.tls.certificate, config.tls.key, authority)
        return NbdFront(
            config.node.name,
            self.workers,
            hold_secondary=nbd.when_secondary == "hold",
            limits=nbd.limits,
            tls=nbd.tls,
            tls_files=files,
            clients={name: volume.clients for name, volume in config.volumes.items()},
            proxy_lost=partial(self._tell, "TLS_PROXY_ENDED"),
        )

    def _own(self, listener: Listener) -> Listener:
        self._stack.callback(listener.close)
        return listener

    def _listen_tcp(self, address: Address, setting: str) -> Listener:
        return self._own(listen_tcp(address.host, address.port, setting))

    def _accept_peers(self, listener: Listener) -> None:
        front = PeerFront(
            listener,
            self._config.node.name,
            self._config.node.insecure,
            self._config.tls is not None,
            {name: volume.peers for name, volume in self._config.volumes.items()},
            self.workers,
        )
        self._stack.push_async_callback(front.close)
        front.start()

    async def _serve_metrics(self, listener: Listener) -> None:
        # Loaded only where it is used: it costs a tenth of a second.
        from repl.control.metrics import MetricsServer

        server = MetricsServer(listener.sock, self)
        self._stack.push_async_callback(server.close)
        await server.start()

    async def _stop_workers(self) -> None:
        await asyncio.gather(*(worker.stop() for worker in self.workers.values()))

    # Events.

    def _tell_end(self) -> None:
        """The last event of this daemon: whoever reads the file knows that no later one is lost."""
        if self._up:
            self._up = False
            self._tell("DAEMON_STOPPED", "The node has stopped.")

    def _tell(self, code: str, text: str, **fields: Any) -> None:
        self._said("", event(code, text, fields)._asdict())

    def _said(self, volume: str, said: dict[str, Any]) -> None:
        """Take up what a worker, or this process, says: into the ring if it has a code, and into
        the log unless it is one of too many."""
        code = said.get("code", "")
        taken = not code or self.events.add(
            code,
            str(said.get("level", "")),
            str(said.get("text", "")),
            said.get("fields") or {},
            volume=volume,
            time_s=said.get("time_s"),
        )
        if not taken:
            return
        log = self._log if not volume else logger("volume").bind(volume=volume)
        log_event(log, said)

    # The control API's backend.

    async def status(self) -> Message:
        volumes = await asyncio.gather(*(worker.ask_volume() for worker in self.workers.values()))
        return self._status_of(list(volumes))

    def last_status(self) -> Message:
        return self._status_of([worker.last_volume() for worker in self.workers.values()])

    async def volume(self, name: str) -> Message:
        return await self._worker(name).ask_volume()

    async def request(self, name: str, verb: str, args: Message, timeout_s: float) -> Message:
        worker = self._worker(name)
        for key in ("peer", "peer_dead", "keep", "source"):
            # Of the nodes whose copy can be kept, this one needs no looking up.
            if key not in ("keep", "source") or args.get(key) != self._config.node.name:
                self._check_peer(self._config.volumes[name], args.get(key))
        result = await worker.request(verb, args, timeout_s)
        if verb in PACE_VERBS:
            # A worker that is started again holds its copies back as this one does.
            worker.remember("resync_order", result["volume"]["resync_order"])
        if verb in ("connect", "disconnect"):
            worker.remember("cut_by", result["volume"]["cut_by"])
        # Who was told "promoted" may send an NBD client at once; it must not be judged by a status
        # from before.
        await worker.ask_volume()
        return result

    def _status_of(self, volumes: list[Message]) -> Message:
        return {
            "node": self._config.node.name,
            "version": repl.__version__,
            "build": build.kind(),
            "nbd": {
                "socket": self._config.nbd.socket,
                "listen": None if self._config.nbd.listen is None else str(self._config.nbd.listen),
                "tls": self._config.nbd.tls.value,
            }
            | (self._nbd_front.totals() if self._nbd_front is not None else {}),
            "uptime_s": round(time.monotonic() - self._started_s, 1),
            "events": self._event_counts(),
            "volumes": volumes,
        }

    def _event_counts(self) -> Message:
        by_severity = dict.fromkeys(SEVERITIES, 0)
        for (_volume, severity), count in self.events.told.items():
            if severity in by_severity:
                by_severity[severity] += count
        streams = self._streams
        return {
            "last_number": self.events.last_number,
            **by_severity,
            "suppressed": self.events.suppressed,
            "unstored": self._event_file.lost,
            "followers": streams.followers if streams is not None else 0,
            "followers_dropped": streams.dropped if streams is not None else 0,
        }

    def _worker(self, name: str) -> WorkerProcess:
        worker = self.workers.get(name)
        if worker is None:
            raise NoSuchThing(
                f"there is no volume {name} on {self._config.node.name}",
                f"its configuration has: {', '.join(self.workers) or 'no volume'}",
                "replctl status",
            )
        return worker

    def _check_peer(self, volume: VolumeSettings, peer: str | None) -> None:
        if peer is not None and peer not in volume.peers:
            raise NoSuchThing(
                f"{volume.name} has no peer {peer}",
                f"its peers are: {', '.join(volume.peers) or 'none'}",
                f"replctl status {volume.name}",
                code="NO_SUCH_PEER",
            )


def worker_settings(config: Config, volume: VolumeSettings) -> dict[str, Any]:
    """Return the first message to a volume's worker."""
    peer = config.peers[volume.peers[0]] if volume.peers else None
    return {
        "kind": "settings",
        "node": config.node.name,
        "volume": {
            "name": volume.name,
            "size_bytes": volume.size_bytes,
            "backing": volume.backing,
            "preallocate": volume.preallocate,
            "alone": volume.alone,
            "resync_rate_bytes_max": volume.resync_rate_bytes_max,
        },
        "state_dir": config.node.state_dir,
        "peer": None
        if peer is None
        else {
            "name": peer.name,
            "addresses": [str(address) for address in peer.addresses],
            "fingerprint": peer.fingerprint,
        },
        "tls": None if config.tls is None else dataclasses.asdict(config.tls),
        "listen_peer_port": config.node.listen.port if config.node.listen is not None else None,
        "insecure": config.node.insecure,
        "timeouts": dataclasses.asdict(config.timeouts),
        "when_secondary": config.nbd.when_secondary,
        "nbd_limits": dataclasses.asdict(config.nbd.limits),
    }

"""One volume inside its worker: store, core, engine, dialer and clients, from opening to closing.

Carries out what operators ask and says what the volume is. A volume that cannot be opened stays
here too, with its problem, so that status shows it and `adopt` can mend it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from repl.core.pacing import Wish
from repl.core.permits import AskOperator, Manual
from repl.core.snapshot import volume_snapshot
from repl.core.timeouts import Timeouts
from repl.core.verdict import Verdict, operator
from repl.core.volume import Volume
from repl.errors import Refused, ReplError
from repl.events import Note, event
from repl.link.connection import PeerConnection
from repl.link.dialer import Dialer
from repl.link.preamble import Preamble
from repl.link.tls import TlsSocket
from repl.node import copy_orders, orders
from repl.node.client_tally import ClientTally
from repl.node.clock import boot_id, volume_now_s
from repl.node.closed_status import closed_status
from repl.node.copy_orders import COPY_ORDERS
from repl.node.engine import Engine
from repl.node.orders import ORDERS
from repl.node.peer_tls import PeerTls
from repl.node.volume_clients import Arrived, VolumeClients
from repl.store.open import Store, adopt_store, open_store
from repl.store.space import space_of
from repl.store.stamp import BackingKind

#: A clean stop hands over within this time, or without.
LEAVE_TIMEOUT_S = 6.0

Settings = dict[str, Any]


class ServedVolume:
    """The volume that a worker process exists for."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        *,
        on_change: Callable[[], None],
        on_event: Callable[[Note], None],
        on_fatal: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._on_change = on_change
        self._on_event = on_event
        self._on_fatal = on_fatal
        self.name: str = settings["volume"]["name"]
        self._node: str = settings["node"]
        self._peer: dict[str, Any] | None = settings["peer"]
        self._tls = (
            PeerTls(loop, settings, self._secured, self._refused)
            if self._peer is not None and settings.get("tls") is not None
            else None
        )
        self._store: Store | None = None
        self._engine: Engine | None = None
        self._dialer: Dialer | None = None
        self._problem: ReplError | None = None
        #: Who cut the volume from its peer, in words; empty while it may connect.
        self._cut_by: str = settings["volume"].get("cut_by", "")
        self._link_failure = ""
        self._link_said = ""
        self._stopping = False
        self._clients = VolumeClients(loop, settings.get("nbd_limits", {}))
        self._tally = ClientTally(
            lambda text, fields: self._tell("CLIENTS_CHANGED", text, **fields)
        )

    # Opening and closing.

    def open(self) -> None:
        """Open the store and start the engine, or keep the problem."""
        volume = self._settings["volume"]
        try:
            store = open_store(
                self._settings["state_dir"],
                self.name,
                volume["size_bytes"],
                volume["backing"],
                self._peer_names(),
                random_id,
            )
        except ReplError as problem:
            self._problem = problem
            text = f"{problem.what}: {problem.why}"
            self._tell("VOLUME_NOT_OPENED", text, error=problem.code)
            self._on_change()
            return
        self._serve(store)

    def _peer_names(self) -> tuple[str, ...]:
        return (self._peer["name"],) if self._peer is not None else ()

    def _serve(self, store: Store) -> None:
        self._problem = None
        self._store = store
        for report in store.reports:
            self._tell("METADATA_DAMAGED", report)
        if self._settings["volume"].get("preallocate"):
            self._reserve_space(store)
        # Only configured peers take part; records of others stay in the facts.
        for name in set(store.maps.dirty) - set(self._peer_names()):
            del store.maps.dirty[name]
        timeouts = self._settings["timeouts"]
        core = Volume(
            self.name,
            self._node,
            store.facts,
            store.maps,
            boot_id=boot_id(),
            random_id=random_id,
            now_s=volume_now_s(),
            wall_clock_s=int(time.time()),
            timeouts=Timeouts(
                peer_timeout_s=timeouts["peer_timeout_s"],
                reconnect_grace_s=timeouts["reconnect_grace_s"],
                ping_interval_s=timeouts["ping_interval_s"],
                meeting_s=timeouts["connect_timeout_s"] + timeouts["reconnect_backoff_max_s"],
            ),
            wish=self._wish(),
            provider=AskOperator() if self._settings["volume"].get("alone") == "ask" else Manual(),
        )
        self._engine = Engine(
            self._loop,
            core,
            store,
            on_note=self._on_event,
            on_change=self._changed,
            on_lost=self._peer_lost,
            on_fatal=self._on_fatal,
            limits=self._clients.limits,
        )
        self._engine.start()
        self._start_link()
        self._on_change()

    def _wish(self) -> Wish:
        """How copies are held back: what an operator ordered, else what the configuration says."""
        volume = self._settings["volume"]
        ordered = volume.get("resync_order")
        if ordered is None:
            return Wish(rate_bytes_per_s=volume.get("resync_rate_bytes_max", 0))
        rate, since_s = ordered["rate_limit_bytes_per_s"], ordered["since_s"] or 0
        return Wish(ordered["paused"], rate, ordered["by"], since_s)

    def _reserve_space(self, store: Store) -> None:
        """`preallocate`: what cannot be reserved is said, and the volume is served all the same."""
        backing = store.backing
        try:
            reserved = backing.reserve(0, backing.size_bytes)
        except OSError as error:
            self._tell("SPACE_NOT_RESERVED", f"preallocate: {backing.path}: {error.strerror}")
            return
        backing.keeps_space = reserved
        if not reserved and backing.kind is BackingKind.FILE:
            self._tell("SPACE_NOT_RESERVED", f"preallocate: {backing.path}: not possible there")

    async def stop(self) -> None:
        """A clean stop: hand over, sync, say in the metadata that the close was clean."""
        self._stopping = True
        if self._dialer is not None:
            self._dialer.stop()
        engine = self._engine
        if engine is None:
            return
        left: asyncio.Future[Verdict] = self._loop.create_future()
        engine.leave(lambda verdict: _settle(left, verdict))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(left, LEAVE_TIMEOUT_S)
        engine.abandon_clients()
        for name in self._peer_names():
            engine.drop_peer(name, "this node is stopping")
        closed: asyncio.Future[None] = self._loop.create_future()
        engine.last_commit(lambda: _settle(closed, None))
        await closed
        self._close_engine()

    def _close_engine(self) -> None:
        if self._tls is not None:
            self._tls.close()
        if self._dialer is not None:
            self._dialer.stop()
            self._dialer = None
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._store is not None:
            self._store.close()
            self._store = None

    # The link to the peer.

    @property
    def _dials(self) -> bool:
        return self._peer is not None and self._node < str(self._peer["name"])

    def _start_link(self) -> None:
        if self._peer is None or not self._dials:
            return
        timeouts = self._settings["timeouts"]
        self._dialer = Dialer(
            self._loop,
            Preamble(self.name, self._node, self._peer["name"], self._tls is not None),
            [_host_port(address) for address in self._peer["addresses"]],
            self._dialled,
            self._dial_failed,
            connect_timeout_s=timeouts["connect_timeout_s"],
            backoff_max_s=timeouts["reconnect_backoff_max_s"],
            encrypt=None if self._tls is None else self._tls.encrypt,
        )
        if not self._cut_by:
            self._dialer.start()

    def _dialled(self, sock: socket.socket | TlsSocket) -> None:
        self._link_failure = ""
        self._attach_peer(sock)

    def _dial_failed(self, reason: str) -> None:
        self._link_failure = reason
        if reason != self._link_said:
            # Said once, not at every attempt of an endless series.
            self._link_said = reason
            assert self._peer is not None
            self._tell("PEER_UNREACHABLE", reason, peer=str(self._peer["name"]))

    def take_peer(self, sock: socket.socket) -> None:
        """An accepted peer connection whose preamble was checked by the supervisor."""
        if self._engine is None or self._cut_by or self._stopping or self._dials:
            sock.close()
        elif self._tls is not None:
            self._tls.take(sock)
        else:
            self._attach_peer(sock)

    def _secured(self, sock: TlsSocket) -> None:
        """An accepted connection has shown that it is the peer's."""
        if self._engine is None or self._cut_by or self._stopping:
            sock.close()
        else:
            self._attach_peer(sock)

    def _refused(self, reason: str) -> None:
        self._dial_failed(f"a peer's connection was refused: {reason}")

    def _attach_peer(self, sock: socket.socket | TlsSocket) -> None:
        assert self._peer is not None and self._engine is not None
        self._link_said = ""
        engine, name = self._engine, str(self._peer["name"])
        peer = PeerConnection(
            self._loop,
            sock,
            partial(engine.frames_received, name),
            partial(engine.peer_lost, name),
            self._settings["timeouts"]["peer_timeout_s"],
        )
        engine.add_peer(name, peer)
        self._on_change()

    def _changed(self) -> None:
        sessions = self._engine.volume.sessions.values() if self._engine is not None else ()
        if self._dialer is not None and any(session.settled for session in sessions):
            self._dialer.established()
        self._on_change()

    def _peer_lost(self, _name: str, reason: str) -> None:
        self._link_failure = reason
        if self._dialer is not None and not self._cut_by and not self._stopping:
            self._dialer.lost()
        self._on_change()

    # Clients.

    def take_client(self, client: Arrived) -> None:
        """An NBD client that was negotiated for this volume."""
        engine = self._engine
        if engine is None or self._stopping:
            client.close()
            return
        connection = self._clients.connection(client, engine, engine.clients)
        if connection is None:
            text = f"{client.peer_name}: refused, {len(engine.clients)} clients attached"
            self._tell("CLIENT_REFUSED", text, client=client.peer_name)
            return
        if engine.volume.serving:
            self._tally.attached()
        engine.add_client(connection)

    # Operators.

    async def request(self, verb: str, args: dict[str, Any]) -> dict[str, Any]:
        """Carry out a verb; raise `ReplError` with the refusal."""
        if verb == "status":
            return self.status()
        if verb == "adopt":
            return await self._adopt(bool(args.get("discard")), orders.giver(args))
        engine = self._engine
        if engine is None:
            assert self._problem is not None
            raise self._problem
        if verb in ORDERS or verb in COPY_ORDERS:
            if verb == "splitbrain-resolve":
                keep, by = str(args.get("keep")), orders.giver(args)
                text = f"{operator(by)} ordered that the copy on {keep} be kept"
                self._tell("RESOLVE_ORDERED", text, keep=keep, by=by)
            args = {**args, "cut_by": self._cut_by}
            verdict = await (ORDERS.get(verb) or COPY_ORDERS[verb])(engine, args)
            return {"reason": verdict.reason, "volume": self.status()}
        if verb == "resync-full":
            return await self._compare(engine, args)
        if verb == "splitbrain":
            return orders.split_brain(engine.volume, self._cut_by)
        if verb in ("connect", "disconnect"):
            return self._switch_link(engine, verb == "connect", orders.giver(args))
        assert verb == "metadata-dump", verb
        return self._dump()

    async def _compare(self, engine: Engine, args: dict[str, Any]) -> dict[str, Any]:
        ordered = await copy_orders.compare(engine, args)
        if isinstance(ordered, Verdict):
            return {"reason": ordered.reason, "volume": self.status()}
        source, by = str(args["source"]), orders.giver(args)
        text = f"the copy on {self._node} becomes a new one, and is compared with {source}'s"
        self._tell("FULL_COMPARISON_ORDERED", text, peer=source, by=by)
        self._reopen(discard=True)
        return {"reason": text, "volume": self.status()}

    def _switch_link(self, engine: Engine, enabled: bool, by: str) -> dict[str, Any]:
        if enabled == bool(self._cut_by):
            code = "PEER_ENABLED" if enabled else "PEER_DISABLED"
            did = f"lets {self._node}" if enabled else f"forbids {self._node} to"
            self._tell(code, f"{operator(by)} {did} connect to its peer", by=by)
            self._cut_by = "" if enabled else operator(by)
        if not enabled:
            if self._dialer is not None:
                self._dialer.stop()
            for name in self._peer_names():
                engine.drop_peer(name, "an operator disconnected it")
        elif self._dialer is not None and not self._connected(engine):
            self._dialer.start()
        return {"volume": self.status()}

    def _connected(self, engine: Engine) -> bool:
        return any(session.connected for session in engine.volume.sessions.values())

    async def _adopt(self, discard: bool, by: str) -> dict[str, Any]:
        engine = self._engine
        if engine is not None and engine.volume.is_primary and discard:
            raise Refused(
                f"Cannot discard the copy of {self.name} on {self._node}: it is primary.",
                "a primary's copy is the one in use",
                f"replctl demote {self.name}",
                code="ADOPT_PRIMARY",
            )
        if engine is not None and discard and orders.may_be_last_copy(engine.volume):
            raise Refused(
                f"Cannot discard the copy of {self.name} on {self._node}.",
                "it may be the only complete one: no connected peer has all of its data",
                f"connect the peer and wait: replctl wait {self.name} --for in-sync",
                code="ADOPT_LAST_COPY",
            )
        if discard or engine is None:
            self._reopen(discard=discard)
            engine = self._engine
        assert engine is not None
        if not discard:
            await orders.adopt(engine)
        code, did = ("COPY_DISCARDED", "gave up") if discard else ("COPY_ADOPTED", "adopted")
        self._tell(code, f"{operator(by)} {did} the copy on {self._node}", by=by)
        return {"volume": self.status()}

    def _reopen(self, *, discard: bool) -> None:
        self._close_engine()
        volume = self._settings["volume"]
        try:
            store = adopt_store(
                self._settings["state_dir"],
                self.name,
                volume["size_bytes"],
                volume["backing"],
                self._peer_names(),
                random_id,
                discard=discard,
            )
        except ReplError:
            # Go on with whatever is there now: as before, or closed with the problem that it shows.
            self.open()
            raise
        self._serve(store)

    def _dump(self) -> dict[str, Any]:
        from repl.store.dump import dump_json, dump_text

        state_dir = self._settings["state_dir"]
        return {
            "text": dump_text(state_dir, self.name),
            "metadata": dump_json(state_dir, self.name),
        }

    # Events and status.

    def look(self) -> None:
        """Called now and then: tell what is told in sums."""
        names = self._engine.client_names if self._engine is not None else []
        self._tally.look(names, time.monotonic())

    def _tell(self, code: str, text: str, **fields: Any) -> None:
        self._on_event(event(code, text, fields))

    def status(self) -> dict[str, Any]:
        """The volume's object of design §11, with added fields."""
        if self._engine is None:
            return closed_status(self._settings, self._problem, self._peer_names())
        core = self._engine.volume
        snapshot = volume_snapshot(core, self._cut_by)
        space = space_of(self._store.backing) if self._store is not None else None
        primary = self._node if core.is_primary else None
        for peer in snapshot["peers"]:
            if peer["role"] == "primary":
                primary = peer["name"]
            if peer["connection_state"] == "disconnected":
                peer["last_failure"] = self._link_failure
                peer["enabled"] = not self._cut_by
                if not self._cut_by and self._dials:
                    peer["connection_state"] = "connecting"
        return snapshot | {
            "clients": len(self._engine.client_names),
            "client_names": self._engine.client_names[:32],
            "export": {
                "serving": core.serving and not self._stopping,
                "pending": core.roles.resume_pending,
                "reason": snapshot["why"] or f"{self.name} is {core.role_text} on {self._node}",
                "primary": primary,
                "read_only": False,
                # All connections of a volume meet in this one process and its one backing.
                "can_multi_conn": True,
            },
            "problem": None,
            "space": None if space is None else space.to_json(),
            "worker_pid": os.getpid(),
            "slow_turns": self._engine.slow_turns,
            "nbd": self._clients.totals(self._engine.clients),
        }


def random_id() -> int:
    """A random number from 1 to 2**63 - 1."""
    return secrets.randbits(63) or 1


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)

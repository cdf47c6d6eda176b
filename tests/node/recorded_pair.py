"""Two real engines in this process, joined by a socket, with every step towards a disk recorded.

`os.pwrite`, `os.pwritev` and `os.fdatasync` are replaced while it runs; frames and replies are
noted when they are handed to their connection, which is before they leave.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from nbdserver.connection import Connection
from nbdserver.export import ExportInfo
from repl.core import wire
from repl.core.promotion import PromoteRequest
from repl.core.verdict import Verdict
from repl.core.volume import Volume
from repl.link.connection import PeerConnection
from repl.node.engine import Engine
from repl.store.metafile import metadata_path
from repl.store.open import Store, open_store
from tests.node.power_cuts import (
    BLOCK_BYTES,
    Asked,
    Begun,
    Event,
    FrameSent,
    MetaSynced,
    MetaWritten,
    Recording,
    Replied,
    SyncBegun,
    SyncEnded,
    Written,
)

VOLUME = "r0"
SIZE_BYTES = 8 << 20
NODES = ("alpha", "beta")
PEER_TIMEOUT_S = 5.0
DEADLINE_S = 60.0
POLL_S = 0.01

_STAMP = struct.Struct(">QQ")
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_REQUEST_MAGIC = 0x25609513
_WRITE, _FLUSH, _FUA = 1, 3, 1


def block_content(block: int, version: int) -> bytes:
    return _STAMP.pack(block, version) * (BLOCK_BYTES // _STAMP.size)


def _versions(data: bytes, offset: int) -> tuple[tuple[int, int], ...]:
    """Return (block, version) of each block of a write, those of zeroes left out."""
    found = []
    for start in range(0, len(data), BLOCK_BYTES):
        block, version = _STAMP.unpack_from(data, start)
        if version:
            assert block == (offset + start) // BLOCK_BYTES
            found.append((block, version))
    return tuple(found)


def _site(frame: FrameType) -> str:
    """Where in the store or the engine a sync was asked for: below the wrappers of fdatasync."""
    while frame.f_code.co_name == "sync" and frame.f_back is not None:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}:{frame.f_lineno}"


class Tape:
    """The events in their order, from all threads; and the system calls that make them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        #: (device, inode) → node, and whether it is the metadata.
        self._files: dict[tuple[int, int], tuple[str, bool]] = {}
        self._pwrite, self._pwritev, self._fdatasync = os.pwrite, os.pwritev, os.fdatasync

    def note(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)

    def watch(self, path: str, node: str, *, metadata: bool) -> None:
        known = os.stat(path)
        self._files[known.st_dev, known.st_ino] = (node, metadata)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "pwritev", self.pwritev)
        monkeypatch.setattr(os, "fdatasync", self.fdatasync)

    def _whose(self, fd: int) -> tuple[str, bool] | None:
        known = os.fstat(fd)
        return self._files.get((known.st_dev, known.st_ino))

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        whose = self._whose(fd)
        if whose is not None and not whose[1]:
            return self.pwritev(fd, [data], offset)
        done = self._pwrite(fd, data, offset)
        if whose is not None:
            assert done == len(data), "a short write of metadata"
            self.note(MetaWritten(whose[0], offset, bytes(data)))
        return done

    def pwritev(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        whose = self._whose(fd)
        if whose is None:
            return self._pwritev(fd, buffers, offset)
        blocks = _versions(b"".join(bytes(buffer) for buffer in buffers), offset)
        self.note(Begun(whose[0], blocks))
        done = self._pwritev(fd, buffers, offset)
        self.note(Written(whose[0], blocks))
        return done

    def fdatasync(self, fd: int) -> None:
        whose = self._whose(fd)
        if whose is None:
            self._fdatasync(fd)
            return
        node, metadata = whose
        site, number = _site(sys._getframe(1)), next(self._numbers)
        if not metadata:
            self.note(SyncBegun(node, number))
        # Nothing loses power here, so that there is nothing to wait for.
        self.note(MetaSynced(node, site) if metadata else SyncEnded(node, number, site))


class _Peer(PeerConnection):
    """Notes what is handed over to be sent."""

    tape: Tape
    node: str

    def send(self, pieces: Any, owners: Any = ()) -> None:
        frames, _ = wire.decode_frames(memoryview(data := b"".join(pieces)), 0, len(data))
        for kind, seq, _offset, _length, generation, _flags, payload in frames:
            self.tape.note(FrameSent(self.node, kind, seq, generation, bytes(payload)))  # type: ignore[call-overload]
        super().send(pieces, owners)


class _Client(Connection):
    """Notes what is answered."""

    tape: Tape

    def reply_done(self, requests: Any, first: int = 0) -> int:
        behind = super().reply_done(requests, first)
        for request in requests[first:behind]:
            self.tape.note(Replied(int.from_bytes(request.cookie, "big")))
        return behind

    def reply(self, request: Any, error: int = 0, *rest: Any, **named: Any) -> None:
        assert not error, (request, error)
        self.tape.note(Replied(int.from_bytes(request.cookie, "big")))
        super().reply(request, error, *rest, **named)


class RecordedPair:
    """Two engines on one event loop, and one client of the primary."""

    def __init__(self, folder: Path, loop: asyncio.AbstractEventLoop, tape: Tape) -> None:
        self._loop = loop
        self.tape = tape
        self.stores: dict[str, Store] = {}
        self.engines: dict[str, Engine] = {}
        self.versions: dict[int, int] = {}
        self._cookies = itertools.count(1)
        self._waiting: set[int] = set()
        self._client: socket.socket | None = None
        #: What a callback of the loop raised.
        self._raised: list[object] = []
        loop.set_exception_handler(
            lambda _loop, context: self._raised.append(context.get("exception") or context)
        )
        numbers = itertools.count(1000)
        metadata = {}
        for place, name in enumerate(NODES):
            state_dir = str(folder / name)
            backing = str(folder / f"{name}.img")
            os.mkdir(state_dir)
            other = (NODES[1 - place],)
            store = open_store(state_dir, VOLUME, SIZE_BYTES, backing, other, lambda: next(numbers))
            path = metadata_path(state_dir, VOLUME)
            metadata[name] = Path(path).read_bytes()
            tape.watch(path, name, metadata=True)
            tape.watch(backing, name, metadata=False)
            self.stores[name] = store
            self.engines[name] = self._engine(name, store, lambda: next(numbers))
        self.recording = Recording(VOLUME, SIZE_BYTES, metadata, tape.events)

    def _engine(self, name: str, store: Store, random_id: Callable[[], int]) -> Engine:
        volume = Volume(
            VOLUME,
            name,
            store.facts,
            store.maps,
            boot_id="recorded",
            random_id=random_id,
            now_s=time.monotonic(),
            wall_clock_s=int(time.time()),
        )
        return Engine(
            self._loop,
            volume,
            store,
            on_note=lambda _note: None,
            on_change=lambda: None,
            on_lost=lambda _name, _reason: None,
            on_fatal=lambda text: pytest.fail(text),
        )

    def start(self) -> None:
        for engine in self.engines.values():
            engine.start()

    def connect(self) -> None:
        """Join the two by a fresh socket."""
        for name, other, sock in zip(NODES, reversed(NODES), socket.socketpair(), strict=True):
            sock.setblocking(False)
            engine = self.engines[name]
            peer = _Peer(
                self._loop,
                sock,
                lambda peer, frames, engine=engine, other=other: engine.frames_received(  # type: ignore[misc]
                    other, peer, frames
                ),
                lambda peer, reason, engine=engine, other=other: engine.peer_lost(  # type: ignore[misc]
                    other, peer, reason
                ),
                PEER_TIMEOUT_S,
            )
            peer.tape, peer.node = self.tape, name
            engine.add_peer(other, peer)

    def cut(self) -> None:
        self.engines["alpha"].drop_peer("beta", "cut")

    async def until(self, seen: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not seen():
            assert not self._raised, self._raised
            assert time.monotonic() < deadline, f"waited for {what}"
            await asyncio.sleep(POLL_S)

    async def established(self) -> None:
        sessions = [
            engine.volume.sessions[other]
            for engine, other in zip(self.engines.values(), reversed(NODES), strict=True)
        ]
        await self.until(
            lambda: all(session.phase.value == "established" for session in sessions),
            "the pair to be established",
        )

    async def at_rest(self, name: str) -> None:
        """Wait until a checkpoint has cleared the node's intents, durably."""
        volume = self.engines[name].volume
        await self.until(
            lambda: volume.maps.intents.set_bytes == 0 and volume.commits.idle,
            f"the intents of {name} to be cleared",
        )

    async def promote(self, name: str) -> None:
        answers: list[Verdict] = []
        self.engines[name].promote(PromoteRequest(), answers.append)
        await self.until(lambda: answers, "the promotion")
        assert answers[0].ok, answers[0].reason
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
        client = _Client(self._loop, theirs, ExportInfo(VOLUME, SIZE_BYTES), self.engines[name])
        client.tape = self.tape
        self.engines[name].add_client(client)
        self._client = ours
        self._loop.add_reader(ours, self._replied)

    def _replied(self) -> None:
        assert self._client is not None
        data = self._client.recv(1 << 16)
        assert data and len(data) % _REPLY.size == 0
        for start in range(0, len(data), _REPLY.size):
            _magic, error, cookie = _REPLY.unpack_from(data, start)
            assert error == 0
            self._waiting.discard(cookie)

    async def write(self, *blocks: int, fua: bool = False) -> None:
        """Write blocks, all in flight at once, each with its next version; wait for the answers."""
        for block in blocks:
            version = self.versions[block] = self.versions.get(block, 0) + 1
            self._ask(_WRITE, block, version, fua, block_content(block, version))
        await self.until(lambda: not self._waiting, "writes to be answered")

    async def flush(self) -> None:
        self._ask(_FLUSH, 0, 0, False, b"")
        await self.until(lambda: not self._waiting, "a flush to be answered")

    def _ask(self, command: int, block: int, version: int, fua: bool, data: bytes) -> None:
        assert self._client is not None
        cookie = next(self._cookies)
        self._waiting.add(cookie)
        self.tape.note(Asked(cookie, block, version, fua))
        head = _REQUEST.pack(
            _REQUEST_MAGIC, _FUA if fua else 0, command, cookie, block * BLOCK_BYTES, len(data)
        )
        sent = self._client.send(head + data)
        assert sent == len(head) + len(data)

    def close(self) -> None:
        if self._client is not None:
            self._loop.remove_reader(self._client)
            self._client.close()
        for name in NODES:
            self.engines[name].close()
            self.stores[name].close()

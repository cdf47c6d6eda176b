"""Two `Volume`s in memory, joined by a wire of real encoded frames: small, synchronous, exact.

Everything asked of a disk happens at once unless a test holds it (`hold_commits`, `hold_syncs`,
`hold_disk`, `hold_copies`, `hold_incoming`). `Pair.run` goes on until nothing moves any more. An
honest pair never breaks the protocol, so tests may claim that `broken` stays empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import count
from typing import Any

from repl.core import wire
from repl.core.facts import Facts, Maps, PeerRecord
from repl.core.outbox import ApplyJob, Commit, CopyJob, DiskJob, MapName, Op, Outbox, WriteKind
from repl.core.promotion import PromoteRequest
from repl.core.session import Session
from repl.core.timeouts import Timeouts
from repl.core.verdict import Verdict
from repl.core.volume import Volume
from repl.core.wire import DIGEST_BYTES, HEADER_BYTES, Header, PeerError, Type
from repl.events import Note

BLOCK = 4096
EXTENT = 1 << 20
SIZE = 4 * EXTENT
ALPHA_ID = 11
BETA_ID = 22
#: Turns after which a pair that still moves is taken for one that never stops.
STEPS_MAX = 5000


@dataclass
class Metadata:
    """What the metadata file would hold: facts, and the pages of every map."""

    facts: Facts
    pages: dict[tuple[MapName, str, int], bytes] = field(default_factory=dict)

    def store(self, commit: Commit) -> None:
        for emptied in commit.emptied:
            self.pages = {key: bits for key, bits in self.pages.items() if key[:2] != emptied}
        for page in commit.pages:
            self.pages[page.map, page.peer, page.page_no] = page.bits
        if commit.facts is not None:
            self.facts = commit.facts

    def maps(self, peers: Container[str] | None = None) -> Maps:
        """What is stored, for all peers or those that are configured now."""
        names = tuple(r.name for r in self.facts.peers if peers is None or r.name in peers)
        maps = Maps.empty(self.facts.size_bytes, names)
        for (name, peer, page_no), bits in self.pages.items():
            if name is MapName.DIRTY and peer not in maps.dirty:
                continue
            bitmap = {
                MapName.INTENTS: maps.intents,
                MapName.REMAINING: maps.remaining,
                MapName.DIRTY: maps.dirty.get(peer, maps.remaining),
            }[name]
            bitmap.load_page(page_no, bits)
            bitmap.take_changed()
        return maps


class Node:
    """One volume with its disk, its metadata and what came out of it."""

    def __init__(self, pair: Pair, name: str, peer: str, facts: Facts) -> None:
        self.pair = pair
        self.name = name
        self.peer_name = peer
        self.metadata = Metadata(facts)
        self.disk = bytearray(SIZE)
        self.durable = bytes(SIZE)
        self.hold_commits = self.hold_syncs = self.hold_disk = False
        self.hold_copies = self.hold_incoming = False
        self.replies: list[Op] = []
        self.reads: list[Op] = []
        self.forgotten: list[Op] = []
        self.answers: dict[int, Verdict] = {}
        #: What was said, and the same with codes and fields.
        self.notes: list[str] = []
        self.told: list[Note] = []
        self.drops: list[str] = []
        #: Sentences of PeerErrors that this node raised.
        self.broken: list[str] = []
        #: Everything that left the core, in order: ("commit", n), ("sync", n), ("reply", op)…
        self.events: list[tuple[str, object]] = []
        self.sent: list[Header] = []
        self._payloads: dict[Op, tuple[int, bytes]] = {}
        self._numbers = count(1)
        self.boot("boot-1")

    def boot(self, boot_id: str, peers: Container[str] | None = None) -> None:
        """Open the volume from what is stored, as after any kind of stop; `peers` are configured
        now, all that were ever met unless given."""
        self.commit: Commit | None = None
        self.sync: tuple[int, bytes] | None = None
        self.disk_jobs: list[DiskJob] = []
        self.copy_jobs: list[CopyJob] = []
        self._chunks: dict[int, bytes] = {}
        self.incoming: deque[bytes | None] = deque()
        self.connected = False
        self.boot_id = boot_id
        self.volume = Volume(
            "r0",
            self.name,
            self.metadata.facts,
            self.metadata.maps(peers),
            boot_id=boot_id,
            random_id=lambda: next(self.pair.ids),
            now_s=self.pair.now_s,
            wall_clock_s=1000,
            timeouts=Timeouts(),
        )

    # What tests ask.

    @property
    def codes(self) -> list[str]:
        """Codes of the events told so far."""
        return [note.code for note in self.told if note.code]

    def event(self, code: str) -> Note:
        """The newest event of this code."""
        return [note for note in self.told if note.code == code][-1]

    @property
    def session(self) -> Session:
        return self.volume.sessions[self.peer_name]

    @property
    def other(self) -> Node:
        return self.pair.beta if self is self.pair.alpha else self.pair.alpha

    def begin_turn(self) -> Volume:
        self.volume.turn(self.pair.now_s, 1000 + int(self.pair.now_s))
        return self.volume

    def write(
        self,
        offset: int,
        data: bytes | int,
        *,
        fua: bool = False,
        kind: WriteKind = WriteKind.WRITE,
    ) -> str:
        """Submit a write of `data` (or a zeroing of that many bytes); nothing moves yet."""
        op = f"w{next(self._numbers)}"
        length = data if isinstance(data, int) else len(data)
        payload = bytes(data)
        self._payloads[op] = (offset, payload)
        self.begin_turn().client_write(op, kind, offset, length, fua)
        return op

    def flush(self) -> str:
        op = f"f{next(self._numbers)}"
        self.begin_turn().client_flush(op)
        return op

    def read(self) -> str:
        op = f"r{next(self._numbers)}"
        self.begin_turn().client_read(op)
        return op

    def promote(self, request: PromoteRequest | None = None) -> int:
        return self.ask(lambda n: self.volume.promote(n, request or PromoteRequest()))

    def demote(self) -> int:
        return self.ask(lambda n: self.volume.demote(n, drop_clients=False))

    def leave(self) -> int:
        return self.ask(self.volume.leave)

    def adopt(self) -> int:
        return self.ask(self.volume.adopt)

    def ask(self, ask: Callable[[int], None]) -> int:
        number = next(self._numbers)
        self.begin_turn()
        ask(number)
        return number

    def event_kinds(self, *wanted: str) -> list[str]:
        return [kind for kind, _ in self.events if kind in wanted]

    # Moving.

    def step(self) -> bool:
        """Finish what the disk was asked, take what arrived, carry out; whether anything moved."""
        moved = self._finish_disk()
        if self.incoming and not self.hold_incoming:
            moved = True
            self._receive()
        while not (box := self.begin_turn().take()).empty:
            moved = True
            self._carry_out(box)
        return moved

    def _finish_disk(self) -> bool:
        volume, moved = self.begin_turn(), False
        if self.commit is not None and not self.hold_commits:
            commit, self.commit, moved = self.commit, None, True
            self.metadata.store(commit)
            self.events.append(("committed", commit.number))
            volume.metadata_done(commit.number)
        if self.sync is not None and not self.hold_syncs:
            (number, self.durable), self.sync, moved = self.sync, None, True
            self.events.append(("synced", number))
            volume.sync_done(number)
        if self.disk_jobs and not self.hold_disk:
            jobs, self.disk_jobs, moved = self.disk_jobs, [], True
            self._write(jobs)
        if self.copy_jobs and not self.hold_copies:
            copies, self.copy_jobs, moved = self.copy_jobs, [], True
            self.finish_copies(copies)
        return moved

    def _carry_out(self, box: Outbox) -> None:
        if box.commit is not None:
            assert self.commit is None, "one commit at a time"
            self.commit = box.commit
            self.events.append(("commit", box.commit.number))
        for jobs in box.send.values():
            for kind, seq, offset, length, generation, flags, source in jobs:
                payload = self._payload(Type(kind), offset, length, source)
                self._send(kind, payload, seq, offset, length, generation, flags)
        if self.hold_disk:
            self.disk_jobs += box.disk
        else:
            self._write(box.disk)
        self._apply(box.apply)
        if self.hold_copies:
            self.copy_jobs += box.copies
        else:
            self.finish_copies(box.copies)
        if box.sync:
            self.events.append(("sync", box.sync))
            unchanged = self.disk == self.durable
            self.sync = (box.sync, self.durable if unchanged else bytes(self.disk))
        self.replies += box.replies
        self.reads += box.reads
        self.forgotten += box.forget
        self.events += [("reply", op) for op in box.replies]
        self.answers.update(box.answers)
        self.events += [("answer", number) for number, _ in box.answers]
        self.notes += [note.text for note in box.notes]
        self.told += box.notes
        for _, reason in box.drop:
            self.drops.append(reason)
            self._hang_up()

    def _payload(self, kind: Type, offset: int, length: int, source: object) -> bytes:
        if kind is Type.WRITE:
            start, data = self._payloads[source]
            return data[offset - start : offset - start + length]
        if kind is Type.RESYNC_WRITE:
            return self._chunks.pop(source)  # type: ignore[call-overload, no-any-return]
        return b"" if source is None else bytes(source)  # type: ignore[call-overload]

    def _send(self, kind: int, payload: bytes, *fields: int) -> None:
        if not self.connected:
            return
        frame = wire.encode_header(kind, payload, *fields) + payload
        header = wire.decode_header(frame)
        self.sent.append(header)
        self.events.append((f"send {header.type.name}", header.seq))
        self.other.incoming.append(frame)

    def _hang_up(self) -> None:
        if self.connected:
            self.connected = False
            self.incoming.clear()
            self.other.incoming.append(None)

    def _receive(self) -> None:
        frames, self.incoming = self.incoming, deque()
        volume = self.begin_turn()
        try:
            for frame in frames:
                if frame is None:
                    self.connected = False
                    volume.peer_down(self.peer_name, "the peer closed the connection")
                    return
                header, payload = wire.decode_header(frame), memoryview(frame)[HEADER_BYTES:]
                wire.verify(header, frame, payload)
                self.feed(header.type, *header[2:7], payload)
        except PeerError as error:
            self.broken.append(str(error))
            self.session.drop(f"it broke the protocol: {error}")

    def feed(
        self,
        kind: Type,
        seq: int = 0,
        offset: int = 0,
        length: int = 0,
        generation: int = 0,
        flags: int = 0,
        payload: object = b"",
    ) -> None:
        """Hand one frame to the core; PeerError passes."""
        frame = (kind, seq, offset, length, generation, flags, payload)
        self.begin_turn().peer_frames(self.peer_name, [frame])

    def feed_body(self, kind: Type, body: dict[str, Any]) -> None:
        self.feed(kind, payload=wire.encode_body(body))

    # The disk.

    def _write(self, jobs: list[DiskJob]) -> None:
        for op, kind, offset, length in jobs:
            zeroes = bytes(length)
            data = self._payloads[op][1] if kind is WriteKind.WRITE else zeroes
            self.disk[offset : offset + length] = data
            self.events.append(("disk", op))
            self.begin_turn().disk_done(op)

    def _apply(self, jobs: list[ApplyJob]) -> None:
        for peer, kind, seq, offset, length, _flags, payload in jobs:
            volume = self.begin_turn()
            self.events.append((f"apply {Type(kind).name}", seq))
            if kind == Type.DIGEST:
                volume.compared(peer, seq, offset, length, self._compare(offset, length, payload))
                continue
            zeroing = kind in (Type.ZERO, Type.RESYNC_ZERO)
            data = bytes(length) if zeroing else bytes(payload)  # type: ignore[call-overload]
            self.disk[offset : offset + length] = data
            volume.applied(peer, seq)

    def _digests(self, offset: int, length: int) -> bytes:
        view = memoryview(self.disk)[offset : offset + length]
        return b"".join(
            blake2b(view[start : start + BLOCK], digest_size=DIGEST_BYTES).digest()
            for start in range(0, length, BLOCK)
        )

    def _compare(self, offset: int, length: int, digests: object) -> bytes:
        mine, theirs = self._digests(offset, length), bytes(digests)  # type: ignore[call-overload]
        number, blocks = 0, len(mine) // DIGEST_BYTES
        for index in range(blocks):
            place = slice(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES)
            number |= (mine[place] != theirs[place]) << index
        return number.to_bytes((blocks + 7) >> 3, "little")

    def _hole_end(self, offset: int) -> int:
        """Where the blocks of zeroes that begin at `offset` end."""
        for step in (EXTENT, BLOCK):
            zeroes = bytes(step)
            while self.disk.startswith(zeroes, offset):
                offset += step
        return offset

    def finish_copies(self, jobs: list[CopyJob]) -> None:
        """Read what the disk holds now and report it."""
        for number, offset, length, compare, peer in jobs:
            hole_end = self._hole_end(offset)
            if hole_end >= offset + length:
                self.begin_turn().chunk_read(peer, number, hole_end, None)
            elif compare:
                digests = self._digests(offset, length)
                self.begin_turn().chunk_read(peer, number, 0, digests)
            else:
                self._chunks[number] = bytes(self.disk[offset : offset + length])
                self.begin_turn().chunk_read(peer, number, 0, None)


class Pair:
    """Node `alpha` (the lower node id) and node `beta`, new and all zeroes, not connected."""

    def __init__(self, *, known_zeroes: bool = True) -> None:
        self.now_s = 100.0
        self.ids = count(1000)
        self.alpha = Node(self, "alpha", "beta", _fresh(ALPHA_ID, "beta", known_zeroes))
        self.beta = Node(self, "beta", "alpha", _fresh(BETA_ID, "alpha", known_zeroes))
        self.nodes = (self.alpha, self.beta)
        self.run()

    def run(self) -> None:
        """Go on until nothing moves that is not held."""
        for _ in range(STEPS_MAX):
            moved = [node.step() for node in self.nodes]
            if not any(moved):
                return
        raise AssertionError(f"the pair never comes to rest: {self.alpha.events[-20:]}")

    def connect(self) -> None:
        """Join the two nodes by a new connection; nothing moves yet."""
        assert not (self.alpha.connected or self.beta.connected)
        for node in self.nodes:
            node.incoming.clear()
            node.connected = True
            node.begin_turn().peer_up(node.peer_name)

    def cut(self) -> None:
        """End the connection on both sides; frames under way are lost."""
        for node in self.nodes:
            node.incoming.clear()
            if node.connected:
                node.connected = False
                node.begin_turn().peer_down(node.peer_name, "cut")

    def advance(self, seconds: float, step_s: float = 0.5) -> None:
        """Let time pass, with a tick at every step."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += step_s
            for node in self.nodes:
                node.begin_turn().tick()
            self.run()

    def restart(self, node: Node, *, power_loss: bool = False) -> None:
        """Kill a node's process, or its power, and start it again, without a connection."""
        self.cut()
        if power_loss:
            node.disk = bytearray(node.durable)
        node.boot(f"{node.boot_id}+" if power_loss else node.boot_id)

    def equal(self) -> bool:
        """Whether both disks hold the same bytes."""
        return self.alpha.disk == self.beta.disk


def _fresh(node_id: int, peer: str, known_zeroes: bool) -> Facts:
    return Facts(node_id, SIZE, known_zeroes=known_zeroes, peers=(PeerRecord(peer),))


def established_pair(*, primary: bool = True) -> Pair:
    """Two nodes in sync after their first contact; alpha is primary unless told otherwise."""
    pair = Pair()
    pair.connect()
    pair.run()
    if primary:
        number = pair.alpha.promote()
        pair.run()
        assert pair.alpha.answers[number].ok, pair.alpha.answers
    return pair


def data(fill: int, length: int = BLOCK) -> bytes:
    """Bytes that a test recognises."""
    return bytes([fill]) * length

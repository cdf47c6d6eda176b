"""Fuzz target: bytes of a peer into frames, by a whole `PeerConnection` on a pretended loop.

Claims: exactly the good frames before the first bad byte come out, whatever the pieces; a bad one
ends the connection once, with a reason; payloads that are kept stay as they were received; nothing
but the one buffer is held.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

from repl.core.wire import Frame
from repl.link.connection import RECEIVE_BUFFER_BYTES, PeerConnection
from tests.fuzz import frames
from tests.fuzz.fake_loop import FakeLoop, FakeSocket
from tests.fuzz.grammar import Grammar
from tests.fuzz.inputs import claim, parted, pieces, sentence, whole


def _payload(frame: Frame) -> bytes:
    return bytes(cast("memoryview", frame[6]))


class Receiving:
    """A connection that is given pieces, and what came of them."""

    def __init__(
        self, parts: Sequence[bytes], chance: random.Random | None, *, ends: bool, keeps: bool
    ) -> None:
        self.came: list[Frame] = []
        self.copies: list[bytes] = []
        self.lost: list[str] = []
        self._keeps = keeps
        loop = FakeLoop(chance)
        self.sock = FakeSocket(parts, ends=ends, chance=chance)
        self.peer = PeerConnection(
            cast("Any", loop), cast("Any", self.sock), self._take, self._gone, 5.0
        )
        self.peer.start()
        loop.run(self.sock)

    def _take(self, peer: PeerConnection, came: list[Frame]) -> None:
        claim(not peer.closed, "frames of a closed connection")
        self.came += came
        self.copies += [_payload(frame) for frame in came]
        if self._keeps:
            peer.keep_received()

    def _gone(self, _peer: PeerConnection, reason: str) -> None:
        sentence(reason)
        self.lost.append(reason)

    def check(self, stream: bytes, *, ends: bool) -> None:
        """Everything that the stream's own parser says."""
        good, broken = frames.parsed(stream)
        mine = [(frame[:6], payload) for frame, payload in zip(self.came, self.copies, strict=True)]
        if broken:
            # Frames that came in one piece with the bad one are dropped with it.
            claim(mine == good[: len(mine)], "other frames than were sent")
        else:
            claim(mine == good, f"{len(mine)} frames instead of {len(good)}")
        claim(self.peer.broken == broken, f"broken: {self.peer.broken}")
        claim(len(self.lost) == (broken or ends), f"lost: {self.lost}")
        claim(self.sock.closed == bool(self.lost), "closed or not")
        claim(broken or self.sock.taken, "it stands still")
        claim(len(self.peer._buffer) == RECEIVE_BUFFER_BYTES, "another buffer")
        if self._keeps:
            now = [_payload(frame) for frame in self.came]
            claim(now == self.copies, "a payload that was kept is another now")


def run(data: bytes) -> None:
    """One input: the stream in one piece and in many."""
    choices, stream = parted(data)
    ends, keeps = choices.flag(0, 0), choices.flag(0, 1)
    # Long streams wrap around the end of the buffer.
    stream *= (1, 1, 1, 60)[choices.number(1, 4)]
    Receiving(whole(stream), None, ends=ends, keeps=keeps).check(stream, ends=ends)
    chance = choices.random()
    parts = pieces(stream, chance) if len(stream) < 20_000 else whole(stream)
    Receiving(parts, chance, ends=ends, keeps=keeps).check(stream, ends=ends)


@cache
def grammar() -> Grammar:
    return frames.grammar()


def seeds() -> list[bytes]:
    """A few honest conversations."""
    found = frames.recorded()
    return [bytes(8) + b"".join(found[start : start + 6]) for start in range(0, 60, 6)]

"""The simulated link breaks and damages streams as a real one may, under the real connection."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import cast

from repl.core import wire
from repl.core.wire import Frame, Type
from repl.link.connection import PeerConnection
from tests.sim.backlog import Backlog
from tests.sim.clock import Clock
from tests.sim.network import Link, Loop, Network, Socket

PAYLOAD = bytes(range(256)) * 16
FRAME_BYTES = wire.HEADER_BYTES + len(PAYLOAD)


class End:
    """One side of a connection, and what it saw."""

    def __init__(self, clock: Clock, end: Socket) -> None:
        self.loop = Loop(clock, Backlog())
        self.loop.own(end)
        self.numbers: list[int] = []
        self.lost = ""
        self.connection = PeerConnection(
            cast(asyncio.AbstractEventLoop, self.loop),
            cast(socket.socket, end),
            self._frames,
            self._lost,
            5.0,
        )
        self.connection.start()

    def _frames(self, _connection: PeerConnection, frames: list[Frame]) -> None:
        for _kind, seq, *_, payload in frames:
            assert payload == PAYLOAD
            self.numbers.append(seq)

    def _lost(self, _connection: PeerConnection, reason: str) -> None:
        self.lost = reason

    def send(self, count: int) -> None:
        pieces: list[bytes | memoryview] = []
        for number in range(count):
            header = wire.encode_header(Type.WRITE, PAYLOAD, number, 0, len(PAYLOAD))
            pieces += (header, PAYLOAD)
        self.connection.send(pieces)


class Pair:
    """A network with one connection."""

    def __init__(self, seed: int, link: Link | None = None) -> None:
        self.clock = Clock()
        self.network = Network(self.clock, random.Random(seed), link or Link(split=1.0))
        self.sockets = self.network.connect("alpha", "beta")
        self.alpha, self.beta = (End(self.clock, end) for end in self.sockets)

    def run(self, seconds: float = 2.0) -> None:
        self.clock.run_until(self.clock.now_s + seconds)


def test_everything_sent_arrives_in_its_order_however_it_is_split() -> None:
    pair = Pair(1, Link(split=1.0, send_buffer_bytes=5000))
    pair.alpha.send(50)
    pair.run(60.0)
    assert pair.beta.numbers == list(range(50))
    assert not pair.beta.lost and not pair.alpha.connection.unsent_bytes


def test_a_reset_link_delivers_whole_frames_and_cuts_inside_others() -> None:
    arrived, inside = set(), 0
    for seed in range(40):
        pair = Pair(seed)
        pair.alpha.send(4)
        pair.network.reset()
        pair.run()
        assert pair.beta.numbers == list(range(len(pair.beta.numbers)))
        assert "reset" in pair.beta.lost and "reset" in pair.alpha.lost
        arrived.add(len(pair.beta.numbers))
        inside += pair.beta.connection.received_bytes % FRAME_BYTES != 0
    assert arrived >= {0, 1, 2, 3} and inside > 30


def test_a_changed_byte_never_passes_for_a_frame() -> None:
    for seed in range(40):
        pair = Pair(seed)
        pair.network.corrupt("beta")
        pair.alpha.send(4)
        pair.run()
        assert "broken frame" in pair.beta.lost or len(pair.beta.numbers) < 4
        assert pair.sockets[1].incoming.corrupted


def test_a_stalled_direction_holds_back_and_the_other_goes_on() -> None:
    pair = Pair(3)
    pair.network.stall("beta")
    pair.alpha.send(2)
    pair.beta.send(2)
    pair.run()
    assert (pair.alpha.numbers, pair.beta.numbers) == ([0, 1], [])
    pair.network.heal()
    pair.run()
    assert pair.beta.numbers == [0, 1]


def test_a_machine_without_power_says_nothing_to_its_peer() -> None:
    pair = Pair(4)
    pair.sockets[0].vanish()
    pair.run()
    assert not pair.beta.lost

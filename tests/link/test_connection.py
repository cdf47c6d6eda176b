"""A peer connection over a socket pair: any split, any load, payloads that stay, holds that end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl.core.wire import HEADER_BYTES, PAYLOAD_BYTES_MAX, Frame, Type, encode_header
from repl.link.connection import (
    RECEIVE_BUFFER_BYTES,
    SO_RCVBUFFORCE,
    SO_SNDBUFFORCE,
    PeerConnection,
    tune,
)

DEADLINE_S = 10.0


class Owner:
    """Counts its holders."""

    def __init__(self) -> None:
        self.retained = 0
        self.released = 0

    def retain(self) -> None:
        self.retained += 1

    def release(self) -> None:
        self.released += 1
        assert self.released <= self.retained


class End:
    """One `PeerConnection` and all that it reported; the other end of the pair is a raw socket."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self.batches: list[list[Frame]] = []
        self.lost: list[str] = []
        self.keep = False
        self.peer = PeerConnection(loop, sock, self._frames, self._gone, 5.0)
        self.peer.start()

    def _frames(self, peer: PeerConnection, frames: list[Frame]) -> None:
        self.batches.append(frames if self.keep else [_kept(frame) for frame in frames])
        if self.keep:
            peer.keep_received()

    def _gone(self, _peer: PeerConnection, reason: str) -> None:
        self.lost.append(reason)

    @property
    def frames(self) -> list[Frame]:
        return [frame for batch in self.batches for frame in batch]


@contextlib.contextmanager
def ends(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[End, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    end = End(loop, ours)
    try:
        yield end, theirs
    finally:
        end.peer.close()
        theirs.close()


def _kept(frame: Frame) -> Frame:
    *fields, payload = frame
    return (*fields, bytes(payload))  # type: ignore[call-overload]


def payloads_of(end: End) -> list[bytes]:
    return [bytes(payload) for *_, payload in end.frames]  # type: ignore[call-overload]


Play = Callable[[End, socket.socket], Awaitable[None]]


def play(script: Play) -> End:
    """Run a script against a new connection, within the deadline."""

    async def run() -> End:
        loop = asyncio.get_running_loop()
        with ends(loop) as (end, theirs):
            async with asyncio.timeout(DEADLINE_S):
                await script(end, theirs)
            return end

    return asyncio.run(run())


async def until(holds: Callable[[], Any]) -> None:
    """Let the loop turn until the condition holds; `play` sets the deadline."""
    while not holds():
        await asyncio.sleep(0.001)


def frame(seq: int, payload: bytes = b"", kind: Type = Type.WRITE) -> bytes:
    return encode_header(kind, payload, seq, 4096, len(payload), 7, 1) + payload


async def send_all(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


# Receiving.


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.binary(max_size=200), min_size=1, max_size=6),
    st.lists(st.integers(1, 300), min_size=1, max_size=12),
)
def test_frames_arrive_whole_however_the_stream_is_split(
    payloads: list[bytes], cuts: list[int]
) -> None:
    stream = b"".join(frame(seq, payload) for seq, payload in enumerate(payloads, 1))

    async def script(end: End, theirs: socket.socket) -> None:
        place, turn = 0, 0
        while place < len(stream):
            step = cuts[turn % len(cuts)]
            await send_all(theirs, stream[place : place + step])
            received = min(place + step, len(stream))
            await until(lambda: end.peer.received_bytes == received)  # noqa: B023
            place, turn = place + step, turn + 1
        await until(lambda: len(end.frames) == len(payloads))

    end = play(script)
    assert payloads_of(end) == payloads
    assert [frame[1] for frame in end.frames] == list(range(1, len(payloads) + 1))
    assert {frame[:1] + frame[2:3] + frame[4:6] for frame in end.frames} == {
        (Type.WRITE, 4096, 7, 1)
    }
    assert not end.lost


def test_a_frame_split_at_any_byte_arrives_whole() -> None:
    whole = frame(1, b"payload") + frame(2, b"more")

    async def script(end: End, theirs: socket.socket) -> None:
        for cut in range(1, len(whole)):
            await send_all(theirs, whole[:cut])
            before = end.peer.received_bytes
            await until(lambda: end.peer.received_bytes % len(whole) == cut)  # noqa: B023
            await send_all(theirs, whole[cut:])
            await until(lambda: len(end.frames) == 2 * cut)  # noqa: B023
            assert end.peer.received_bytes > before

    end = play(script)
    assert set(payloads_of(end)) == {b"payload", b"more"}


def test_all_frames_of_one_wake_up_come_in_one_batch() -> None:
    async def script(end: End, theirs: socket.socket) -> None:
        theirs.send(b"".join(frame(seq, b"x") for seq in range(1, 51)))
        await until(lambda: end.frames)

    assert [len(batch) for batch in play(script).batches] == [50]


def test_more_than_the_buffer_of_largest_frames_arrives_intact() -> None:
    count = 3 * RECEIVE_BUFFER_BYTES // PAYLOAD_BYTES_MAX
    payloads = [bytes([seq]) * (PAYLOAD_BYTES_MAX - seq) for seq in range(1, count + 1)]

    async def script(end: End, theirs: socket.socket) -> None:
        for seq, payload in enumerate(payloads, 1):
            await send_all(theirs, frame(seq, payload))
        await until(lambda: len(end.frames) == count)

    assert payloads_of(play(script)) == payloads


def test_a_kept_payload_survives_everything_received_after_it() -> None:
    count = 2 * RECEIVE_BUFFER_BYTES // (64 << 10)

    async def script(end: End, theirs: socket.socket) -> None:
        end.keep = True
        for seq in range(1, count + 1):
            await send_all(theirs, frame(seq, bytes([seq]) * (64 << 10)))
        await until(lambda: len(end.frames) == count)

    end = play(script)
    for seq, payload in enumerate(payloads_of(end), 1):
        assert payload == bytes([seq]) * (64 << 10)


def test_a_partial_frame_behind_a_kept_one_is_not_lost() -> None:
    second = frame(2, b"second" * 50)

    async def script(end: End, theirs: socket.socket) -> None:
        end.keep = True
        theirs.send(frame(1, b"first") + second[:100])
        await until(lambda: end.frames)
        theirs.send(second[100:])
        await until(lambda: len(end.frames) == 2)

    end = play(script)
    assert payloads_of(end) == [b"first", b"second" * 50]


@pytest.mark.parametrize("place", [0, 3, 20, 44, HEADER_BYTES, HEADER_BYTES + 6])
def test_a_changed_byte_ends_the_connection_with_a_reason_once(place: int) -> None:
    broken = bytearray(frame(2, b"payload"))
    broken[place] ^= 0x40

    async def script(end: End, theirs: socket.socket) -> None:
        theirs.send(bytes(broken) + frame(3, b"after"))
        await until(lambda: end.lost)
        await asyncio.sleep(0)

    end = play(script)
    assert len(end.lost) == 1
    assert "frame" in end.lost[0]
    assert end.peer.closed
    assert not end.frames


def test_a_length_over_the_limit_is_refused_before_its_payload_is_awaited() -> None:
    async def script(end: End, theirs: socket.socket) -> None:
        theirs.send(encode_header(Type.WRITE, bytes(PAYLOAD_BYTES_MAX + 1)))
        await until(lambda: end.lost)

    assert "limit" in play(script).lost[0]


def test_the_peers_close_is_reported_once() -> None:
    async def script(end: End, theirs: socket.socket) -> None:
        theirs.close()
        await until(lambda: end.lost)

    assert play(script).lost == ["the peer closed the connection"]


def test_what_this_side_closes_is_not_reported_as_lost() -> None:
    async def script(end: End, theirs: socket.socket) -> None:
        end.peer.close()
        end.peer.close()
        theirs.close()
        await asyncio.sleep(0.01)

    end = play(script)
    assert not end.lost and end.peer.closed


def test_a_connection_closed_by_whoever_takes_its_frames_takes_no_more() -> None:
    async def script(end: End, theirs: socket.socket) -> None:
        def close(peer: PeerConnection, frames: list[Frame]) -> None:
            end.batches.append(frames)
            peer.close()

        end.peer._on_frames = close
        theirs.send(frame(1, b"x"))
        await until(lambda: end.peer.closed)

    end = play(script)
    assert len(end.batches) == 1 and not end.lost


# Sending.


async def read_exactly(sock: socket.socket, size: int) -> bytes:
    loop, parts, missing = asyncio.get_running_loop(), [], size
    while missing:
        part = await loop.sock_recv(sock, missing)
        assert part, "closed too early"
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def test_what_the_kernel_takes_at_once_is_sent_at_once_and_nobody_has_to_keep_it() -> None:
    owner = Owner()

    async def script(end: End, theirs: socket.socket) -> None:
        end.peer.send([b"one", memoryview(b"two")], [owner])
        assert await read_exactly(theirs, 6) == b"onetwo"
        assert end.peer.unsent_bytes == 0
        assert end.peer.sent_bytes == 6
        assert not owner.retained

    play(script)


def test_partial_sends_keep_the_order_and_every_owner_until_its_bytes_are_sent() -> None:
    pieces = [bytes([n % 251]) * (150_000 + n) for n in range(120)]
    owners = [Owner() for _ in pieces]

    async def script(end: End, theirs: socket.socket) -> None:
        for piece, owner in zip(pieces, owners, strict=True):
            end.peer.send([memoryview(piece)], [owner])
        assert end.peer.unsent_bytes, "the kernel cannot take all of it at once"
        assert not owners[0].retained and owners[-1].retained == 1
        assert not any(owner.released for owner in owners)
        half = sum(map(len, pieces)) // 2
        data = await read_exactly(theirs, half)
        await until(lambda: end.peer.sent_bytes >= half)
        kept = [owner.retained - owner.released for owner in owners]
        assert kept == sorted(kept), "released from the front"
        data += await read_exactly(theirs, sum(map(len, pieces)) - half)
        assert data == b"".join(pieces)
        await until(lambda: not end.peer.unsent_bytes)

    end = play(script)
    assert [owner.released for owner in owners] == [owner.retained for owner in owners]
    assert not end.lost


def test_more_buffers_than_one_call_takes_are_all_sent() -> None:
    async def script(end: End, theirs: socket.socket) -> None:
        end.peer.send([bytes([number % 256]) for number in range(3000)])
        data = await read_exactly(theirs, 3000)
        assert data == bytes(number % 256 for number in range(3000))

    play(script)


def test_a_close_releases_what_was_not_sent_and_takes_nothing_more() -> None:
    owners = [Owner() for _ in range(100)]
    late = Owner()

    async def script(end: End, theirs: socket.socket) -> None:
        for owner in owners:
            end.peer.send([bytes(500_000)], [owner])
        assert owners[-1].retained and not owners[-1].released
        end.peer.close()
        end.peer.send([b"x"], [late])

    end = play(script)
    assert [owner.released for owner in owners] == [owner.retained for owner in owners]
    assert not late.retained
    assert end.peer.unsent_bytes == 0


def test_a_send_to_a_vanished_peer_is_reported_later_and_once() -> None:
    """Not within the turn that sends, which would find its own connection gone under it."""
    owner = Owner()

    async def script(end: End, theirs: socket.socket) -> None:
        end.peer._loop.remove_reader(end.peer._fd)
        theirs.close()
        end.peer.send([b"x" * 1000], [owner])
        assert not end.lost
        end.peer.send([b"y"])
        await until(lambda: end.lost)
        await asyncio.sleep(0)

    end = play(script)
    assert len(end.lost) == 1
    assert end.lost[0].startswith("sending failed")
    assert owner.released == owner.retained == 1


class Unprivileged(socket.socket):
    """A socket of somebody who may not go beyond the system's buffer sizes."""

    def setsockopt(self, *arguments: Any) -> None:
        if arguments[1] in (SO_SNDBUFFORCE, SO_RCVBUFFORCE):
            raise PermissionError(errno.EPERM, "not permitted")
        super().setsockopt(*arguments)


def test_buffers_are_left_to_the_kernel_where_their_size_would_be_cut() -> None:
    with Unprivileged(socket.AF_INET, socket.SOCK_STREAM) as sock:
        options = (socket.SO_SNDBUF, socket.SO_RCVBUF)
        before = [sock.getsockopt(socket.SOL_SOCKET, option) for option in options]
        tune(sock, 5.0)
        assert before == [sock.getsockopt(socket.SOL_SOCKET, option) for option in options]
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

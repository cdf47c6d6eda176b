"""Requests out of bytes: every split, every refusal, every limit, without any socket."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdserver import protocol as nbd
from nbdserver.buffers import CHUNK_BYTES, ByteBudget, ChunkPool
from nbdserver.errors import TransmissionViolation
from nbdserver.export import ExportInfo
from nbdserver.requests import Request
from nbdserver.transmission import RequestReader
from tests.nbdserver.wire import disc, read, request, write

MIB = 1 << 20
SIZE = 256 * MIB
NO_LIMIT = 1 << 40


@dataclass(frozen=True)
class Seen:
    """A request as a value, for comparison."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: bytes | None


class Reading:
    """Feeds a reader as a socket would and keeps what comes out."""

    def __init__(self, export: ExportInfo | None = None, *, release: bool = True) -> None:
        self.pool = ChunkPool(ByteBudget(), 128 * MIB, 4 * MIB)
        self.reader = RequestReader(export or ExportInfo("", SIZE), self.pool)
        self.seen: list[Seen] = []
        self.held: list[Request] = []
        self._release = release

    def feed(self, data: bytes, largest_receive: int = 1 << 30) -> Reading:
        left = memoryview(data)
        while left:
            room = self.reader.room()
            assert room is not None
            assert len(room) > 0
            count = min(len(room), len(left), largest_receive)
            room[:count] = left[:count]
            left = left[count:]
            self.reader.received(count)
            self.take()
        return self

    def take(self) -> None:
        while True:
            for each in self.reader.take_requests(1000, NO_LIMIT, NO_LIMIT):
                payload = None if each.payload is None else bytes(each.payload)
                cookie = int.from_bytes(each.cookie, "big")
                self.seen.append(
                    Seen(each.command, each.flags, cookie, each.offset, each.length, payload)
                )
                if not self._release:
                    self.held.append(each)
                elif each.chunk is not None:
                    each.chunk.release()
            if not self.reader.stopped_early:
                return

    def refusals(self) -> list[tuple[int, int]]:
        """(error, cookie) of what was answered without a backend."""
        return [
            (fault.error, int.from_bytes(request.cookie, "big"))
            for request, fault in self.reader.refusals
        ]


def held_payload(request: Request) -> bytes:
    assert request.payload is not None
    return bytes(request.payload)


def refused(data: bytes, export: ExportInfo | None = None) -> int:
    """The error for `data`, which must be one refused request that leaves the stream in step."""
    reading = Reading(export).feed(data + read(0, 512, cookie=99))
    assert reading.seen == [Seen(nbd.NBD_CMD_READ, 0, 99, 0, 512, None)]
    ((error, cookie),) = reading.refusals()
    assert cookie == 5
    return error


def test_each_command_arrives_with_its_fields() -> None:
    fua, no_hole = nbd.NBD_CMD_FLAG_FUA, nbd.NBD_CMD_FLAG_NO_HOLE
    reading = Reading().feed(
        read(1, 2, cookie=1 << 63)
        + write(3, b"four", cookie=2, flags=fua)
        + request(nbd.NBD_CMD_FLUSH, flags=fua, cookie=3)
        + request(nbd.NBD_CMD_TRIM, 5, 6, flags=fua, cookie=4)
        + request(nbd.NBD_CMD_WRITE_ZEROES, 7, SIZE - 7, flags=fua | no_hole, cookie=5)
    )
    assert reading.seen == [
        Seen(nbd.NBD_CMD_READ, 0, 1 << 63, 1, 2, None),
        Seen(nbd.NBD_CMD_WRITE, fua, 2, 3, 4, b"four"),
        Seen(nbd.NBD_CMD_FLUSH, fua, 3, 0, 0, None),
        Seen(nbd.NBD_CMD_TRIM, fua, 4, 5, 6, None),
        Seen(nbd.NBD_CMD_WRITE_ZEROES, fua | no_hole, 5, 7, SIZE - 7, None),
    ]
    assert reading.refusals() == []


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (read(SIZE, 1, cookie=5), nbd.NBD_EINVAL),
        (read(SIZE - 1, 2, cookie=5), nbd.NBD_EINVAL),
        (read(2**64 - 1, 2**32 - 1, cookie=5), nbd.NBD_EINVAL),
        (read(0, (32 << 20) + 1, cookie=5), nbd.NBD_EINVAL),
        (write(SIZE, b"x", cookie=5), nbd.NBD_ENOSPC),
        (write(SIZE - 1, b"xy", cookie=5), nbd.NBD_ENOSPC),
        (write(2**64 - 512, bytes(512), cookie=5), nbd.NBD_ENOSPC),
        (request(nbd.NBD_CMD_TRIM, SIZE - 1, 2, cookie=5), nbd.NBD_EINVAL),
        (request(nbd.NBD_CMD_WRITE_ZEROES, SIZE - 1, 2, cookie=5), nbd.NBD_ENOSPC),
        (request(nbd.NBD_CMD_FLUSH, 1, 0, cookie=5), nbd.NBD_EINVAL),
        (request(nbd.NBD_CMD_FLUSH, 0, 1, cookie=5), nbd.NBD_EINVAL),
        (request(nbd.NBD_CMD_CACHE, SIZE, 512, cookie=5), nbd.NBD_EINVAL),
        (request(nbd.NBD_CMD_CACHE, 0, 512, cookie=5, flags=2), nbd.NBD_EINVAL),
        (request(nbd.NBD_CMD_BLOCK_STATUS, 0, 0, cookie=5), nbd.NBD_EINVAL),
        (request(nbd.NBD_CMD_BLOCK_STATUS, 0, 512, cookie=5), nbd.NBD_EINVAL),
        (request(8, 0, 512, cookie=5), nbd.NBD_EINVAL),
        (request(0xFFFF, 2**63, 2**32 - 1, cookie=5), nbd.NBD_EINVAL),
        (read(0, 512, cookie=5, flags=nbd.NBD_CMD_FLAG_DF), nbd.NBD_EINVAL),
        (read(0, 512, cookie=5, flags=nbd.NBD_CMD_FLAG_NO_HOLE), nbd.NBD_EINVAL),
        (read(0, 512, cookie=5, flags=0x8000), nbd.NBD_EINVAL),
        (write(0, b"x", cookie=5, flags=nbd.NBD_CMD_FLAG_NO_HOLE), nbd.NBD_EINVAL),
        (
            request(nbd.NBD_CMD_WRITE_ZEROES, 0, 512, cookie=5, flags=nbd.NBD_CMD_FLAG_FAST_ZERO),
            nbd.NBD_EINVAL,
        ),
        (request(nbd.NBD_CMD_TRIM, 0, 512, cookie=5, flags=4), nbd.NBD_EINVAL),
        (write(0, bytes((32 << 20) + 1), cookie=5), nbd.NBD_EINVAL),
        (read(0, 0, cookie=5), 0),
        (write(0, b"", cookie=5), 0),
        (request(nbd.NBD_CMD_TRIM, 0, 0, cookie=5), 0),
        (request(nbd.NBD_CMD_CACHE, 0, 0, cookie=5), 0),
        (request(nbd.NBD_CMD_WRITE_ZEROES, 0, 0, cookie=5), 0),
        (write(SIZE + 1, b"", cookie=5), nbd.NBD_ENOSPC),
    ],
)
def test_refusal_names_the_right_error_and_keeps_the_stream(data: bytes, error: int) -> None:
    assert refused(data) == error


@pytest.mark.parametrize(
    "data",
    [
        write(0, b"data", cookie=5),
        request(nbd.NBD_CMD_TRIM, 0, 512, cookie=5),
        request(nbd.NBD_CMD_WRITE_ZEROES, 0, 512, cookie=5),
        write(SIZE, b"data", cookie=5),
    ],
)
def test_read_only_export_refuses_every_write(data: bytes) -> None:
    assert refused(data, ExportInfo("", SIZE, read_only=True)) == nbd.NBD_EPERM


def test_read_only_export_accepts_flush() -> None:
    reading = Reading(ExportInfo("", SIZE, read_only=True)).feed(request(nbd.NBD_CMD_FLUSH))
    assert [each.command for each in reading.seen] == [nbd.NBD_CMD_FLUSH]


@pytest.mark.parametrize("offset", [1, 100, 511])
def test_unaligned_request_is_refused_when_blocks_are_enforced(offset: int) -> None:
    export = ExportInfo("", SIZE, minimum_block_bytes=512)
    assert refused(write(offset, bytes(512), cookie=5), export) == nbd.NBD_EINVAL
    assert refused(request(nbd.NBD_CMD_TRIM, 0, offset, cookie=5), export) == nbd.NBD_EINVAL
    aligned = Reading(export).feed(write(512, bytes(512)))
    assert len(aligned.seen) == 1


@pytest.mark.parametrize("magic", [0, 0x12560953, 0x21E41C71, 0x49484156])
def test_wrong_magic_ends_it_after_what_came_before(magic: int) -> None:
    reading = Reading()
    with pytest.raises(TransmissionViolation, match="magic"):
        reading.feed(read(0, 512) + request(nbd.NBD_CMD_READ, 0, 512, magic=magic))
    assert len(reading.seen) == 1


def test_nothing_after_disconnect_is_executed() -> None:
    reading = Reading().feed(read(0, 512) + request(nbd.NBD_CMD_DISC, 7, 8) + write(0, b"late"))
    assert len(reading.seen) == 1
    assert reading.reader.disconnect_asked


def test_refused_requests_count_as_taken_ones_so_that_others_get_their_turn() -> None:
    reading = Reading()
    room = reading.reader.room()
    assert room is not None
    data = read(0, 1) + request(99, 0, 1) * 5 + read(0, 0) + disc()
    room[: len(data)] = data
    reader = reading.reader
    reader.received(len(data))
    seen = []
    while not reader.disconnect_asked:
        taken = len(reader.take_requests(3, NO_LIMIT, NO_LIMIT))
        seen.append((taken, len(reader.refusals), reader.stopped_early))
        reader.refusals.clear()
    assert seen == [(1, 2, True), (0, 3, True), (0, 1, False)]


def test_request_limit_leaves_the_rest_for_later() -> None:
    reading = Reading()
    room = reading.reader.room()
    assert room is not None
    data = b"".join(read(i, 1, cookie=i) for i in range(10))
    room[: len(data)] = data
    reading.reader.received(len(data))
    assert len(reading.reader.take_requests(4, NO_LIMIT, NO_LIMIT)) == 4
    assert reading.reader.stopped_early
    assert len(reading.reader.take_requests(0, NO_LIMIT, NO_LIMIT)) == 0
    assert len(reading.reader.take_requests(9, NO_LIMIT, NO_LIMIT)) == 6
    assert not reading.reader.stopped_early


def test_byte_limits_count_reads_and_payloads() -> None:
    reading = Reading()
    room = reading.reader.room()
    assert room is not None
    data = write(0, bytes(600)) + read(0, 500) + read(0, 1000)
    room[: len(data)] = data
    reading.reader.received(len(data))
    reader = reading.reader
    assert len(reader.take_requests(9, 599, NO_LIMIT)) == 0
    assert len(reader.take_requests(9, 1200, NO_LIMIT)) == 2
    assert (reader.taken_bytes, reader.taken_read_bytes) == (1100, 500)
    assert len(reader.take_requests(9, NO_LIMIT, 999)) == 0
    assert reader.stopped_early
    assert len(reader.take_requests(9, NO_LIMIT, 1000)) == 1


def test_payload_beyond_the_byte_limit_is_not_waited_for() -> None:
    reading = Reading()
    room = reading.reader.room()
    assert room is not None
    header = write(0, bytes(1000))[:28]
    room[:28] = header
    reading.reader.received(28)
    assert reading.reader.take_requests(9, 999, NO_LIMIT) == []
    assert reading.reader.stopped_early


@pytest.mark.parametrize("length", [4 << 10, 300 << 10, MIB, 3 * MIB, 32 * MIB])
@pytest.mark.parametrize("largest_receive", [1000, 200 << 10, 1 << 30])
@pytest.mark.parametrize("release", [True, False])
def test_payloads_arrive_intact_whatever_chunks_they_cross(
    length: int, largest_receive: int, release: bool
) -> None:
    if length >= MIB and largest_receive == 1000:
        largest_receive = 100_000
    count = 3 if length > MIB else 9
    payloads = [bytes([65 + i]) * (length - 1) + b"." for i in range(count)]
    reading = Reading(release=release)
    for i, payload in enumerate(payloads):
        reading.feed(write(i * length, payload, cookie=i), largest_receive)
    assert [each.payload for each in reading.seen] == payloads
    if not release:
        # A later receive must not have touched what is still held.
        assert [held_payload(each) for each in reading.held] == payloads


def test_stream_of_equal_large_writes_is_not_moved_in_memory() -> None:
    reading = Reading()
    for _ in range(20):
        reading.feed(write(0, bytes(300 << 10)))
        # Each ends exactly where a receive ended: nothing of it lay in two chunks.
        assert not reading.reader.in_mid_request
    assert reading.pool.out_bytes == CHUNK_BYTES


def test_very_large_buffer_is_given_back_after_its_request() -> None:
    reading = Reading().feed(write(0, bytes(32 * MIB)))
    assert len(reading.seen) == 1
    assert reading.pool.out_bytes == 0
    assert reading.pool.budget.used_bytes == 0


def test_announced_payload_takes_no_memory_of_another_size() -> None:
    reading = Reading().feed(write(0, bytes(32 * MIB))[: 2 * MIB])
    assert reading.reader.waits_for_large_payload
    assert reading.pool.out_bytes == 32 * MIB + 28


def test_refused_payload_is_skipped_without_being_staged() -> None:
    reading = Reading().feed(write(SIZE, bytes(64 * MIB), cookie=5), largest_receive=100_000)
    assert reading.pool.out_bytes <= CHUNK_BYTES
    assert [error for error, _ in reading.refusals()] == [nbd.NBD_EINVAL]


def test_late_view_of_a_retained_chunk_keeps_its_bytes() -> None:
    reading = Reading(release=False)
    reading.feed(write(0, b"first"))
    (first,) = reading.held
    assert first.chunk is not None
    first.chunk.retain()
    first.chunk.release()
    for _ in range(40):
        reading.feed(write(0, bytes(100 << 10)))
    assert held_payload(first) == b"first"


COMMANDS = st.one_of(
    st.builds(read, st.integers(0, 2 * SIZE), st.integers(0, 2**32 - 1), st.integers(0, 9)),
    st.builds(
        write,
        st.integers(0, 2 * SIZE),
        st.integers(0, 70_000).map(lambda n: bytes([n % 251]) * n),
        st.integers(0, 9),
        st.sampled_from([0, 1, 2, 4]),
    ),
    st.builds(
        request,
        st.sampled_from([3, 4, 5, 6, 7, 9]),
        st.sampled_from([0, 512, SIZE - 512, SIZE]),
        st.sampled_from([0, 512, SIZE]),
        flags=st.sampled_from([0, 1, 2, 16]),
        cookie=st.integers(0, 9),
    ),
)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(COMMANDS, max_size=12),
    st.booleans(),
    st.lists(st.integers(1, 90_000), min_size=1, max_size=10),
    st.booleans(),
)
def test_any_split_of_valid_requests_gives_the_same_result(
    commands: list[bytes], ends: bool, steps: list[int], release: bool
) -> None:
    stream = b"".join(commands) + (disc() if ends else b"")
    whole = Reading().feed(stream)
    split = Reading(release=release)
    position = step = 0
    while position < len(stream):
        size = steps[step % len(steps)]
        split.feed(stream[position : position + size])
        position += size
        step += 1
    assert split.seen == whole.seen
    assert split.refusals() == whole.refusals()
    assert split.reader.disconnect_asked == whole.reader.disconnect_asked == ends


@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_violate_or_wait_and_leave_nothing_held(
    noise: bytes, plausible: bool
) -> None:
    if plausible:
        noise = struct.pack(">I", nbd.NBD_REQUEST_MAGIC) + noise
    reading = Reading()
    try:
        reading.feed(noise)
    except TransmissionViolation:
        assert noise[:4] != struct.pack(">I", nbd.NBD_REQUEST_MAGIC) or len(noise) >= 56
    reading.reader.close()
    assert reading.pool.out_bytes == 0

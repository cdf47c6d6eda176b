"""Requests with extended headers, byte for byte. No client of Debian 12 speaks them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdserver import protocol as nbd
from nbdserver.buffers import ByteBudget, ChunkPool
from nbdserver.errors import TransmissionViolation
from nbdserver.export import ExportInfo
from nbdserver.extended_headers import ExtendedRequestReader
from nbdserver.requests import Request, StatusRequest
from nbdserver.terms import ReplyStyle, Terms
from tests.nbdserver.wire import extended_request, read

MIB = 1 << 20
SIZE = 1 << 42
NO_LIMIT = 1 << 50
PAYLOAD_LEN = nbd.NBD_CMD_FLAG_PAYLOAD_LEN
CONTEXTS = ("base:allocation", "x-a:b")

# (command, flags, cookie, offset, length, payload, contexts)
Seen = tuple[int, int, int, int, int, bytes | None, dict[int, str] | None]


class Reading:
    """Feeds a reader as a socket would and keeps what comes out."""

    def __init__(self, contexts: tuple[str, ...] = CONTEXTS) -> None:
        export = ExportInfo("", SIZE, can_fast_zero=True, contexts=CONTEXTS)
        self.pool = ChunkPool(ByteBudget(), 128 * MIB, 4 * MIB)
        self.reader = ExtendedRequestReader(
            export, self.pool, None, Terms(ReplyStyle.EXTENDED, contexts)
        )
        self.seen: list[Seen] = []

    def feed(self, data: bytes, largest_receive: int = 1 << 30) -> Reading:
        left = memoryview(data)
        while left:
            room = self.reader.room()
            assert room is not None
            count = min(len(room), len(left), largest_receive)
            room[:count] = left[:count]
            left = left[count:]
            self.reader.received(count)
            self._take()
        return self

    def _take(self) -> None:
        while True:
            for each in self.reader.take_requests(1000, NO_LIMIT, NO_LIMIT):
                self.seen.append(_seen(each))
                if each.chunk is not None:
                    each.chunk.release()
            if not self.reader.stopped_early:
                return

    def refusals(self) -> list[tuple[int, int]]:
        return [
            (int.from_bytes(request.cookie, "big"), fault.error)
            for request, fault in self.reader.refusals
        ]


def _seen(request: Request) -> Seen:
    payload = None if request.payload is None else bytes(request.payload)
    contexts = request.contexts if isinstance(request, StatusRequest) else None
    cookie = int.from_bytes(request.cookie, "big")
    return (
        request.command,
        request.flags,
        cookie,
        request.offset,
        request.length,
        payload,
        contexts,
    )


def status_payload(length: int, *ids: int) -> bytes:
    return struct.pack(f">Q{len(ids)}I", length, *ids)


AFTER = extended_request(nbd.NBD_CMD_READ, 0, 512, cookie=99)
AFTER_SEEN: Seen = (nbd.NBD_CMD_READ, 0, 99, 0, 512, None, None)


def refused(data: bytes, contexts: tuple[str, ...] = CONTEXTS) -> int:
    """The error for one request, which must leave the stream in step."""
    reading = Reading(contexts).feed(data + AFTER)
    assert reading.seen == [AFTER_SEEN]
    ((cookie, error),) = reading.refusals()
    assert cookie == 5
    return error


def test_header_is_32_bytes_with_a_64_bit_length() -> None:
    data = extended_request(6, 0x0102030405060708, 0x1112131415161718, cookie=0x21)
    assert data == (
        b"\x21\xe4\x1c\x71\0\0\0\x06\0\0\0\0\0\0\0\x21"
        b"\x01\x02\x03\x04\x05\x06\x07\x08\x11\x12\x13\x14\x15\x16\x17\x18"
    )
    assert refused(extended_request(6, 0, SIZE + 1, cookie=5)) == nbd.NBD_ENOSPC


def test_each_command_arrives_with_its_fields() -> None:
    reading = Reading().feed(
        extended_request(nbd.NBD_CMD_READ, 1, 2, cookie=1)
        + extended_request(nbd.NBD_CMD_WRITE, 3, 4, b"four", cookie=2)
        + extended_request(nbd.NBD_CMD_TRIM, 5, SIZE - 5, cookie=3)
        + extended_request(nbd.NBD_CMD_WRITE_ZEROES, 0, SIZE, flags=17, cookie=4)
        + extended_request(nbd.NBD_CMD_CACHE, 0, 1 << 40, cookie=5)
        + extended_request(nbd.NBD_CMD_BLOCK_STATUS, 7, SIZE - 7, cookie=6)
        + extended_request(nbd.NBD_CMD_FLUSH, flags=1, cookie=7)
    )
    both = {1: "base:allocation", 2: "x-a:b"}
    assert reading.seen == [
        (nbd.NBD_CMD_READ, 0, 1, 1, 2, None, None),
        (nbd.NBD_CMD_WRITE, 0, 2, 3, 4, b"four", None),
        (nbd.NBD_CMD_TRIM, 0, 3, 5, SIZE - 5, None, None),
        (nbd.NBD_CMD_WRITE_ZEROES, 17, 4, 0, SIZE, None, None),
        (nbd.NBD_CMD_CACHE, 0, 5, 0, 1 << 40, None, None),
        (nbd.NBD_CMD_BLOCK_STATUS, 0, 6, 7, SIZE - 7, None, both),
        (nbd.NBD_CMD_FLUSH, 1, 7, 0, 0, None, None),
    ]
    assert reading.refusals() == []


@pytest.mark.parametrize(
    ("data", "error"),
    [
        # A write's data must be announced; without that nothing follows.
        (extended_request(nbd.NBD_CMD_WRITE, 0, 512, cookie=5), nbd.NBD_EINVAL),
        # Any other payload is passed over.
        (extended_request(nbd.NBD_CMD_READ, 0, 3, b"abc", cookie=5), nbd.NBD_EINVAL),
        (extended_request(nbd.NBD_CMD_TRIM, 0, 4, b"IHAV", cookie=5), nbd.NBD_EINVAL),
        (extended_request(77, 0, 4, b"data", cookie=5), nbd.NBD_EINVAL),
        (extended_request(nbd.NBD_CMD_WRITE, SIZE, 4, b"data", cookie=5), nbd.NBD_ENOSPC),
        (
            extended_request(nbd.NBD_CMD_WRITE, 0, 33 * MIB, bytes(33 * MIB), cookie=5),
            nbd.NBD_EINVAL,
        ),
        (extended_request(nbd.NBD_CMD_READ, 0, 33 * MIB, cookie=5), nbd.NBD_EINVAL),
        (extended_request(nbd.NBD_CMD_READ, 0, 1 << 63, cookie=5), nbd.NBD_EINVAL),
        (extended_request(nbd.NBD_CMD_TRIM, 2**64 - 1, 2**64 - 1, cookie=5), nbd.NBD_EINVAL),
        (extended_request(nbd.NBD_CMD_BLOCK_STATUS, 0, 0, cookie=5), nbd.NBD_EINVAL),
        (extended_request(nbd.NBD_CMD_FLUSH, 0, 0, flags=PAYLOAD_LEN, cookie=5), nbd.NBD_EINVAL),
    ],
)
def test_refusal_consumes_exactly_the_payload(data: bytes, error: int) -> None:
    assert refused(data) == error


def test_status_payload_names_some_of_the_contexts() -> None:
    payload = status_payload(1 << 41, 2)
    data = extended_request(nbd.NBD_CMD_BLOCK_STATUS, 512, len(payload), payload, cookie=1)
    reading = Reading().feed(data + AFTER, largest_receive=7)
    expected: Seen = (nbd.NBD_CMD_BLOCK_STATUS, 0, 1, 512, 1 << 41, None, {2: "x-a:b"})
    assert reading.seen == [expected, AFTER_SEEN]


@pytest.mark.parametrize(
    "payload",
    [
        status_payload(512),
        status_payload(512, 3),
        status_payload(512, 0),
        status_payload(512, 1, 1),
        status_payload(512, 1) + b"x",
        status_payload(512, 1)[:-1],
        status_payload(0, 1),
        status_payload(SIZE + 1, 1),
        b"x",
        status_payload(512, *range(1, 2000)),
    ],
)
def test_status_payload_that_makes_no_sense_is_refused(payload: bytes) -> None:
    data = extended_request(nbd.NBD_CMD_BLOCK_STATUS, 0, len(payload), payload, cookie=5)
    assert refused(data) == nbd.NBD_EINVAL


def test_status_payload_of_nothing_is_refused() -> None:
    data = extended_request(nbd.NBD_CMD_BLOCK_STATUS, 0, 0, flags=PAYLOAD_LEN, cookie=5)
    assert refused(data) == nbd.NBD_EINVAL


def test_status_payload_without_contexts_is_refused() -> None:
    payload = status_payload(512, 1)
    data = extended_request(nbd.NBD_CMD_BLOCK_STATUS, 0, len(payload), payload, cookie=5)
    assert refused(data, ()) == nbd.NBD_EINVAL


@pytest.mark.parametrize("length", [1 << 32, 1 << 63, 2**64 - 1])
def test_endless_payload_ends_the_connection(length: int) -> None:
    data = extended_request(nbd.NBD_CMD_TRIM, 0, length, flags=PAYLOAD_LEN)
    with pytest.raises(TransmissionViolation, match="payload"):
        Reading().feed(data)


def test_endless_payload_ends_the_connection_after_what_came_before() -> None:
    """What came before is carried out, and no buffer stays held by a request that nobody got."""
    reading = Reading()
    written = extended_request(nbd.NBD_CMD_WRITE, 0, 3 * MIB, bytes(3 * MIB))
    endless = extended_request(nbd.NBD_CMD_WRITE, 0, 1 << 32, flags=1 << 5)
    with pytest.raises(TransmissionViolation, match="4294967296 bytes"):
        reading.feed(written + AFTER + endless)
    assert len(reading.seen) == 2
    reading.reader.close()
    reading.pool.close()
    assert (reading.pool.out_bytes, reading.pool.budget.used_bytes) == (0, 0)


def test_compact_request_ends_the_connection_after_what_came_before() -> None:
    reading = Reading()
    with pytest.raises(TransmissionViolation, match="0x25609513"):
        reading.feed(AFTER + read(0, 512) + bytes(4))
    assert reading.seen == [AFTER_SEEN]


def test_nothing_after_disconnect_is_executed() -> None:
    reading = Reading().feed(extended_request(nbd.NBD_CMD_DISC) + AFTER)
    assert reading.reader.disconnect_asked
    assert reading.seen == []


def test_refused_requests_count_as_taken_ones_so_that_others_get_their_turn() -> None:
    reading = Reading()
    room = reading.reader.room()
    assert room is not None
    data = AFTER + extended_request(99, 0, 1) * 5 + AFTER
    room[: len(data)] = data
    reader = reading.reader
    reader.received(len(data))
    seen = []
    for _ in range(3):
        taken = len(reader.take_requests(3, NO_LIMIT, NO_LIMIT))
        seen.append((taken, len(reader.refusals), reader.stopped_early))
        reader.refusals.clear()
    assert seen == [(1, 2, True), (0, 3, True), (1, 0, False)]


def test_limits_leave_the_rest_for_later() -> None:
    reading = Reading()
    room = reading.reader.room()
    assert room is not None
    data = extended_request(nbd.NBD_CMD_WRITE, 0, 600, bytes(600)) + AFTER * 2
    room[: len(data)] = data
    reader = reading.reader
    reader.received(len(data))
    assert reader.take_requests(9, 599, NO_LIMIT) == []
    assert reader.stopped_early
    assert len(reader.take_requests(9, 600, NO_LIMIT)) == 1
    assert (reader.taken_bytes, reader.taken_read_bytes) == (600, 0)
    assert len(reader.take_requests(1, NO_LIMIT, 511)) == 0
    assert len(reader.take_requests(1, NO_LIMIT, NO_LIMIT)) == 1
    assert reader.stopped_early
    assert len(reader.take_requests(9, NO_LIMIT, 512)) == 1
    assert not reader.stopped_early


COMMANDS = st.one_of(
    st.builds(
        extended_request,
        # Not DISC (2): whoever reads a socket stops there.
        st.sampled_from([0, 1, 3, 4, 5, 6, 7, 8, 9]),
        st.sampled_from([0, 512, SIZE - 512, SIZE]),
        st.sampled_from([0, 1, 512, 1 << 40]),
        flags=st.sampled_from([0, 1, 2, 4, 8, 16]),
        cookie=st.integers(0, 9),
    ),
    st.binary(min_size=1, max_size=70_000).flatmap(
        lambda payload: st.builds(
            extended_request,
            st.sampled_from([0, 1, 4, 7, 9]),
            st.sampled_from([0, SIZE]),
            st.just(len(payload)),
            st.just(payload),
            cookie=st.integers(0, 9),
        )
    ),
)


@settings(deadline=None, max_examples=50)
@given(st.lists(COMMANDS, max_size=8), st.lists(st.integers(1, 90_000), min_size=1, max_size=8))
def test_any_split_of_valid_requests_gives_the_same_result(
    commands: list[bytes], steps: list[int]
) -> None:
    stream = b"".join(commands)
    whole, split = Reading().feed(stream), Reading()
    position = step = 0
    while position < len(stream):
        size = steps[step % len(steps)]
        split.feed(stream[position : position + size])
        position += size
        step += 1
    assert split.seen == whole.seen
    assert split.refusals() == whole.refusals()
    split.reader.close()
    assert split.pool.out_bytes == 0

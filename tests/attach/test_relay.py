"""Requests outlive connections: each is answered once, wholly, whatever is cut where."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdserver import protocol as nbd
from repl.attach.relay import PENDING_BYTES_MAX, ClientViolation, Relay, ServerViolation
from tests.nbdserver.wire import disc, read, request, write


def reply(cookie: int, error: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">IIQ", nbd.NBD_SIMPLE_REPLY_MAGIC, error, cookie) + payload


def test_requests_and_replies_pass_unchanged() -> None:
    relay = Relay()
    asked = [read(4096, 512, cookie=1), write(0, b"x" * 512, cookie=2)]
    assert relay.requests_in(b"".join(asked)) == asked
    answers = [reply(2), reply(1, payload=b"y" * 512)]
    assert relay.replies_in(b"".join(answers)) == answers
    assert relay.idle


def test_unanswered_requests_are_sent_again_in_their_order() -> None:
    relay = Relay()
    asked = [write(n * 512, bytes([n]) * 512, cookie=n) for n in range(5)]
    relay.requests_in(b"".join(asked))
    relay.replies_in(reply(3) + reply(0))
    relay.server_lost()
    assert relay.unanswered() == [asked[1], asked[2], asked[4]]


def test_reply_cut_by_a_lost_connection_is_forgotten() -> None:
    relay = Relay()
    (asked,) = relay.requests_in(read(0, 1000, cookie=7))
    assert relay.replies_in(reply(7, payload=b"a" * 999)) == []
    relay.server_lost()
    assert relay.unanswered() == [asked]
    whole = reply(7, payload=b"b" * 1000)
    assert relay.replies_in(whole) == [whole]


def test_error_for_the_medium_is_passed_on_without_payload() -> None:
    relay = Relay()
    relay.requests_in(read(0, 4096, cookie=1))
    assert relay.replies_in(reply(1, nbd.NBD_EIO)) == [reply(1, nbd.NBD_EIO)]
    assert relay.idle


def test_shutdown_of_the_server_is_no_answer() -> None:
    relay = Relay()
    (asked,) = relay.requests_in(write(0, b"x", cookie=1))
    with pytest.raises(ServerViolation, match="shutting down"):
        relay.replies_in(reply(1, nbd.NBD_ESHUTDOWN))
    relay.server_lost()
    assert relay.unanswered() == [asked]


@pytest.mark.parametrize("answer", [reply(9), b"\0" * 16, reply(1)[:4] + b"\0" * 12])
def test_reply_that_answers_nothing_drops_the_server(answer: bytes) -> None:
    relay = Relay()
    relay.requests_in(read(0, 16, cookie=1))
    with pytest.raises(ServerViolation):
        relay.replies_in(answer)
    assert not relay.idle


@pytest.mark.parametrize("second", [5, 1])
def test_reply_before_a_violation_is_asked_for_again(second: int) -> None:
    relay = Relay()
    (first,) = relay.requests_in(write(0, b"x", cookie=1))
    with pytest.raises(ServerViolation):
        relay.replies_in(reply(1) + reply(second))
    relay.server_lost()
    # The client never saw the first reply, so its request must still be unanswered.
    assert relay.unanswered() == [first]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: nowhere\r\n\r\n",
        request(nbd.NBD_CMD_WRITE, length=nbd.PAYLOAD_BYTES_MAX + 1),
        read(0, 1, cookie=3) + read(0, 1, cookie=3),
    ],
)
def test_what_is_no_request_is_the_clients_violation(sent: bytes) -> None:
    with pytest.raises(ClientViolation):
        Relay().requests_in(sent)


def test_nothing_is_taken_after_the_goodbye() -> None:
    relay = Relay()
    first = write(0, b"x", cookie=1)
    assert relay.requests_in(first + disc() + read(0, 1, cookie=2)) == [first]
    assert relay.left
    assert relay.requests_in(read(0, 1, cookie=3)) == []


def test_reader_of_much_is_full_until_it_is_answered() -> None:
    relay = Relay()
    count = PENDING_BYTES_MAX // nbd.PAYLOAD_BYTES_MAX
    for cookie in range(count):
        assert not relay.full
        relay.requests_in(read(0, nbd.PAYLOAD_BYTES_MAX, cookie=cookie))
    assert relay.full
    relay.replies_in(reply(0, nbd.NBD_EIO))
    assert not relay.full


def _cut(data: bytes, generator: random.Random) -> list[bytes]:
    pieces = []
    while data:
        taken = generator.randint(1, max(1, min(len(data), 700)))
        pieces.append(data[:taken])
        data = data[taken:]
    return pieces


class _Server:
    """Answers in any order, and forgets everything whenever its connection is cut."""

    def __init__(self, generator: random.Random) -> None:
        self._generator = generator
        self.received = bytearray()

    def answers(self) -> bytes:
        asked = []
        while len(self.received) >= nbd.REQUEST_BYTES:
            _, _, command, cookie, _, length = nbd.REQUEST.unpack_from(self.received)
            payload = length if command == nbd.NBD_CMD_WRITE else 0
            end = nbd.REQUEST_BYTES + payload
            if len(self.received) < end:
                break
            del self.received[:end]
            body = b"d" * length if command == nbd.NBD_CMD_READ else b""
            asked.append(nbd.SIMPLE_REPLY.pack(nbd.NBD_SIMPLE_REPLY_MAGIC, 0, cookie) + body)
        self._generator.shuffle(asked)
        return b"".join(asked)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 30))
def test_every_request_is_answered_once_whatever_is_cut(seed: int, count: int) -> None:
    generator = random.Random(seed)
    relay, server = Relay(), _Server(generator)
    asked = b""
    for cookie in range(count):
        length = generator.randint(0, 900)
        if generator.random() < 0.5:
            asked += read(0, length, cookie=cookie)
        else:
            asked += write(0, b"w" * length, cookie=cookie)
    answered: list[int] = []
    pieces = _cut(asked, generator)
    while pieces or not relay.idle:
        if pieces:
            for whole in relay.requests_in(pieces.pop(0)):
                server.received += whole
        for piece in _cut(server.answers(), generator):
            if generator.random() < 0.1:
                relay.server_lost()
                server = _Server(generator)
                server.received += b"".join(relay.unanswered())
                break
            answered += [int.from_bytes(whole[8:16]) for whole in relay.replies_in(piece)]
    assert sorted(answered) == list(range(count))

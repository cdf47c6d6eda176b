"""The two negotiations against each other, our server, and what breaks the rules."""

from __future__ import annotations

import struct

import pytest

from nbdserver import protocol as nbd
from nbdserver.export import ExportInfo, Refusal
from nbdserver.handshake import ExportAsked, Handshake
from repl.attach.negotiation import Cause, Need, NotAgreed, Offer, Send, Steps, ask_for, serve
from tests.nbdserver.wire import go, option

GREETING = struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)


class Driven:
    """A negotiation that is fed by hand."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._step: Send | Need = next(steps)
        self._buffer = b""
        self.sent = b""
        self.agreed: Offer | None = None
        self.feed(b"")

    def feed(self, data: bytes) -> None:
        self._buffer += data
        while self.agreed is None:
            given = b""
            if isinstance(self._step, Send):
                self.sent += self._step.data
            elif len(self._buffer) >= self._step.count:
                count = self._step.count
                given, self._buffer = self._buffer[:count], self._buffer[count:]
            else:
                return
            try:
                self._step = self._steps.send(given)
            except StopIteration as end:
                self.agreed = end.value

    def taken(self) -> bytes:
        sent, self.sent = self.sent, b""
        return sent


def reply(kind: int, data: bytes = b"", to: int = nbd.Option.GO) -> bytes:
    return struct.pack(">QIII", nbd.NBD_REP_MAGIC, to, kind, len(data)) + data


def info(size: int, flags: int) -> bytes:
    return reply(nbd.Reply.INFO, struct.pack(">HQH", nbd.Info.EXPORT, size, flags))


def with_our_server(answer: ExportInfo | Refusal) -> Driven:
    server, client = Handshake(), Driven(ask_for("r0"))
    for _ in range(6):
        client.feed(server.data_to_send())
        sent = client.taken()
        if sent:
            server.receive_data(sent)
        event = server.next_event()
        if isinstance(event, ExportAsked):
            assert event.name == "r0"
            server.found(answer) if isinstance(answer, ExportInfo) else server.refuse(answer)
    return client


def test_our_server_and_our_client_agree() -> None:
    export = ExportInfo("r0", 1 << 30)
    assert with_our_server(export).agreed == Offer(1 << 30, export.transmission_flags)


@pytest.mark.parametrize(
    ("error", "cause"),
    [(nbd.Reply.ERR_POLICY, Cause.REFUSED), (nbd.Reply.ERR_UNKNOWN, Cause.UNKNOWN)],
)
def test_refusal_keeps_the_servers_words(error: nbd.Reply, cause: Cause) -> None:
    with pytest.raises(NotAgreed, match="its primary is beta") as refused:
        with_our_server(Refusal(error, "r0 is secondary on alpha; its primary is beta"))
    assert refused.value.cause is cause


def test_client_and_relay_agree_without_what_the_relay_lacks() -> None:
    flags = 0x1 | 0x4 | nbd.NBD_FLAG_SEND_DF | nbd.NBD_FLAG_CAN_MULTI_CONN
    server, client = Driven(serve(Offer(4096, flags))), Driven(ask_for("any"))
    for _ in range(4):
        client.feed(server.taken())
        server.feed(client.taken())
    assert client.agreed == server.agreed == Offer(4096, 0x1 | 0x4)


def test_relay_refuses_other_options_and_goes_on() -> None:
    server = Driven(serve(Offer(4096, 1)))
    assert server.taken() == GREETING
    server.feed(struct.pack(">I", 3) + option(nbd.Option.STRUCTURED_REPLY))
    server.feed(option(nbd.Option.LIST_META_CONTEXT, b"12345678"))
    answers = server.taken()
    assert answers == reply(nbd.Reply.ERR_UNSUP, to=nbd.Option.STRUCTURED_REPLY) + reply(
        nbd.Reply.ERR_UNSUP, to=nbd.Option.LIST_META_CONTEXT
    )
    server.feed(go(b"r0"))
    assert server.agreed == Offer(4096, 1)


def test_relay_answers_the_old_way_of_asking() -> None:
    server = Driven(serve(Offer(4096, 1)))
    server.taken()
    server.feed(struct.pack(">I", 1) + option(nbd.Option.EXPORT_NAME, b"r0"))
    assert server.taken() == struct.pack(">QH", 4096, 1) + bytes(124)
    assert server.agreed is not None


@pytest.mark.parametrize(
    "sent",
    [
        b"IHAVEOPS" + bytes(8),
        struct.pack(">8sII", b"IHAVEOPT", 7, 1 << 30),
        option(nbd.Option.ABORT),
    ],
)
def test_relay_gives_up_on_a_client_that_breaks_the_rules(sent: bytes) -> None:
    server = Driven(serve(Offer(4096, 1)))
    with pytest.raises(NotAgreed):
        server.feed(struct.pack(">I", 3) + sent)


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 400 Bad",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        struct.pack(">8s8sH", b"NBDMAGIC", b"IHAVEOPT", 0),
        GREETING + bytes(20),
        GREETING + reply(nbd.Reply.ACK),
        GREETING + reply(nbd.Reply.ACK, to=nbd.Option.LIST),
        GREETING + struct.pack(">QIII", nbd.NBD_REP_MAGIC, nbd.Option.GO, nbd.Reply.INFO, 1 << 31),
        GREETING + reply(nbd.Reply.INFO, b"\0\0short") + reply(nbd.Reply.ACK),
    ],
)
def test_server_that_breaks_the_rules_is_not_believed(sent: bytes) -> None:
    with pytest.raises(NotAgreed) as refused:
        Driven(ask_for("r0")).feed(sent + bytes(20))
    assert refused.value.cause is Cause.NOT_NBD


def test_refusal_without_words_names_its_number() -> None:
    with pytest.raises(NotAgreed, match="0x80000006"):
        Driven(ask_for("r0")).feed(GREETING + reply(nbd.Reply.ERR_UNKNOWN))


def test_client_asks_for_no_more_than_it_needs() -> None:
    client = Driven(ask_for("r0"))
    client.feed(GREETING + info(4096, 5) + reply(nbd.Reply.ACK) + b"the first reply")
    assert client.agreed == Offer(4096, 5) and not client.agreed.read_only
    assert client._buffer == b"the first reply"

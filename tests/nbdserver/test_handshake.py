"""Haggling, byte for byte: what a client may send and what it gets, without any socket."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdserver import protocol as nbd
from nbdserver.errors import ClientError, HandshakeViolation, LocalError
from nbdserver.export import ExportInfo, Refusal
from nbdserver.handshake import (
    Agreed,
    Ended,
    ExportAsked,
    Handshake,
    ListAsked,
    State,
    TlsAsked,
)
from nbdserver.limits import Limits
from nbdserver.protocol import Info, Option, Reply
from nbdserver.terms import Terms
from tests.nbdserver.wire import (
    FIXED_NEWSTYLE,
    FIXED_NEWSTYLE_NO_ZEROES,
    go,
    info_data,
    option,
    option_replies,
    read,
)

EXPORT = ExportInfo("vol", 12345, can_multi_conn=True, description="a disk")
OTHER_OPTIONS = (Option.PEEK_EXPORT, 12, 0, 0xFFFFFFFF)


class Driver:
    """Answers a handshake as a server with one export would, and keeps what it saw."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.handshake = Handshake(limits)
        self.sent = bytearray()
        self.asked: list[ExportAsked] = []
        self.end: Agreed | Ended | TlsAsked | None = None
        self.pump()
        self.sent.clear()

    def pump(self) -> None:
        while event := self.handshake.next_event():
            if isinstance(event, ExportAsked):
                self.asked.append(event)
                if event.name in ("", "vol"):
                    self.handshake.found(EXPORT)
                else:
                    self.handshake.refuse(Refusal(Reply.ERR_UNKNOWN, "no such export"))
            elif isinstance(event, ListAsked):
                self.handshake.listed([("vol", "a disk"), ("other", "")])
            else:
                self.end = event
        self.sent += self.handshake.data_to_send()

    def send(self, data: bytes) -> Driver:
        self.handshake.receive_data(data)
        self.pump()
        return self

    def replies(self) -> list[tuple[int, int, bytes]]:
        replies = [(each.option, each.type, each.data) for each in option_replies(bytes(self.sent))]
        self.sent.clear()
        return replies


def greeted(limits: Limits | None = None) -> Driver:
    return Driver(limits).send(FIXED_NEWSTYLE_NO_ZEROES)


def test_greeting_offers_fixed_newstyle_and_no_zeroes() -> None:
    assert Handshake().data_to_send() == b"NBDMAGIC" + b"IHAVEOPT" + b"\0\3"


@pytest.mark.parametrize("flags", [4, 0x80000000, 0x47455420, 0xFFFFFFFF])
def test_client_flags_that_were_not_offered_end_the_connection(flags: int) -> None:
    with pytest.raises(HandshakeViolation, match="flags"):
        Driver().send(struct.pack(">I", flags))


def test_export_name_with_no_zeroes_sends_ten_bytes() -> None:
    driver = greeted().send(option(Option.EXPORT_NAME, b"vol"))
    assert bytes(driver.sent) == struct.pack(">QH", 12345, EXPORT.transmission_flags)
    assert driver.end == Agreed(EXPORT, Terms(), b"")


def test_export_name_without_no_zeroes_sends_the_padding() -> None:
    driver = Driver().send(FIXED_NEWSTYLE).send(option(Option.EXPORT_NAME, b"vol"))
    assert bytes(driver.sent[10:]) == bytes(124)


def test_client_without_fixed_newstyle_may_name_an_export() -> None:
    driver = Driver().send(bytes(4)).send(option(Option.EXPORT_NAME, b"vol"))
    assert len(driver.sent) == 10 + 124
    assert isinstance(driver.end, Agreed)


def test_client_without_fixed_newstyle_may_do_nothing_else() -> None:
    with pytest.raises(HandshakeViolation, match="fixed-newstyle"):
        Driver().send(bytes(4)).send(option(Option.LIST))


def test_unknown_export_by_export_name_is_dropped_in_silence() -> None:
    driver = greeted().send(option(Option.EXPORT_NAME, b"nope"))
    assert driver.sent == b""
    assert isinstance(driver.end, Ended)


@pytest.mark.parametrize("name", [b"a\0b", b"\xff\xfe", b"x" * 4097])
def test_impossible_name_by_export_name_ends_the_connection(name: bytes) -> None:
    with pytest.raises(HandshakeViolation):
        greeted().send(option(Option.EXPORT_NAME, name))


def test_go_sends_export_and_block_sizes_then_ack() -> None:
    driver = greeted().send(go(b"vol"))
    assert driver.replies() == [
        (Option.GO, Reply.INFO, struct.pack(">HQH", 0, 12345, EXPORT.transmission_flags)),
        (Option.GO, Reply.INFO, struct.pack(">HIII", 3, 1, 4096, 32 << 20)),
        (Option.GO, Reply.ACK, b""),
    ]
    assert driver.end == Agreed(EXPORT, Terms(), b"")


def test_go_answers_name_and_description_once_when_asked_twice() -> None:
    driver = greeted().send(go(b"", Info.NAME, Info.DESCRIPTION, 99, Info.NAME, Info.EXPORT))
    infos = [data for _, kind, data in driver.replies() if kind == Reply.INFO]
    assert [data for data in infos if data[:2] == b"\0\1"] == [b"\0\1vol"]
    assert [data for data in infos if data[:2] == b"\0\2"] == [b"\0\2a disk"]
    assert len([data for data in infos if data[:2] == b"\0\0"]) == 1


def test_info_answers_and_goes_on_haggling() -> None:
    driver = greeted().send(option(Option.INFO, info_data(b"vol")))
    info_replies = driver.replies()
    assert driver.end is None
    go_replies = driver.send(go(b"vol")).replies()
    assert [reply[1:] for reply in info_replies] == [reply[1:] for reply in go_replies]


def test_go_for_an_unknown_export_can_be_followed_by_another() -> None:
    driver = greeted().send(go(b"nope"))
    assert driver.replies() == [(Option.GO, Reply.ERR_UNKNOWN, b"no such export")]
    assert isinstance(driver.send(go(b"vol")).end, Agreed)


def test_list_names_every_export_and_may_be_repeated() -> None:
    driver = greeted()
    for _ in range(3):
        assert driver.send(option(Option.LIST)).replies() == [
            (Option.LIST, Reply.SERVER, b"\0\0\0\3vola disk"),
            (Option.LIST, Reply.SERVER, b"\0\0\0\5other"),
            (Option.LIST, Reply.ACK, b""),
        ]


def test_list_with_data_is_invalid_and_skipped() -> None:
    driver = greeted().send(option(Option.LIST, b"junk") + option(Option.LIST))
    types = [kind for _, kind, _ in driver.replies()]
    assert types == [Reply.ERR_INVALID, Reply.SERVER, Reply.SERVER, Reply.ACK]


@pytest.mark.parametrize("number", OTHER_OPTIONS)
def test_unsupported_option_is_refused_and_its_data_consumed(number: int) -> None:
    driver = greeted().send(option(number, b"IHAVEOPT" * 100) + go(b"vol"))
    replies = driver.replies()
    assert replies[0][:2] == (number, Reply.ERR_UNSUP)
    assert replies[0][2].decode()
    assert isinstance(driver.end, Agreed)


def test_starttls_is_refused_and_with_data_it_is_invalid() -> None:
    driver = greeted().send(option(Option.STARTTLS) + option(Option.STARTTLS, b"x"))
    types = [kind for _, kind, _ in driver.replies()]
    assert types == [Reply.ERR_UNSUP, Reply.ERR_INVALID]


@pytest.mark.parametrize("data", [b"", b"ignored"])
def test_abort_is_acknowledged_and_ends_it(data: bytes) -> None:
    driver = greeted().send(option(Option.ABORT, data))
    assert driver.replies() == [(Option.ABORT, Reply.ACK, b"")]
    assert isinstance(driver.end, Ended)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        struct.pack(">I", 3) + b"vol",
        struct.pack(">I", 0xFFFFFFFF) + b"vol\0\0",
        struct.pack(">I", 4) + b"vol\0\0",
        info_data(b"vol") + b"x",
        info_data(b"vol", 1, 2)[:-1],
        struct.pack(">I", 3) + b"vol" + struct.pack(">H", 0xFFFF),
        info_data(b"a\0b"),
        info_data(b"\xff\xfe"),
        info_data(b"x" * 4097),
    ],
)
@pytest.mark.parametrize("number", [Option.INFO, Option.GO])
def test_lying_lengths_and_bad_names_are_invalid_and_the_next_option_works(
    number: Option, data: bytes
) -> None:
    driver = greeted().send(option(number, data) + go(b"vol"))
    assert driver.replies()[0][:2] == (number, Reply.ERR_INVALID)
    assert isinstance(driver.end, Agreed)


@pytest.mark.parametrize("name", [b"x" * 4096, b"../../etc/passwd", b"%n%s", "é…".encode()])
def test_odd_but_legal_names_reach_the_driver(name: bytes) -> None:
    driver = greeted().send(go(name))
    assert driver.asked == [ExportAsked(name.decode(), Option.GO)]
    assert driver.replies()[0][:2] == (Option.GO, Reply.ERR_UNKNOWN)


def test_bad_option_magic_ends_the_connection() -> None:
    with pytest.raises(HandshakeViolation, match="magic"):
        greeted().send(b"IHAVEOPX" + bytes(8))


@pytest.mark.parametrize("length", [(64 << 10) + 1, 64 << 20, 0xFFFFFFFF])
def test_announced_length_is_bounded_before_it_arrives(length: int) -> None:
    with pytest.raises(HandshakeViolation, match="announces"):
        greeted().send(b"IHAVEOPT" + struct.pack(">II", Option.GO, length))


def test_five_hundred_options_are_fine_and_the_limit_holds() -> None:
    driver = greeted(Limits(options=600))
    driver.send(option(Option.LIST) * 600)
    with pytest.raises(HandshakeViolation, match="over 600 options"):
        driver.send(option(Option.LIST))


def test_held_export_is_answered_later_and_bytes_wait() -> None:
    handshake = Handshake()
    handshake.receive_data(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
    handshake.data_to_send()
    assert handshake.next_event() == ExportAsked("vol", Option.GO)
    assert handshake.state is State.ANSWER
    handshake.receive_data(read(0, 512))
    assert handshake.next_event() is None
    assert handshake.data_to_send() == b""
    handshake.found(EXPORT)
    assert handshake.next_event() == Agreed(EXPORT, Terms(), read(0, 512))


def test_flood_while_an_export_is_held_ends_the_connection() -> None:
    handshake = Handshake(Limits(waiting_bytes=1000))
    handshake.receive_data(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
    with pytest.raises(HandshakeViolation, match="without waiting"):
        handshake.receive_data(bytes(1001))


def test_answer_without_a_question_is_our_own_error() -> None:
    with pytest.raises(LocalError):
        Handshake().found(EXPORT)


def test_refusal_text_is_cut_to_what_the_protocol_allows() -> None:
    handshake = Handshake()
    handshake.receive_data(FIXED_NEWSTYLE_NO_ZEROES + go(b"vol"))
    handshake.data_to_send()
    handshake.refuse(Refusal(Reply.ERR_POLICY, "…" * 3000))
    (reply,) = option_replies(handshake.data_to_send())
    assert reply.type == Reply.ERR_POLICY
    assert 4000 < len(reply.data) <= 4096
    assert set(reply.data.decode()) == {"…"}


OPTIONS = st.one_of(
    st.sampled_from(
        [
            option(Option.LIST),
            option(Option.LIST, b"x"),
            option(Option.STARTTLS),
            option(Option.STRUCTURED_REPLY),
            option(77, b"IHAVEOPT" * 3),
            go(b"nope"),
            option(Option.INFO, info_data(b"vol", 1, 2)),
            option(Option.INFO, b"\0"),
        ]
    ),
)
ENDINGS = st.sampled_from(
    [
        go(b"vol") + read(0, 512),
        option(Option.EXPORT_NAME, b"vol") + b"rest",
        option(Option.ABORT),
        b"",
    ]
)


@given(st.lists(OPTIONS, max_size=6), ENDINGS, st.data())
def test_any_split_of_a_conversation_gives_the_same_answers(
    options: list[bytes], ending: bytes, data: st.DataObject
) -> None:
    conversation = FIXED_NEWSTYLE_NO_ZEROES + b"".join(options) + ending
    whole = Driver().send(conversation)
    split = Driver()
    leftover = b""
    position = 0
    while position < len(conversation):
        step = data.draw(st.integers(1, len(conversation) - position))
        piece = conversation[position : position + step]
        position += step
        if split.end is None:
            split.send(piece)
        else:
            leftover += piece
    assert split.sent == whole.sent
    assert split.asked == whole.asked
    if isinstance(whole.end, Agreed) and isinstance(split.end, Agreed):
        assert split.end.leftover + leftover == whole.end.leftover
    else:
        assert split.end == whole.end


def test_one_byte_at_a_time_reaches_the_same_agreement() -> None:
    driver = Driver()
    for byte in FIXED_NEWSTYLE_NO_ZEROES + option(Option.LIST) + go(b"vol", 1, 2, 3):
        assert driver.end is None
        driver.send(bytes([byte]))
    assert driver.end == Agreed(EXPORT, Terms(), b"")


@given(st.binary(max_size=300), st.booleans())
def test_arbitrary_bytes_raise_client_error_or_wait(noise: bytes, after_flags: bool) -> None:
    driver = greeted() if after_flags else Driver()
    violated = False
    try:
        driver.send(noise)
    except ClientError:
        violated = True
    waits = driver.handshake.state in (State.CLIENT_FLAGS, State.OPTION)
    assert violated or waits or driver.end is not None


@given(st.integers(0, 12), st.binary(max_size=80))
def test_arbitrary_option_data_never_breaks_the_stream(number: int, data: bytes) -> None:
    driver = greeted()
    try:
        driver.send(option(number, data))
    except ClientError:
        assert number == Option.EXPORT_NAME
        return
    if driver.end is None:
        driver.sent.clear()
        driver.send(option(Option.LIST))
        assert driver.replies()[-1] == (nbd.Option.LIST, Reply.ACK, b"")

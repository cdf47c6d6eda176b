"""Structured replies, extended headers and metadata contexts, negotiated byte for byte."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdserver import protocol as nbd
from nbdserver.errors import ClientError, HandshakeViolation
from nbdserver.export import ExportInfo, Refusal
from nbdserver.handshake import Agreed, ExportAsked, Handshake, ListAsked, State
from nbdserver.protocol import Option, Reply
from nbdserver.terms import ReplyStyle, Terms
from tests.nbdserver.wire import (
    FIXED_NEWSTYLE_NO_ZEROES,
    context_data,
    go,
    info_data,
    option,
    option_replies,
)

CONTEXTS = ("base:allocation", "x-repl:out-of-sync:beta", "x-repl:out-of-sync:gamma")
EXPORT = ExportInfo("vol", 12345, contexts=CONTEXTS)
PLAIN = ExportInfo("plain", 512)
SECOND = ExportInfo("second", 512, contexts=CONTEXTS)

SR = option(Option.STRUCTURED_REPLY)
EXT = option(Option.EXTENDED_HEADERS)

ReplySeen = tuple[int, bytes]


class Driver:
    """Answers a handshake as a server with three exports would."""

    def __init__(self) -> None:
        self.handshake = Handshake()
        self.agreed: Agreed | None = None
        self.handshake.receive_data(FIXED_NEWSTYLE_NO_ZEROES)
        self.handshake.data_to_send()

    def send(self, *options: bytes) -> list[list[ReplySeen]]:
        """(type, data) of every reply, for each option."""
        return [self._send_one(each) for each in options]

    def _send_one(self, data: bytes) -> list[ReplySeen]:
        self.handshake.receive_data(data)
        while event := self.handshake.next_event():
            if isinstance(event, ExportAsked):
                exports = {"": EXPORT, "vol": EXPORT, "plain": PLAIN, "second": SECOND}
                found = exports.get(event.name)
                if found is not None:
                    self.handshake.found(found)
                else:
                    self.handshake.refuse(Refusal(Reply.ERR_UNKNOWN, "no such export"))
            elif isinstance(event, ListAsked):
                self.handshake.listed([])
            elif isinstance(event, Agreed):
                self.agreed = event
        return [(each.type, each.data) for each in option_replies(self.handshake.data_to_send())]

    def terms(self, name: bytes = b"vol") -> Terms:
        self.send(go(name))
        assert self.agreed is not None
        return self.agreed.terms


def list_contexts(name: bytes, *queries: bytes) -> bytes:
    return option(Option.LIST_META_CONTEXT, context_data(name, *queries))


def set_contexts(name: bytes, *queries: bytes) -> bytes:
    return option(Option.SET_META_CONTEXT, context_data(name, *queries))


def names(replies: list[ReplySeen]) -> list[tuple[int, str]]:
    """(id, name) of the contexts in a successful answer."""
    assert replies[-1] == (Reply.ACK, b"")
    assert all(kind == Reply.META_CONTEXT for kind, _ in replies[:-1])
    return [(int.from_bytes(data[:4], "big"), data[4:].decode()) for _, data in replies[:-1]]


def flags_told(replies: list[ReplySeen]) -> int:
    (flags,) = [
        struct.unpack(">HQH", data)[2]
        for kind, data in replies
        if kind == Reply.INFO and data[:2] == b"\0\0"
    ]
    return int(flags)


def test_without_options_the_terms_are_simple() -> None:
    driver = Driver()
    assert driver.terms() == Terms()
    (replies,) = Driver().send(go(b"vol"))
    assert not flags_told(replies) & (nbd.NBD_FLAG_SEND_DF | nbd.NBD_FLAG_BLOCK_STATUS_PAYLOAD)


@pytest.mark.parametrize("repeats", [1, 2])
def test_structured_replies_are_acknowledged_and_bring_df(repeats: int) -> None:
    driver = Driver()
    *acks, replies = driver.send(*[SR] * repeats, go(b"vol"))
    assert acks == [[(Reply.ACK, b"")]] * repeats
    assert flags_told(replies) & nbd.NBD_FLAG_SEND_DF
    assert driver.agreed is not None
    assert driver.agreed.terms == Terms(ReplyStyle.STRUCTURED)


def test_info_tells_the_flags_that_go_then_grants() -> None:
    told, granted = Driver().send(SR, option(Option.INFO, info_data(b"vol")), go(b"vol"))[1:]
    assert told == granted


@pytest.mark.parametrize("number", [Option.STRUCTURED_REPLY, Option.EXTENDED_HEADERS])
def test_feature_option_with_data_is_invalid_and_changes_nothing(number: Option) -> None:
    driver = Driver()
    ((kind, text),) = driver.send(option(number, b"x"))[0]
    assert (kind, text.decode()) == (Reply.ERR_INVALID, f"NBD_OPT_{number.name} takes no data")
    assert driver.terms() == Terms()


def test_extended_headers_need_no_structured_replies_before() -> None:
    driver = Driver()
    assert driver.send(EXT)[0] == [(Reply.ACK, b"")]
    assert driver.terms() == Terms(ReplyStyle.EXTENDED)


def test_extended_headers_take_precedence_and_stay() -> None:
    driver = Driver()
    first, second, third = driver.send(SR, EXT, SR)
    assert [first, second] == [[(Reply.ACK, b"")]] * 2
    assert third[0][0] == Reply.ERR_EXT_HEADER_REQD
    assert driver.terms().style is ReplyStyle.EXTENDED


def test_export_name_after_extended_headers_ends_the_connection() -> None:
    driver = Driver()
    driver.send(EXT)
    with pytest.raises(HandshakeViolation, match="extended headers"):
        driver.send(option(Option.EXPORT_NAME, b"vol"))


def test_structured_replies_hold_for_export_name_too() -> None:
    driver = Driver()
    driver.send(SR, set_contexts(b"vol", b"base:allocation"))
    driver.handshake.receive_data(option(Option.EXPORT_NAME, b"vol"))
    assert isinstance(driver.handshake.next_event(), ExportAsked)
    driver.handshake.found(EXPORT)
    size, flags = struct.unpack(">QH", driver.handshake.data_to_send())
    assert (size, flags & nbd.NBD_FLAG_SEND_DF) == (12345, nbd.NBD_FLAG_SEND_DF)
    agreed = driver.handshake.next_event()
    assert isinstance(agreed, Agreed)
    assert agreed.terms == Terms(ReplyStyle.STRUCTURED, ("base:allocation",))


@pytest.mark.parametrize("asks", [list_contexts, set_contexts])
def test_contexts_before_structured_replies_are_refused(asks: object) -> None:
    assert callable(asks)
    driver = Driver()
    assert driver.send(asks(b"vol", b"base:allocation"))[0][0][0] == Reply.ERR_INVALID
    assert driver.terms() == Terms()


@pytest.mark.parametrize(
    ("queries", "found"),
    [
        ((), CONTEXTS),
        ((b"base:",), CONTEXTS[:1]),
        ((b"base:allocation",), CONTEXTS[:1]),
        ((b"x-repl:",), CONTEXTS[1:]),
        ((b"x-repl:out-of-sync:",), CONTEXTS[1:]),
        ((b"x-repl:out-of-sync:gamma",), CONTEXTS[2:]),
        ((b"x-repl:", b"base:", b"x-repl:"), CONTEXTS),
        ((b"qemu:", b"base:nope", b"x-rep:", b":", b"", b"base"), ()),
    ],
)
def test_list_answers_what_the_queries_mean_with_ids_of_zero(
    queries: tuple[bytes, ...], found: tuple[str, ...]
) -> None:
    replies = Driver().send(SR, list_contexts(b"vol", *queries))[1]
    assert names(replies) == [(0, name) for name in found]


@pytest.mark.parametrize(
    ("queries", "found"),
    [
        ((), ()),
        ((b"base:allocation",), CONTEXTS[:1]),
        ((b"base:",), ()),
        ((b"x-repl:",), ()),
        ((b"base:allocation", b"base:allocation"), CONTEXTS[:1]),
        (tuple(name.encode() for name in reversed(CONTEXTS)), CONTEXTS),
        ((b"qemu:dirty-bitmap:x", b"base:allocation", b"x-repl:out-of-sync:delta"), CONTEXTS[:1]),
    ],
)
def test_set_selects_full_names_once_each_with_ids_of_their_own(
    queries: tuple[bytes, ...], found: tuple[str, ...]
) -> None:
    driver = Driver()
    replies = driver.send(SR, set_contexts(b"vol", *queries))[1]
    assert names(replies) == list(enumerate(found, 1))
    assert driver.terms().contexts == found
    assert driver.agreed is not None
    assert driver.agreed.terms.context_ids() == dict(names(replies))


def test_contexts_of_an_unknown_export_are_refused_by_its_name() -> None:
    driver = Driver()
    answers = driver.send(SR, list_contexts(b"no", b"base:"), set_contexts(b"no"))
    assert [answer[0][0] for answer in answers[1:]] == [Reply.ERR_UNKNOWN] * 2


def test_export_without_contexts_lists_none() -> None:
    assert names(Driver().send(SR, list_contexts(b"plain"))[1]) == []


@pytest.mark.parametrize(
    "later",
    [
        set_contexts(b"vol"),
        set_contexts(b"vol", b"base:"),
        set_contexts(b"no", b"base:allocation"),
        option(Option.SET_META_CONTEXT, b"\0"),
        option(Option.SET_META_CONTEXT, context_data(b"vol", b"base:allocation") + b"x"),
    ],
)
def test_later_selection_replaces_an_earlier_one_even_when_it_fails(later: bytes) -> None:
    driver = Driver()
    driver.send(SR, set_contexts(b"vol", b"base:allocation"), later)
    assert driver.terms().contexts == ()


def test_listing_leaves_the_selection_alone() -> None:
    driver = Driver()
    driver.send(SR, set_contexts(b"vol", b"base:allocation"), list_contexts(b"vol", b"x-repl:"))
    assert driver.terms().contexts == ("base:allocation",)


def test_selection_counts_only_for_the_export_it_named() -> None:
    for name in (b"plain", b"second"):
        driver = Driver()
        driver.send(SR, set_contexts(b"vol", b"base:allocation"))
        assert driver.terms(name).contexts == ()
    other = Driver()
    other.send(SR, set_contexts(b"", b"base:allocation"))
    assert other.terms(b"").contexts == ("base:allocation",)


def test_payload_flag_comes_with_extended_headers_and_contexts_only() -> None:
    payload = nbd.NBD_FLAG_BLOCK_STATUS_PAYLOAD
    for options, expected in (
        ((SR, set_contexts(b"vol", b"base:allocation")), 0),
        ((EXT,), 0),
        ((EXT, set_contexts(b"vol", b"base:allocation")), payload),
    ):
        replies = Driver().send(*options, go(b"vol"))[-1]
        assert flags_told(replies) & payload == expected


LYING = [
    b"",
    b"\0\0\0",
    struct.pack(">I", 3) + b"vo",
    struct.pack(">I", 0xFFFFFFFF) + b"vol" + bytes(4),
    struct.pack(">I", 3) + b"vol",
    struct.pack(">I", 3) + b"vol" + b"\0\0\0",
    struct.pack(">I", 3) + b"vol" + struct.pack(">I", 0xFFFFFFFF),
    context_data(b"vol", b"base:allocation")[:-1],
    context_data(b"vol", b"base:allocation") + b"x",
    context_data(b"vol", b"\xff\xfe:"),
    context_data(b"vol", b"base:\0allocation"),
    context_data(b"vol", b"x" * 4097),
    context_data(b"a\0b", b"base:"),
    context_data(b"x" * 4097),
]


@pytest.mark.parametrize("number", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
@pytest.mark.parametrize("data", LYING)
def test_lying_context_queries_are_invalid_and_the_next_option_works(
    number: Option, data: bytes
) -> None:
    driver = Driver()
    ((kind, text),) = driver.send(SR, option(number, data))[1]
    assert kind == Reply.ERR_INVALID
    assert text.decode()
    assert driver.terms() == Terms(ReplyStyle.STRUCTURED)


def test_contexts_may_be_asked_for_while_their_export_is_held() -> None:
    handshake = Handshake()
    handshake.receive_data(FIXED_NEWSTYLE_NO_ZEROES + SR + set_contexts(b"vol", b"base:allocation"))
    assert handshake.next_event() == ExportAsked("vol", Option.SET_META_CONTEXT)
    assert handshake.state is State.ANSWER
    handshake.data_to_send()
    handshake.found(EXPORT)
    replies = option_replies(handshake.data_to_send())
    assert [each.type for each in replies] == [Reply.META_CONTEXT, Reply.ACK]


@given(
    st.lists(
        st.one_of(
            st.sampled_from([SR, EXT, go(b"no"), list_contexts(b"vol")]),
            st.builds(
                option,
                st.sampled_from([9, 10]),
                st.one_of(st.binary(max_size=60), st.sampled_from(LYING)),
            ),
        ),
        max_size=8,
    )
)
def test_any_order_of_features_leaves_a_working_handshake(options: list[bytes]) -> None:
    driver = Driver()
    try:
        driver.send(*options)
    except ClientError:
        raise AssertionError("a legal framing was taken for a violation") from None
    assert driver.terms().style in ReplyStyle

"""STARTTLS in the haggling, byte for byte: when it is offered, demanded, and what it wipes out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdserver.admission import TlsMode
from nbdserver.errors import HandshakeViolation, LocalError
from nbdserver.handshake import Agreed, Ended, Handshake, State, TlsAsked
from nbdserver.protocol import Option, Reply
from nbdserver.terms import ReplyStyle, Terms
from tests.nbdserver.test_handshake import EXPORT, OTHER_OPTIONS, Driver
from tests.nbdserver.wire import FIXED_NEWSTYLE_NO_ZEROES, context_data, go, info_data, option

STARTTLS = option(Option.STARTTLS)
ACKED = (Option.STARTTLS, Reply.ACK, b"")


def greeted(mode: TlsMode) -> Driver:
    driver = Driver()
    driver.handshake = Handshake(tls=mode)
    driver.handshake.data_to_send()
    return driver.send(FIXED_NEWSTYLE_NO_ZEROES)


def secured(mode: TlsMode) -> Driver:
    driver = greeted(mode).send(STARTTLS)
    assert driver.replies() == [ACKED]
    assert driver.end == TlsAsked()
    driver.handshake.secured()
    driver.end = None
    return driver


@pytest.mark.parametrize("mode", [TlsMode.ALLOWED, TlsMode.REQUIRED])
def test_starttls_is_acknowledged_and_the_haggling_begins_anew(mode: TlsMode) -> None:
    driver = secured(mode).send(go(b"vol"))
    assert driver.end == Agreed(EXPORT, Terms(), b"")


def test_starttls_is_refused_where_there_is_no_tls() -> None:
    ((number, kind, _),) = greeted(TlsMode.OFF).send(STARTTLS).replies()
    assert (number, kind) == (Option.STARTTLS, Reply.ERR_UNSUP)


@pytest.mark.parametrize("mode", TlsMode)
def test_starttls_with_data_is_invalid_and_may_come_again(mode: TlsMode) -> None:
    driver = greeted(mode)
    ((number, kind, _),) = driver.send(option(Option.STARTTLS, b"x")).replies()
    assert (number, kind) == (Option.STARTTLS, Reply.ERR_INVALID)
    driver.send(STARTTLS)
    assert (driver.end == TlsAsked()) == (mode is not TlsMode.OFF)


@pytest.mark.parametrize("mode", [TlsMode.ALLOWED, TlsMode.REQUIRED])
def test_second_starttls_is_invalid(mode: TlsMode) -> None:
    driver = secured(mode)
    ((number, kind, _),) = driver.send(STARTTLS).replies()
    assert (number, kind) == (Option.STARTTLS, Reply.ERR_INVALID)
    assert driver.handshake.state is State.OPTION


@pytest.mark.parametrize(
    "asked",
    [
        option(Option.LIST),
        option(Option.LIST, b"x"),
        option(Option.INFO, info_data(b"vol")),
        option(Option.GO, info_data(b"vol")),
        option(Option.GO, b"short"),
        option(Option.STRUCTURED_REPLY),
        option(Option.EXTENDED_HEADERS),
        option(Option.LIST_META_CONTEXT, context_data(b"vol")),
        option(Option.SET_META_CONTEXT, context_data(b"vol", b"base:allocation")),
        *(option(number) for number in OTHER_OPTIONS),
    ],
)
def test_every_other_option_needs_tls_where_it_is_required(asked: bytes) -> None:
    driver = greeted(TlsMode.REQUIRED)
    ((_, kind, _),) = driver.send(asked).replies()
    assert kind == Reply.ERR_TLS_REQD
    assert driver.asked == [], "nobody is asked on behalf of a client in plaintext"
    assert driver.send(STARTTLS).replies() == [ACKED]


def test_export_name_without_required_tls_ends_in_silence() -> None:
    driver = greeted(TlsMode.REQUIRED).send(option(Option.EXPORT_NAME, b"vol"))
    assert driver.sent == b""
    assert isinstance(driver.end, Ended)
    assert driver.asked == []


def test_abort_needs_no_tls() -> None:
    driver = greeted(TlsMode.REQUIRED).send(option(Option.ABORT))
    assert driver.replies() == [(Option.ABORT, Reply.ACK, b"")]
    assert isinstance(driver.end, Ended)


def test_export_is_given_in_plaintext_where_tls_is_only_allowed() -> None:
    assert isinstance(greeted(TlsMode.ALLOWED).send(go(b"vol")).end, Agreed)


@pytest.mark.parametrize("behind", [b"\x16", b"I", option(Option.LIST), go(b"vol")])
def test_anything_behind_starttls_ends_the_connection_before_it_is_answered(behind: bytes) -> None:
    driver = greeted(TlsMode.ALLOWED)
    with pytest.raises(HandshakeViolation, match="behind NBD_OPT_STARTTLS"):
        driver.send(STARTTLS + behind)
    assert driver.handshake.data_to_send() == b""
    assert driver.handshake.next_event() is None


def test_nothing_that_was_negotiated_in_plaintext_counts_afterwards() -> None:
    driver = greeted(TlsMode.ALLOWED)
    driver.send(option(Option.STRUCTURED_REPLY))
    driver.send(option(Option.SET_META_CONTEXT, context_data(b"vol", b"base:allocation")))
    driver.replies()
    driver.send(STARTTLS)
    driver.handshake.secured()
    driver.send(go(b"vol"))
    assert isinstance(driver.end, Agreed)
    assert driver.end.terms == Terms(ReplyStyle.SIMPLE, ())


def test_extended_headers_of_the_plaintext_do_not_forbid_export_name() -> None:
    driver = greeted(TlsMode.ALLOWED).send(option(Option.EXTENDED_HEADERS)).send(STARTTLS)
    driver.handshake.secured()
    driver.send(option(Option.EXPORT_NAME, b"vol"))
    assert isinstance(driver.end, Agreed)


def test_starttls_may_come_byte_by_byte() -> None:
    driver = greeted(TlsMode.REQUIRED)
    for position in range(len(STARTTLS)):
        driver.send(STARTTLS[position : position + 1])
    assert driver.replies() == [ACKED]
    assert driver.handshake.state is State.TLS


def test_driver_that_reads_plaintext_or_secures_unasked_is_our_bug() -> None:
    driver = greeted(TlsMode.ALLOWED)
    with pytest.raises(LocalError):
        driver.handshake.secured()
    driver.send(STARTTLS)
    with pytest.raises(LocalError):
        driver.handshake.receive_data(b"x")


OPTIONS = st.sampled_from(
    [
        option(Option.LIST),
        option(Option.LIST, b"x"),
        option(Option.INFO, info_data(b"vol")),
        option(Option.INFO, info_data(b"nope", 1, 3)),
        option(Option.STRUCTURED_REPLY),
        option(Option.EXTENDED_HEADERS),
        option(Option.LIST_META_CONTEXT, context_data(b"vol")),
        option(Option.SET_META_CONTEXT, context_data(b"vol", b"base:allocation")),
        option(Option.SET_META_CONTEXT, b"short"),
        option(77, b"unknown"),
    ]
)
LAST = st.sampled_from([go(b"vol"), option(Option.EXPORT_NAME, b"vol"), option(Option.ABORT)])


@settings(deadline=None, max_examples=80)
@given(before=st.lists(OPTIONS, max_size=8), after=st.lists(OPTIONS, max_size=8), last=LAST)
def test_whatever_came_in_plaintext_changes_no_answer_after_starttls(
    before: list[bytes], after: list[bytes], last: bytes
) -> None:
    fresh, used = secured(TlsMode.ALLOWED), greeted(TlsMode.ALLOWED)
    for each in before:
        used.send(each)
    used.send(STARTTLS)
    used.handshake.secured()
    used.sent.clear()
    assert outcome(fresh, [*after, last]) == outcome(used, [*after, last])


def outcome(driver: Driver, options: list[bytes]) -> tuple[bytes, object]:
    """What is sent, and how it ends: EXPORT_NAME after extended headers is a violation."""
    driver.end = None
    try:
        for each in options:
            driver.send(each)
    except HandshakeViolation as violation:
        return bytes(driver.sent), str(violation)
    return bytes(driver.sent), driver.end


@settings(deadline=None, max_examples=40)
@given(before=st.lists(OPTIONS, max_size=12))
def test_required_tls_asks_nobody_and_tells_nothing_before_it(before: list[bytes]) -> None:
    driver = greeted(TlsMode.REQUIRED).send(b"".join(before))
    kinds = [kind for _, kind, _ in driver.replies()]
    assert kinds == [Reply.ERR_TLS_REQD] * len(before)
    assert (driver.asked, driver.end) == ([], None)
    assert driver.handshake._negotiated == Handshake()._negotiated

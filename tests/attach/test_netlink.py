"""Netlink messages byte for byte (little-endian, as on every machine this is tested on)."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.attach import netlink
from repl.attach.nbd_control import NETLINK_GENERIC
from repl.attach.netlink import Message
from tests.attach.recorded import ACKNOWLEDGEMENT, FAMILY_ANSWER


def message(payload: bytes, kind: int = 32) -> Message:
    return Message(kind, 0, 1, payload)


def test_family_question_has_the_bytes_of_the_interface() -> None:
    assert netlink.family_request("nbd", 7) == bytes.fromhex(
        "1c000000"  # 28 bytes
        "1000"  # to the family of families
        "0500"  # a request that wants an acknowledgement
        "07000000"
        "00000000"
        "03010000"  # CTRL_CMD_GETFAMILY, version 1
        "08000200"  # CTRL_ATTR_FAMILY_NAME
        "6e626400"
    )


def test_attributes_are_padded_and_lengths_are_not() -> None:
    assert netlink.attribute(3, b"abcde") == bytes.fromhex("09000300") + b"abcde" + bytes(3)
    assert netlink.u32(1, 2) == bytes.fromhex("0800010002000000")
    assert netlink.u64(4, 10) == bytes.fromhex("0c0004000a00000000000000")
    assert netlink.string(10, "r0") == bytes.fromhex("07000a00723000") + bytes(1)
    assert netlink.nested(7, [netlink.u32(1, 5)]) == bytes.fromhex("0c0007800800010005000000")


def test_family_answer_of_a_kernel_is_understood() -> None:
    answer, done = netlink.messages_in(FAMILY_ANSWER + ACKNOWLEDGEMENT)
    family = netlink.family_in(netlink.command_in(answer))
    assert (family.number, family.groups) == (32, {"nbd_mc_group": 9})
    assert (answer.sequence, done.sequence, netlink.error_in(done)) == (7, 7, 0)


def test_this_kernel_answers_the_question_for_its_families() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as kernel:
        kernel.settimeout(10)
        kernel.send(netlink.family_request("nlctrl", 3))
        answer, *_ = netlink.messages_in(kernel.recv(1 << 16))
        family = netlink.family_in(netlink.command_in(answer))
        assert family.number == netlink.CTRL_FAMILY
        kernel.send(netlink.family_request("no-such-family", 4))
        received = [m for m in netlink.messages_in(kernel.recv(1 << 16)) if m.sequence == 4]
        if not received:
            received = netlink.messages_in(kernel.recv(1 << 16))
        assert netlink.error_in(received[0]) == 2  # ENOENT


def test_several_messages_of_one_receive_are_told_apart() -> None:
    first = netlink.request(32, 1, 4, [netlink.string(1, "abc")], 1)
    second = netlink.request(33, 1, 5, [], 2)
    assert [(m.kind, m.sequence) for m in netlink.messages_in(first + second)] == [(32, 1), (33, 2)]


def test_acknowledgement_and_refusal_are_told_apart() -> None:
    request = netlink.request(32, 1, 1, [], 1)[:16]
    assert netlink.error_in(message(bytes(4) + request, netlink.NLMSG_ERROR)) == 0
    refusal = (-22).to_bytes(4, "little", signed=True) + request
    assert netlink.error_in(message(refusal, netlink.NLMSG_ERROR)) == 22


@pytest.mark.parametrize(
    "datagram",
    [
        b"\x10",
        bytes.fromhex("0f000000 1000 0500 07000000 00000000"),
        bytes.fromhex("11000000 1000 0500 07000000 00000000"),
        bytes.fromhex("ffffffff 1000 0500 07000000 00000000"),
    ],
)
def test_message_of_a_wrong_length_is_refused(datagram: bytes) -> None:
    with pytest.raises(netlink.MalformedMessage):
        netlink.messages_in(datagram)


@pytest.mark.parametrize(
    "payload", [b"\x01", bytes(4) + b"\x08\x00", bytes(4) + b"\x03\x00\x01\x00", b"\xff" * 12]
)
def test_command_of_a_wrong_length_is_refused(payload: bytes) -> None:
    with pytest.raises(netlink.MalformedMessage):
        netlink.command_in(message(payload))


def test_answer_without_what_was_asked_is_refused() -> None:
    empty = netlink.command_in(message(bytes(4)))
    with pytest.raises(netlink.MalformedMessage):
        netlink.family_in(empty)
    with pytest.raises(netlink.MalformedMessage):
        netlink.u32_in(b"\0\0")
    with pytest.raises(netlink.MalformedMessage):
        netlink.error_in(message(bytes(4), kind=32))


@given(st.binary(max_size=80))
def test_no_bytes_at_all_break_the_parser(data: bytes) -> None:
    try:
        for each in netlink.messages_in(data):
            netlink.family_in(netlink.command_in(each))
    except netlink.MalformedMessage:
        pass


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), max_size=6))
def test_attributes_come_back_as_they_were_sent(attributes: list[tuple[int, bytes]]) -> None:
    packed = [netlink.attribute(kind, value) for kind, value in attributes]
    (sent,) = netlink.messages_in(netlink.request(40, 1, 9, packed, 5))
    command = netlink.command_in(sent)
    assert (command.command, list(command.attributes)) == (9, attributes)

"""The nbd family's messages byte for byte (little-endian)."""

from __future__ import annotations

import pytest

from repl.attach import nbd_netlink, netlink
from repl.attach.nbd_netlink import DeviceSettings

SETTINGS = DeviceSettings(
    size_bytes=1 << 26,
    block_bytes=512,
    server_flags=0x16D,
    request_timeout_s=10,
    dead_conn_timeout_s=86_400,
    backend="r0",
)


def test_connect_has_the_bytes_of_the_interface() -> None:
    assert nbd_netlink.connect(32, SETTINGS, [5, 6], 9) == bytes.fromhex(
        "74000000 2000 0500 09000000 00000000"
        "01010000"  # NBD_CMD_CONNECT, version 1
        "0c000200 0000000400000000"  # NBD_ATTR_SIZE_BYTES
        "0c000300 0002000000000000"  # NBD_ATTR_BLOCK_SIZE_BYTES
        "0c000400 0a00000000000000"  # NBD_ATTR_TIMEOUT
        "0c000500 6d01000000000000"  # NBD_ATTR_SERVER_FLAGS
        "0c000800 8051010000000000"  # NBD_ATTR_DEAD_CONN_TIMEOUT
        "07000a00 72300000"  # NBD_ATTR_BACKEND_IDENTIFIER
        "1c000780"  # NBD_ATTR_SOCKETS
        "0c000180 0800010005000000"  # NBD_SOCK_ITEM with NBD_SOCK_FD
        "0c000180 0800010006000000"
    )


def test_reconfigure_names_device_backend_and_sockets() -> None:
    assert nbd_netlink.reconfigure(32, 3, "r0", [7], 2) == bytes.fromhex(
        "34000000 2000 0500 02000000 00000000"
        "03010000"  # NBD_CMD_RECONFIGURE
        "08000100 03000000"  # NBD_ATTR_INDEX
        "07000a00 72300000"
        "10000780 0c000180 0800010007000000"
    )


def test_reconfigure_can_change_the_size() -> None:
    request = nbd_netlink.reconfigure(32, 0, "r0", [], 1, size_bytes=4096)
    (sent,) = netlink.messages_in(request)
    kinds = [kind for kind, _ in netlink.command_in(sent).attributes]
    assert kinds == [
        nbd_netlink.ATTR_INDEX,
        nbd_netlink.ATTR_BACKEND_IDENTIFIER,
        nbd_netlink.ATTR_SIZE_BYTES,
    ]


def test_disconnect_names_the_device() -> None:
    assert nbd_netlink.disconnect(32, 1, 4) == bytes.fromhex(
        "1c000000 2000 0500 04000000 00000000 02010000 08000100 01000000"
    )


def test_device_number_is_read_from_answers_and_events() -> None:
    datagram = netlink.request(32, 1, nbd_netlink.CMD_LINK_DEAD, [netlink.u32(1, 12)], 0)
    (event,) = netlink.messages_in(datagram)
    assert nbd_netlink.device_in(netlink.command_in(event)) == 12
    (nothing,) = netlink.messages_in(netlink.request(32, 1, 4, [], 0))
    with pytest.raises(netlink.MalformedMessage):
        nbd_netlink.device_in(netlink.command_in(nothing))

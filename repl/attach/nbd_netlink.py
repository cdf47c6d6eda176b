"""The messages of the kernel's family `nbd`, sans-IO: what to ask of it, what it says.

Owns the numbers of that interface and which attributes go with which command. It opens no socket
and decides nothing.

What the kernel does with them, as far as it matters to who calls (Linux 5.19 and newer,
drivers/block/nbd.c):

- CONNECT gives a free device the sockets, which must already be in transmission, and starts it.
- RECONFIGURE puts each socket in the place of a dead one; one that finds no dead one is dropped
  without a word. It is refused unless it names the backend that CONNECT named.
- A socket is dead when a receive or a send fails on it or a request on it times out. New requests
  then wait up to the dead-connection timeout for RECONFIGURE. Requests that were sent over it wait
  for their own timer, the request timeout, before they are sent again. A device none of whose
  sockets was replaced in time fails every request.
- LINK_DEAD is sent to a multicast group for each socket that dies, not for a wanted disconnection.

Source: Linux include/uapi/linux/nbd-netlink.h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from repl.attach import netlink

FAMILY_NAME: Final = "nbd"
VERSION: Final = 1
EVENT_GROUP: Final = "nbd_mc_group"

CMD_CONNECT: Final = 1
CMD_DISCONNECT: Final = 2
CMD_RECONFIGURE: Final = 3
CMD_LINK_DEAD: Final = 4

ATTR_INDEX: Final = 1
ATTR_SIZE_BYTES: Final = 2
ATTR_BLOCK_SIZE_BYTES: Final = 3
ATTR_TIMEOUT: Final = 4
ATTR_SERVER_FLAGS: Final = 5
ATTR_SOCKETS: Final = 7
ATTR_DEAD_CONN_TIMEOUT: Final = 8
ATTR_BACKEND_IDENTIFIER: Final = 10
SOCK_ITEM: Final = 1
SOCK_FD: Final = 1


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """What a device is made of, beside its sockets.

    `server_flags` are the transmission flags that the server gave, `backend` a name that later
    commands must repeat. The timeouts are whole seconds, the kernel's unit.
    """

    size_bytes: int
    block_bytes: int
    server_flags: int
    request_timeout_s: int
    dead_conn_timeout_s: int
    backend: str


def connect(
    family: int, settings: DeviceSettings, descriptors: Sequence[int], sequence: int
) -> bytes:
    """Make the next free device out of connected sockets; `device_in` reads the answer."""
    attributes = [
        netlink.u64(ATTR_SIZE_BYTES, settings.size_bytes),
        netlink.u64(ATTR_BLOCK_SIZE_BYTES, settings.block_bytes),
        netlink.u64(ATTR_TIMEOUT, settings.request_timeout_s),
        netlink.u64(ATTR_SERVER_FLAGS, settings.server_flags),
        netlink.u64(ATTR_DEAD_CONN_TIMEOUT, settings.dead_conn_timeout_s),
        netlink.string(ATTR_BACKEND_IDENTIFIER, settings.backend),
        _sockets(descriptors),
    ]
    return netlink.request(family, VERSION, CMD_CONNECT, attributes, sequence)


def reconfigure(
    family: int,
    index: int,
    backend: str,
    descriptors: Sequence[int],
    sequence: int,
    size_bytes: int | None = None,
) -> bytes:
    """Put sockets in the place of dead ones; change the device's size if one is given."""
    attributes = [
        netlink.u32(ATTR_INDEX, index),
        netlink.string(ATTR_BACKEND_IDENTIFIER, backend),
    ]
    if size_bytes is not None:
        attributes.append(netlink.u64(ATTR_SIZE_BYTES, size_bytes))
    if descriptors:
        attributes.append(_sockets(descriptors))
    return netlink.request(family, VERSION, CMD_RECONFIGURE, attributes, sequence)


def disconnect(family: int, index: int, sequence: int) -> bytes:
    """Take the device down: its requests fail, its sockets say goodbye and are shut down."""
    attributes = [netlink.u32(ATTR_INDEX, index)]
    return netlink.request(family, VERSION, CMD_DISCONNECT, attributes, sequence)


def device_in(command: netlink.Command) -> int:
    """Return the device's number out of an answer to CONNECT, or out of LINK_DEAD.

    Raises netlink.MalformedMessage.
    """
    return netlink.u32_in(command.first(ATTR_INDEX))


def _sockets(descriptors: Sequence[int]) -> bytes:
    items = (
        netlink.nested(SOCK_ITEM, [netlink.u32(SOCK_FD, descriptor)]) for descriptor in descriptors
    )
    return netlink.nested(ATTR_SOCKETS, items)

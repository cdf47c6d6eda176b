"""Generic netlink messages, sans-IO: bytes out of requests, fields out of answers.

Owns the framing that every generic netlink family shares: the message header, the family's header,
attributes, acknowledgements, and the question for a family's number. It knows nothing of nbd, opens
no socket, and trusts no length: what does not add up is a `MalformedMessage`.

Everything is in the machine's own byte order and padded to four bytes.

Source: Linux include/uapi/linux/netlink.h and genetlink.h; Documentation/userspace-api/netlink.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Final

ALIGN_BYTES: Final = 4

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST: Final = 1
NLM_F_ACK: Final = 4

NLA_F_NESTED: Final = 1 << 15
NLA_TYPE_MASK: Final = 0x3FFF

#: The family that tells the numbers of the others, and what it is asked here.
CTRL_FAMILY: Final = 0x10
CTRL_VERSION: Final = 1
CTRL_CMD_GETFAMILY: Final = 3
CTRL_ATTR_FAMILY_ID: Final = 1
CTRL_ATTR_FAMILY_NAME: Final = 2
CTRL_ATTR_MCAST_GROUPS: Final = 7
CTRL_ATTR_MCAST_GRP_NAME: Final = 1
CTRL_ATTR_MCAST_GRP_ID: Final = 2

_MESSAGE: Final = Struct("=IHHII")  # length, kind, flags, sequence, port
_GENERIC: Final = Struct("=BBH")  # command, version, reserved
_ATTRIBUTE: Final = Struct("=HH")  # length, kind
_ERROR: Final = Struct("=i")  # negative errno; the request's header follows
_U16: Final = Struct("=H")
_U32: Final = Struct("=I")
_U64: Final = Struct("=Q")


class MalformedMessage(ValueError):
    """What came is no netlink message of the kind that was due; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message: `kind` is a family's number or NLMSG_*, `payload` what follows."""

    kind: int
    flags: int
    sequence: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Command:
    """The payload of a family's message: its command and its attributes, in their order."""

    command: int
    attributes: tuple[tuple[int, bytes], ...]

    def first(self, kind: int) -> bytes | None:
        """Return the value of the first attribute of this kind."""
        return next((value for each, value in self.attributes if each == kind), None)


@dataclass(frozen=True, slots=True)
class Family:
    """A family's number and its multicast groups by name."""

    number: int
    groups: dict[str, int]


# Out.


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % ALIGN_BYTES)


def u32(kind: int, value: int) -> bytes:
    """Return an attribute that holds 32 bits."""
    return attribute(kind, _U32.pack(value))


def u64(kind: int, value: int) -> bytes:
    """Return an attribute that holds 64 bits."""
    return attribute(kind, _U64.pack(value))


def string(kind: int, text: str) -> bytes:
    """Return an attribute that holds a text and the NUL that ends it."""
    return attribute(kind, text.encode() + b"\0")


def nested(kind: int, parts: Iterable[bytes]) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(parts))


def request(
    family: int, version: int, command: int, attributes: Iterable[bytes], sequence: int
) -> bytes:
    """Return a message that asks `family` for `command` and for an acknowledgement."""
    payload = _GENERIC.pack(command, version, 0) + b"".join(attributes)
    header = _MESSAGE.pack(
        _MESSAGE.size + len(payload), family, NLM_F_REQUEST | NLM_F_ACK, sequence, 0
    )
    return header + payload


def family_request(name: str, sequence: int) -> bytes:
    """Return the question for a family's number; `family_in` reads the answer."""
    return request(
        CTRL_FAMILY,
        CTRL_VERSION,
        CTRL_CMD_GETFAMILY,
        [string(CTRL_ATTR_FAMILY_NAME, name)],
        sequence,
    )


# In.


def messages_in(datagram: bytes) -> list[Message]:
    """Return the messages of what one receive gave. Raises MalformedMessage."""
    messages = []
    position = 0
    while position < len(datagram):
        if len(datagram) - position < _MESSAGE.size:
            raise MalformedMessage("a netlink message ends inside its header")
        length, kind, flags, sequence, _port = _MESSAGE.unpack_from(datagram, position)
        if not _MESSAGE.size <= length <= len(datagram) - position:
            raise MalformedMessage(f"a netlink message claims {length} bytes")
        payload = datagram[position + _MESSAGE.size : position + length]
        messages.append(Message(kind, flags, sequence, payload))
        position += length + -length % ALIGN_BYTES
    return messages


def attributes_in(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind (without its flags) and value of each attribute. Raises MalformedMessage."""
    position = 0
    while position < len(data):
        if len(data) - position < _ATTRIBUTE.size:
            raise MalformedMessage("an attribute ends inside its header")
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if not _ATTRIBUTE.size <= length <= len(data) - position:
            raise MalformedMessage(f"an attribute claims {length} bytes")
        yield kind & NLA_TYPE_MASK, data[position + _ATTRIBUTE.size : position + length]
        position += length + -length % ALIGN_BYTES


def command_in(message: Message) -> Command:
    """Read a family's message. Raises MalformedMessage."""
    if len(message.payload) < _GENERIC.size:
        raise MalformedMessage("a generic netlink message ends inside its header")
    command, _version, _reserved = _GENERIC.unpack_from(message.payload)
    return Command(command, tuple(attributes_in(message.payload[_GENERIC.size :])))


def error_in(message: Message) -> int:
    """Return the errno of an NLMSG_ERROR, 0 for an acknowledgement. Raises MalformedMessage."""
    if message.kind != NLMSG_ERROR or len(message.payload) < _ERROR.size:
        raise MalformedMessage(f"message of kind {message.kind} where an answer was due")
    (error,) = _ERROR.unpack_from(message.payload)
    return -int(error)


def u32_in(value: bytes | None) -> int:
    """Read 32 bits. Raises MalformedMessage for an attribute that is missing or of another size."""
    if value is None or len(value) != _U32.size:
        raise MalformedMessage("an attribute of four bytes is missing")
    return int(_U32.unpack(value)[0])


def family_in(command: Command) -> Family:
    """Read the answer to `family_request`. Raises MalformedMessage."""
    number = command.first(CTRL_ATTR_FAMILY_ID)
    if number is None or len(number) != _U16.size:
        raise MalformedMessage("a family without its number")
    groups = {}
    for _, group in attributes_in(command.first(CTRL_ATTR_MCAST_GROUPS) or b""):
        fields = dict(attributes_in(group))
        name = fields.get(CTRL_ATTR_MCAST_GRP_NAME, b"").rstrip(b"\0").decode(errors="replace")
        groups[name] = u32_in(fields.get(CTRL_ATTR_MCAST_GRP_ID))
    return Family(int(_U16.unpack(number)[0]), groups)

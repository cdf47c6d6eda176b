"""The fixed-size clear preamble that opens every peer connection, before any frame.

The dialer sends it first; the acceptor's supervisor reads exactly these bytes, routes the
connection to the volume's worker, and answers nothing. Layout in PROTOCOL.md. Pure: no sockets.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from crc32c import crc32c

from repl.core import wire

PREAMBLE_BYTES = 256
MAGIC = b"REPLPEER"
VERSION = 1
NAME_BYTES = 64
FLAG_TLS = 1

_LAYOUT = struct.Struct(">8sHH64s64s64s48xI")
assert _LAYOUT.size == PREAMBLE_BYTES


class PreambleError(Exception):
    """The peer's first bytes are not a preamble that this version understands."""


@dataclass(frozen=True, slots=True)
class Preamble:
    """Who calls whom, about which volume."""

    volume: str
    sender: str
    expected: str
    #: Whether TLS begins right behind the preamble.
    tls: bool = False


def encode(preamble: Preamble) -> bytes:
    """Return the 256 bytes that open a connection."""
    body = _LAYOUT.pack(
        MAGIC,
        VERSION,
        FLAG_TLS if preamble.tls else 0,
        _name(preamble.volume),
        _name(preamble.sender),
        _name(preamble.expected),
        0,
    )[:-4]
    return body + struct.pack(">I", crc32c(body))


def decode(data: bytes) -> Preamble:
    """Parse 256 bytes; raise `PreambleError` with a sentence that says what is wrong."""
    if len(data) != PREAMBLE_BYTES:
        raise PreambleError(f"a preamble has {PREAMBLE_BYTES} bytes, not {len(data)}")
    magic, version, flags, volume, sender, expected, checksum = _LAYOUT.unpack(data)
    if magic != MAGIC:
        raise PreambleError("the connection does not begin with a peer preamble")
    if version != VERSION:
        raise PreambleError(f"the preamble has version {version}, this node speaks {VERSION}")
    if crc32c(data[:-4]) != checksum:
        raise PreambleError("the preamble's checksum is wrong")
    if flags & ~FLAG_TLS:
        raise PreambleError(f"the preamble has flags that this node does not know: {flags:#x}")
    return Preamble(_text(volume), _text(sender), _text(expected), bool(flags & FLAG_TLS))


def encode_refusal(code: str, sentence: str) -> bytes:
    """Return the one frame with which an acceptor refuses a preamble before it closes."""
    return wire.encode_control(wire.Type.GOODBYE, {"code": code, "sentence": sentence})


def _name(text: str) -> bytes:
    raw = text.encode("ascii")
    assert 0 < len(raw) < NAME_BYTES, text
    return raw


def _text(raw: bytes) -> str:
    name = raw.rstrip(b"\0")
    if not name or not all(33 <= byte < 127 for byte in name):
        raise PreambleError("a name in the preamble is empty or not printable ASCII")
    return name.decode("ascii")

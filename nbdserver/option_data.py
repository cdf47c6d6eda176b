"""The data of options and of their replies, as pure functions: bytes to values and back.

Every length that a client gives is checked against what is there before it is used, and the parts
must add up to the whole. A violation here leaves the stream in step: whoever calls answers with an
error reply. Only names travel into the rest of the program: UTF-8, bounded, without NUL.

Spec: proto.md, "Option types", "Values", "Terminology" (strings).
"""

from __future__ import annotations

from collections.abc import Sequence

from nbdserver.errors import HandshakeViolation
from nbdserver.export import ExportInfo
from nbdserver.protocol import (
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    STRING_BYTES_MAX,
    U16,
    U32,
    Info,
)


def name_from(encoded: bytes, what: str = "name") -> str:
    """A string of the protocol. Raises HandshakeViolation if the protocol forbids such a one."""
    if len(encoded) > STRING_BYTES_MAX:
        raise HandshakeViolation(f"{what} of {len(encoded)} bytes is over {STRING_BYTES_MAX}")
    if b"\0" in encoded:
        raise HandshakeViolation(f"{what} contains a NUL byte")
    try:
        return encoded.decode()
    except UnicodeDecodeError as error:
        raise HandshakeViolation(f"{what} is not UTF-8") from error


def parse_info_request(option_data: bytes) -> tuple[str, frozenset[int]]:
    """Data of INFO and GO: u32 name length, name, u16 count, count x u16 information request.

    Raises HandshakeViolation.
    """
    if len(option_data) < U32.size + U16.size:
        raise HandshakeViolation("data too short for a name and a count")
    (name_bytes,) = U32.unpack_from(option_data)
    if name_bytes > len(option_data) - U32.size - U16.size:
        raise HandshakeViolation(f"name of {name_bytes} bytes does not fit in the data")
    name_end = U32.size + name_bytes
    (count,) = U16.unpack_from(option_data, name_end)
    infos_start = name_end + U16.size
    if len(option_data) - infos_start != count * U16.size:
        raise HandshakeViolation(f"data does not end after {count} information requests")
    name = name_from(option_data[U32.size : name_end])
    return name, frozenset(info for (info,) in U16.iter_unpack(option_data[infos_start:]))


def parse_context_queries(option_data: bytes) -> tuple[str, tuple[str, ...]]:
    """Data of LIST and SET_META_CONTEXT: the export's name and the queries, each u32 length and
    string, with a u32 count before the queries. Raises HandshakeViolation."""
    encoded_name, position = _string_at(option_data, 0, "name")
    if len(option_data) - position < U32.size:
        raise HandshakeViolation("data too short for a count of queries")
    (count,) = U32.unpack_from(option_data, position)
    position += U32.size
    queries = []
    for _ in range(count):
        # A count that lies ends at the first query that is not there.
        encoded, position = _string_at(option_data, position, "query")
        queries.append(name_from(encoded, "query"))
    if position != len(option_data):
        raise HandshakeViolation(f"data does not end after {count} queries")
    return name_from(encoded_name), tuple(queries)


def _string_at(option_data: bytes, position: int, what: str) -> tuple[bytes, int]:
    """A u32 length and as many bytes; (the bytes, where they end)."""
    left = len(option_data) - position - U32.size
    if left < 0:
        raise HandshakeViolation(f"data too short for a {what}")
    (length,) = U32.unpack_from(option_data, position)
    if length > left:
        raise HandshakeViolation(f"{what} of {length} bytes does not fit in the data")
    start = position + U32.size
    return option_data[start : start + length], start + length


def info_replies(export: ExportInfo, flags: int, requested: frozenset[int]) -> Sequence[bytes]:
    """The data of each NBD_REP_INFO. EXPORT is mandatory and block sizes are worth telling all."""
    infos = [
        INFO_EXPORT.pack(Info.EXPORT, export.size_bytes, flags),
        INFO_BLOCK_SIZE.pack(
            Info.BLOCK_SIZE,
            export.minimum_block_bytes,
            export.preferred_block_bytes,
            export.maximum_block_bytes,
        ),
    ]
    if Info.NAME in requested:
        infos.append(U16.pack(Info.NAME) + export.name.encode())
    if Info.DESCRIPTION in requested and export.description:
        infos.append(U16.pack(Info.DESCRIPTION) + export.description.encode())
    return infos


def server_reply(name: str, description: str) -> bytes:
    """The data of an NBD_REP_SERVER."""
    encoded = name.encode()
    return U32.pack(len(encoded)) + encoded + description.encode()


def error_text(message: str) -> bytes:
    """A sentence as an error reply may carry it: a cut never leaves half a character."""
    return message.encode()[:STRING_BYTES_MAX].decode(errors="ignore").encode()


def printable(name: str) -> str:
    """A client's string as it may appear in a log: one line, bounded."""
    return ascii(name if len(name) <= 200 else name[:200] + "…")

"""What the NBD specification says of a client's options: which replies each gets, how it ends.

Shares no code with `nbdserver`: written from proto.md and its branch extension-ext-header.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from nbdserver.export import ExportInfo

CONTEXTS = ("base:allocation", "x-repl:out-of-sync:beta", "x-repl:out-of-sync:gamma")
EXPORTS = {
    "": ExportInfo("vol", 1 << 20, description="a disk", contexts=CONTEXTS),
    "vol": ExportInfo("vol", 1 << 20, description="a disk", contexts=CONTEXTS),
    "ro": ExportInfo("ro", (1 << 63) - 1, read_only=True, can_multi_conn=True),
    "größe": ExportInfo("größe", 512, minimum_block_bytes=512, can_fast_zero=True),
}
OPTION_BYTES_MAX = 8 << 10
OPTIONS_MAX = 24
ACK, SERVER, INFO, META = 1, 2, 3, 4
UNSUP, INVALID, UNKNOWN, EXT_REQD = (1 << 31 | number for number in (1, 3, 6, 10))
TLS_REQD = 1 << 31 | 5
OK_TO_REFUSE_TLS = {1 << 31 | number for number in (1, 2)}


@dataclass
class Expected:
    """What the protocol says of a stream: the final reply of each option, and how it ends."""

    finals: list[tuple[int, set[int]]] = field(default_factory=list)
    datas: list[bytes] = field(default_factory=list)
    violated: bool = False
    agreed: str | None = None
    by_name: bool = False
    ended: bool = False
    style: str = "simple"
    selected: tuple[str | None, frozenset[str]] = (None, frozenset())
    rest: bytes = b""
    #: "off", "allowed" or "required"; whether it has begun, and where in the stream it does.
    tls: str = "off"
    secured: bool = False
    cut: int | None = None


def _name_of(data: bytes) -> str | None:
    try:
        name = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in name or len(data) > 4096 else name


def _info(data: bytes) -> str | None:
    """The name that INFO or GO asks for, None for data that is not well formed."""
    if len(data) < 6:
        return None
    (length,) = struct.unpack_from(">I", data)
    if length > len(data) - 6:
        return None
    (count,) = struct.unpack_from(">H", data, 4 + length)
    return _name_of(data[4 : 4 + length]) if len(data) == 6 + length + 2 * count else None


def _queries(data: bytes) -> tuple[str, list[str]] | None:
    """The name and queries of LIST and SET_META_CONTEXT, None for data that is not well formed."""
    texts: list[str] = []
    position, count = 0, -1
    while count < 0 or len(texts) <= count:
        if len(data) < position + 4:
            return None
        (length,) = struct.unpack_from(">I", data, position)
        text = _name_of(data[position + 4 : position + 4 + length])
        if len(data) < position + 4 + length or text is None:
            return None
        texts.append(text)
        position += 4 + length
        if count < 0:
            if len(data) < position + 4:
                return None
            (count,) = struct.unpack_from(">I", data, position)
            position += 4
    return (texts[0], texts[1:]) if position == len(data) else None


def expected(stream: bytes, tls: str = "off", *, injected: bool = False) -> Expected:
    """Follow the stream as the specification does.

    `injected` says that what is behind a STARTTLS was sent in plaintext with it.
    """
    found = Expected(tls=tls)
    if len(stream) < 4:
        return found
    (flags,) = struct.unpack_from(">I", stream)
    if flags > 3:
        found.violated = True
        return found
    position = 4
    while not (found.violated or found.ended or found.agreed is not None):
        if len(stream) < position + 16:
            return found
        magic, number, length = struct.unpack_from(">8sII", stream, position)
        found.violated = (
            magic != b"IHAVEOPT" or length > OPTION_BYTES_MAX or not (flags & 1 or number == 1)
        )
        position += 16
        if found.violated or len(stream) < position + length:
            return found
        if len(found.datas) == OPTIONS_MAX:
            found.violated = True
            return found
        data = stream[position : position + length]
        position += length
        found.datas.append(data)
        _option(found, number, data)
        found.rest = stream[position:]
        if found.secured and found.cut is None:
            found.cut = position
            if injected and found.rest:
                # Nothing is said to whoever sent it.
                found.finals.pop()
                found.violated = True
    return found


def _option(found: Expected, number: int, data: bytes) -> None:
    """What one complete option must get, and what it changes."""
    if found.tls == "required" and not found.secured and number not in (2, 5):
        if number == 1:
            found.ended = True
        else:
            found.finals.append((number, {TLS_REQD}))
        return
    if number == 1:
        name = _name_of(data)
        found.violated = found.style == "extended" or name is None
        found.agreed = name if name in EXPORTS and not found.violated else None
        found.by_name = True
        found.ended = not found.violated and name not in EXPORTS
        return
    final = _FINALS[number](found, data) if number in _FINALS else {UNSUP}
    found.finals.append((number, final))
    if number == 2:
        found.ended = True
    elif number == 7 and final == {ACK}:
        found.agreed = _info(data)
    elif number == 10:
        found.selected = (None, frozenset())
        if final == {ACK}:
            name, queries = _queries(data) or ("", [])
            found.selected = name, frozenset(EXPORTS[name].contexts) & frozenset(queries)


def _starttls(found: Expected, data: bytes) -> set[int]:
    if data or found.secured:
        return {INVALID}
    if found.tls == "off":
        return OK_TO_REFUSE_TLS
    # Whatever was agreed on before may have been said by anybody.
    found.secured, found.style, found.selected = True, "simple", (None, frozenset())
    return {ACK}


def _asked(found: Expected, data: bytes) -> set[int]:
    name = _info(data)
    return {INVALID} if name is None else {ACK} if name in EXPORTS else {UNKNOWN}


def _contexts(found: Expected, data: bytes) -> set[int]:
    asked = _queries(data)
    if asked is None or found.style == "simple":
        return {INVALID}
    return {ACK} if asked[0] in EXPORTS else {UNKNOWN}


def _structured(found: Expected, data: bytes) -> set[int]:
    if data:
        return {INVALID}
    if found.style == "extended":
        return {EXT_REQD}
    found.style = "structured"
    return {ACK}


def _extended(found: Expected, data: bytes) -> set[int]:
    if not data:
        found.style = "extended"
    return {INVALID} if data else {ACK}


_FINALS: dict[int, Callable[[Expected, bytes], set[int]]] = {
    2: lambda _found, _data: {ACK},
    3: lambda _found, data: {INVALID} if data else {ACK},
    5: _starttls,
    6: _asked,
    7: _asked,
    8: _structured,
    9: _contexts,
    10: _contexts,
    11: _extended,
}

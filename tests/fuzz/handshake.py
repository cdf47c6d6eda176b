"""Fuzz target: the NBD handshake, from the client's first byte to the agreement.

Claims: nothing but `ClientError` escapes, every option gets the replies that the protocol's model
below says, each well formed; the same bytes in other pieces, answered sooner or later, give the
same bytes back; no more is kept than the limits allow; an agreement survives its way as JSON.

The model is written from proto.md and shares no code with the handshake.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nbdserver import terms
from nbdserver.errors import HandshakeViolation
from nbdserver.export import ExportInfo, Refusal
from nbdserver.handshake import Agreed, Ended, Event, ExportAsked, Handshake, ListAsked
from nbdserver.limits import Limits
from nbdserver.protocol import Reply
from tests.fuzz.grammar import Grammar
from tests.fuzz.inputs import claim, parted, pieces, sentence, whole
from tests.nbdserver.wire import OptionReply, context_data, info_data, option, option_replies

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
OK_TO_REFUSE_TLS = {1 << 31 | number for number in (1, 2)}


@dataclass
class Said:
    """What came of one conversation."""

    sent: bytearray = field(default_factory=bytearray)
    asked: list[object] = field(default_factory=list)
    violation: str = ""
    end: Agreed | Ended | None = None
    leftover: bytes = b""


class _Conversation:
    """A handshake, its driver's answers, and what it keeps."""

    def __init__(self, parts: Sequence[bytes], chance: random.Random | None) -> None:
        limits = Limits(options=OPTIONS_MAX, option_bytes=OPTION_BYTES_MAX, waiting_bytes=16 << 20)
        self.handshake = Handshake(limits)
        self.said = Said()
        self._waiting: list[Event] = []
        self._chance = chance
        for part in parts:
            self._take(part)
        self._pump(at_once=True)

    def _take(self, part: bytes) -> None:
        said, handshake = self.said, self.handshake
        if said.end is not None or said.violation:
            said.leftover += part
            return
        try:
            handshake.receive_data(part)
            self._pump(at_once=self._chance is None or self._chance.random() < 0.7)
        except HandshakeViolation as violation:
            self._violated(violation)
        if not self._waiting and said.end is None:
            kept = len(handshake._received)
            claim(kept < OPTION_BYTES_MAX + 16 or said.violation, f"keeps {kept} bytes")

    def _violated(self, violation: HandshakeViolation) -> None:
        sentence(str(violation))
        self.said.violation = str(violation)
        self.said.sent += self.handshake.data_to_send()

    def _pump(self, *, at_once: bool) -> None:
        said, handshake = self.said, self.handshake
        try:
            while event := (self._waiting.pop() if self._waiting else handshake.next_event()):
                if isinstance(event, Agreed | Ended):
                    said.end = event
                elif not at_once:
                    self._waiting.append(event)
                    return
                else:
                    self._answer(event)
        except HandshakeViolation as violation:
            self._violated(violation)
        said.sent += handshake.data_to_send()

    def _answer(self, event: Event) -> None:
        self.said.asked.append(event)
        if isinstance(event, ListAsked):
            self.handshake.listed([(name, each.description) for name, each in EXPORTS.items()])
        elif isinstance(event, ExportAsked) and event.name in EXPORTS:
            self.handshake.found(EXPORTS[event.name])
        else:
            self.handshake.refuse(Refusal(Reply.ERR_UNKNOWN, "there is no such export"))


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


def expected(stream: bytes) -> Expected:
    """Follow the stream as the specification does."""
    found = Expected()
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
    return found


def _option(found: Expected, number: int, data: bytes) -> None:
    """What one complete option must get, and what it changes."""
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
    5: lambda _found, data: {INVALID} if data else OK_TO_REFUSE_TLS,
    6: _asked,
    7: _asked,
    8: _structured,
    9: _contexts,
    10: _contexts,
    11: _extended,
}


def _check_replies(said: Said, model: Expected) -> None:
    """Every option has exactly its replies, in order and well formed."""
    claim(said.sent[:18] == b"NBDMAGICIHAVEOPT\0\3", "the greeting is another")
    received = bytes(said.sent[18:])
    if model.by_name and model.agreed is not None:
        head = received[-134:] if received[-124:] == bytes(124) else received[-10:]
        received = received[: -len(head)]
        size, flags = struct.unpack_from(">QH", head)
        claim(size == EXPORTS[model.agreed].size_bytes and flags & 1, "EXPORT_NAME lies")
    finals: list[tuple[int, set[int]]] = []
    before: list[OptionReply] = []
    for reply in option_replies(received):
        if reply.type in (SERVER, INFO, META):
            before.append(reply)
            continue
        _check_final(reply, before)
        finals.append((reply.option, {reply.type}))
        before = []
    claim(not before, "replies without a last one")
    fits = len(finals) == len(model.finals) and all(
        mine[0] == theirs[0] and mine[1] <= theirs[1]
        for mine, theirs in zip(finals, model.finals, strict=True)
    )
    claim(fits, f"replies {finals} instead of {model.finals}")


def _check_final(reply: OptionReply, before: list[OptionReply]) -> None:
    claim(all(each.option == reply.option for each in before), "a reply to another option")
    if reply.type != ACK:
        claim(reply.type > 1 << 31, f"reply type {reply.type}")
        claim(not before, "an error after other replies")
        claim(0 < len(reply.data) <= 4096, "an error without a text that fits")
        sentence(reply.data.decode())
        return
    claim(not reply.data, "ACK with data")
    kinds = {each.type for each in before}
    claim(kinds <= {{3: SERVER, 6: INFO, 7: INFO}.get(reply.option, META)}, f"replies {kinds}")
    if reply.option in (6, 7):
        infos = [struct.unpack_from(">H", each.data)[0] for each in before]
        claim(infos.count(0) == 1 == infos.count(3), f"infos {infos}")
        claim(len(set(infos)) == len(infos), f"infos {infos} twice")
        sizes = {0: 12, 3: 14}
        claim(
            all(
                len(e.data) == sizes.get(n, len(e.data)) for n, e in zip(infos, before, strict=True)
            ),
            "an info's length",
        )
    elif kinds == {META}:
        ids = [struct.unpack_from(">I", each.data)[0] for each in before]
        names = [each.data[4:].decode() for each in before]
        claim(len(set(names)) == len(names) and set(names) <= set(CONTEXTS), f"contexts {names}")
        claim(ids == ([0] * len(ids) if reply.option == 9 else list(range(1, len(ids) + 1))), "ids")


def _check_end(said: Said, model: Expected) -> None:
    claim(bool(said.violation) == model.violated, f"{said.violation!r}, not {model.violated}")
    claim(isinstance(said.end, Ended) == model.ended, f"ended by {said.end}, not {model.ended}")
    claim(isinstance(said.end, Agreed) == (model.agreed is not None), f"{said.end}")
    if isinstance(said.end, Ended):
        sentence(said.end.reason)
    if isinstance(said.end, Agreed) and model.agreed is not None:
        end = said.end
        claim(end.export == EXPORTS[model.agreed], "another export than the one asked for")
        claim(end.leftover + said.leftover == model.rest, "bytes behind the handshake are lost")
        claim(end.terms.style.value == model.style, f"{end.terms.style}, not {model.style}")
        chosen = model.selected[1] if model.selected[0] == model.agreed else frozenset()
        claim(frozenset(end.terms.contexts) == chosen, f"{end.terms.contexts}, not {chosen}")
        there_and_back = terms.from_json(
            json.loads(json.dumps(terms.to_json(end.export, end.terms)))
        )
        claim(there_and_back == (end.export, end.terms), "the agreement does not survive as JSON")


def run(data: bytes) -> None:
    """One input: the conversation in one piece and in many, each against the model."""
    choices, stream = parted(data)
    model = expected(stream)
    at_once = _Conversation(whole(stream), None).said
    _check_replies(at_once, model)
    _check_end(at_once, model)
    chance = choices.random()
    later = _Conversation(pieces(stream, chance), chance).said
    _check_end(later, model)
    claim(later.sent == at_once.sent, "other pieces give other replies")
    claim(later.asked == at_once.asked, "other pieces ask for other exports")
    claim(later.violation == at_once.violation, "other pieces are another violation")


def split(stream: bytes) -> list[bytes]:
    """Client flags, then options."""
    found, position = [stream[:4]], 4
    while position < len(stream):
        length = int.from_bytes(stream[position + 12 : position + 16], "big")
        end = position + 16 + min(length, len(stream))
        found.append(stream[position:end])
        position = end
    return [each for each in found if each]


def repair(message: bytes) -> bytes:
    """An option whose length is that of its data."""
    if len(message) < 16:
        return message
    return b"IHAVEOPT" + message[8:12] + struct.pack(">I", len(message) - 16) + message[16:]


NAMES = (b"", b"vol", b"ro", "größe".encode(), b"nope", b"x" * 4096, b"a\0b", b"\xff")
SAMPLES = (
    *(struct.pack(">I", flags) for flags in (0, 1, 2, 3)),
    *(option(number) for number in (2, 3, 4, 5, 8, 11, 77, 0xFFFFFFFF)),
    *(option(number, b"x") for number in (3, 5, 8, 11)),
    *(option(1, name) for name in NAMES),
    *(option(number, info_data(name, 1, 2, 3, 9)) for number in (6, 7) for name in NAMES),
    *(
        option(number, context_data(name, *queries))
        for number in (9, 10)
        for name in (b"", b"vol", b"nope")
        for queries in (
            (),
            (b"base:allocation",),
            (b"x-repl:", b"base:"),
            (b"x-repl:out-of-sync:beta",) * 2,
        )
    ),
)
GRAMMAR = Grammar(split, SAMPLES, ((8, 4), (12, 4), (16, 4), (20, 4), (0, 4)), repair)
HELLO = struct.pack(">I", 3)
_STREAMS = (
    HELLO + option(3) + option(7, info_data(b"vol", 1, 2)),
    HELLO
    + option(8)
    + option(9, context_data(b"vol", b"x-repl:"))
    + option(10, context_data(b"vol", b"base:allocation"))
    + option(6, info_data(b"vol"))
    + option(7, info_data(b"vol"))
    + b"rest",
    HELLO
    + option(11)
    + option(8)
    + option(10, context_data(b"", b"base:allocation"))
    + option(7, info_data(b"")),
    struct.pack(">I", 1) + option(1, b"vol") + b"rest",
    struct.pack(">I", 0) + option(1, b""),
    HELLO + option(5) + option(2),
    HELLO + option(77, b"IHAVEOPT" * 3) + option(7, info_data(b"nope")) + option(1, b"nope"),
)


def grammar() -> Grammar:
    return GRAMMAR


def seeds() -> list[bytes]:
    """Conversations that end in every way."""
    return [bytes(7) + bytes([number]) + stream for number, stream in enumerate(_STREAMS)]

"""Fuzz target: the NBD handshake, from the client's first byte to the agreement.

Claims: nothing but `ClientError` escapes; every option gets the replies that the model of the
protocol says, each well formed, with TLS off, allowed and required; the same bytes in other pieces,
answered sooner or later, give the same bytes back; no more is kept than the limits allow; an
agreement survives its way as JSON.

The model is `option_model.py`.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from nbdserver import terms
from nbdserver.admission import TlsMode
from nbdserver.errors import HandshakeViolation
from nbdserver.export import Refusal
from nbdserver.handshake import (
    Agreed,
    Ended,
    Event,
    ExportAsked,
    Handshake,
    ListAsked,
    State,
    TlsAsked,
)
from nbdserver.limits import Limits
from nbdserver.protocol import Reply
from tests.fuzz.grammar import Grammar
from tests.fuzz.inputs import claim, parted, pieces, sentence, whole
from tests.fuzz.option_model import (
    ACK,
    CONTEXTS,
    EXPORTS,
    INFO,
    META,
    OPTION_BYTES_MAX,
    OPTIONS_MAX,
    SERVER,
    Expected,
    expected,
)
from tests.nbdserver.wire import OptionReply, context_data, info_data, option, option_replies

MODES = (TlsMode.OFF, TlsMode.ALLOWED, TlsMode.REQUIRED)


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

    def __init__(
        self, phases: Sequence[Sequence[bytes]], chance: random.Random | None, tls: TlsMode
    ) -> None:
        """`phases` are the pieces that come before TLS, and those that come after it has begun."""
        limits = Limits(options=OPTIONS_MAX, option_bytes=OPTION_BYTES_MAX, waiting_bytes=16 << 20)
        self.handshake = Handshake(limits, tls)
        self.said = Said()
        self._waiting: list[Event] = []
        self._chance = chance
        for number, parts in enumerate(phases):
            if number:
                claim(self.handshake.state is State.TLS, f"{self.handshake.state} before TLS")
                self.handshake.secured()
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
                elif isinstance(event, TlsAsked):
                    said.asked.append(event)
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
    tls, injected = MODES[choices.number(0, 3)], choices.flag(1, 0)
    model = expected(stream, tls.value, injected=injected)
    cut = None if injected and model.violated else model.cut
    phases = [stream] if cut is None else [stream[:cut], stream[cut:]]
    at_once = _Conversation([whole(each) for each in phases], None, tls).said
    _check_replies(at_once, model)
    _check_end(at_once, model)
    if injected and model.cut is not None:
        # What comes in other pieces may be behind STARTTLS or not: another conversation.
        return
    chance = choices.random()
    later = _Conversation([pieces(each, chance) for each in phases], chance, tls).said
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
    HELLO + option(8) + option(5) + option(6, info_data(b"vol")) + option(5) + option(1, b"vol"),
    HELLO + option(7, info_data(b"vol")) + option(5, b"x") + option(5) + option(3),
    HELLO + option(77, b"IHAVEOPT" * 3) + option(7, info_data(b"nope")) + option(1, b"nope"),
)


def grammar() -> Grammar:
    return GRAMMAR


def seeds() -> list[bytes]:
    """Conversations that end in every way."""
    return [
        bytes([tls, injected]) + bytes(5) + bytes([number]) + stream
        for tls in range(3)
        for injected in range(2 if tls else 1)
        for number, stream in enumerate(_STREAMS)
    ]

"""The two NBD negotiations of an attachment, sans-IO: with a server, and with who uses the relay.

Each is a generator of steps, `Send` bytes or `Need` exactly so many, which returns when
transmission begins. So nothing beyond the handshake is ever read, and the socket can be handed on
as it is. Only what both ends of an attachment need is negotiated: simple replies and one export. A
server that says anything unexpected is a `NotAgreed`; it is never guessed at.

Spec: proto.md, "Fixed newstyle negotiation", "Option types", "Option reply types".
"""

from __future__ import annotations

import enum
from collections.abc import Generator
from dataclasses import dataclass
from typing import Final

from nbdserver.protocol import (
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES_BYTES,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    NBD_FLAG_C_FIXED_NEWSTYLE,
    NBD_FLAG_C_NO_ZEROES,
    NBD_FLAG_CAN_MULTI_CONN,
    NBD_FLAG_FIXED_NEWSTYLE,
    NBD_FLAG_NO_ZEROES,
    NBD_FLAG_READ_ONLY,
    NBD_FLAG_SEND_DF,
    NBD_MAGIC,
    NBD_OPTION_MAGIC,
    NBD_REP_MAGIC,
    OPTION_HEADER,
    OPTION_REPLY,
    PAYLOAD_BYTES_MAX,
    U16,
    U32,
    Info,
    Option,
    Reply,
)

#: No reply to an option is longer in an honest negotiation: names and texts have 4096 bytes.
REPLY_BYTES_MAX: Final = 64 << 10
REPLIES_MAX: Final = 100
OPTION_BYTES_MAX: Final = 64 << 10
OPTIONS_MAX: Final = 100
PREFERRED_BLOCK_BYTES: Final = 4096


class Cause(enum.Enum):
    """Why there is no agreement, as far as it decides what to do next."""

    REFUSED = "refused"  # the server has the export and does not serve it now
    UNKNOWN = "unknown"  # the server has no such export
    NOT_NBD = "not-nbd"  # the other side broke the protocol or speaks another one


class NotAgreed(Exception):
    """The negotiation ended without an export; the text says why in one sentence."""

    def __init__(self, cause: Cause, sentence: str) -> None:
        super().__init__(sentence)
        self.cause = cause
        self.sentence = sentence


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server offers: `flags` are the transmission flags of proto.md."""

    size_bytes: int
    flags: int
    minimum_block_bytes: int = 1

    @property
    def read_only(self) -> bool:
        return bool(self.flags & NBD_FLAG_READ_ONLY)


@dataclass(frozen=True, slots=True)
class Send:
    data: bytes


@dataclass(frozen=True, slots=True)
class Need:
    """Exactly so many bytes are needed next; they are what `send()` gives back."""

    count: int


Steps = Generator[Send | Need, bytes, Offer]


def ask_for(name: str) -> Steps:
    """Be the client: ask a server for the export `name`. Raises NotAgreed."""
    client_flags = yield from _greeted()
    yield Send(client_flags + _go(name))
    return (yield from _offered())


def ask_for_context(name: str, context: str) -> Generator[Send | Need, bytes, tuple[Offer, int]]:
    """Be a client that asks about the blocks of an export: with structured replies, and with one
    metadata context, whose number is returned too. Raises NotAgreed."""
    client_flags = yield from _greeted()
    yield Send(client_flags + _option(Option.STRUCTURED_REPLY))
    yield from _acknowledged(Option.STRUCTURED_REPLY)
    yield Send(_option(Option.SET_META_CONTEXT, _text(name) + U32.pack(1) + _text(context)))
    selected = yield from _acknowledged(Option.SET_META_CONTEXT)
    if len(selected) != 1 or selected[0][U32.size :] != context.encode():
        raise NotAgreed(Cause.REFUSED, f"the NBD server there has no {context}")
    yield Send(_go(name))
    offer = yield from _offered()
    return offer, U32.unpack_from(selected[0])[0]


def _greeted() -> Generator[Send | Need, bytes, bytes]:
    """Read the greeting; return the client's flags, to be sent before the first option."""
    magic, option_magic, flags = GREETING.unpack((yield Need(GREETING.size)))
    if (magic, option_magic) != (NBD_MAGIC, NBD_OPTION_MAGIC):
        raise NotAgreed(Cause.NOT_NBD, "what answers there is no NBD server")
    if not flags & NBD_FLAG_FIXED_NEWSTYLE:
        raise NotAgreed(Cause.NOT_NBD, "the NBD server there knows no fixed newstyle")
    client_flags = NBD_FLAG_C_FIXED_NEWSTYLE
    if flags & NBD_FLAG_NO_ZEROES:
        client_flags |= NBD_FLAG_C_NO_ZEROES
    return CLIENT_FLAGS.pack(client_flags)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return U32.pack(len(encoded)) + encoded


def _option(option: Option, data: bytes = b"") -> bytes:
    return OPTION_HEADER.pack(NBD_OPTION_MAGIC, option, len(data)) + data


def _go(name: str) -> bytes:
    return _option(Option.GO, _text(name) + U16.pack(1) + U16.pack(Info.BLOCK_SIZE))


def _answer_to(option: Option) -> Generator[Send | Need, bytes, tuple[int, bytes]]:
    """Return the type and the data of one reply. Raises NotAgreed for one to something else."""
    header = yield Need(OPTION_REPLY.size)
    magic, replied, kind, length = OPTION_REPLY.unpack(header)
    if magic != NBD_REP_MAGIC or replied != option or length > REPLY_BYTES_MAX:
        raise NotAgreed(Cause.NOT_NBD, "the NBD server answers another question")
    return kind, (yield Need(length)) if length else b""


def _acknowledged(option: Option) -> Generator[Send | Need, bytes, list[bytes]]:
    """Return the contexts that were told before the acknowledgement. Raises NotAgreed."""
    contexts: list[bytes] = []
    for _ in range(REPLIES_MAX):
        kind, answer = yield from _answer_to(option)
        if kind == Reply.ACK:
            return contexts
        if kind != Reply.META_CONTEXT or len(answer) < U32.size:
            raise _refusal(kind, answer)
        contexts.append(answer)
    raise NotAgreed(Cause.NOT_NBD, "the NBD server does not come to an end")


def _offered() -> Steps:
    size: tuple[int, int] | None = None
    minimum_block_bytes = 1
    for _ in range(REPLIES_MAX):
        kind, answer = yield from _answer_to(Option.GO)
        if kind == Reply.ACK:
            if size is None:
                break
            return Offer(*size, minimum_block_bytes)
        if kind != Reply.INFO:
            raise _refusal(kind, answer)
        number = U16.unpack_from(answer)[0] if len(answer) >= U16.size else -1
        if number == Info.EXPORT and len(answer) == INFO_EXPORT.size:
            _, size_bytes, transmission_flags = INFO_EXPORT.unpack(answer)
            size = (size_bytes, transmission_flags)
        elif number == Info.BLOCK_SIZE and len(answer) == INFO_BLOCK_SIZE.size:
            _, minimum_block_bytes, _, _ = INFO_BLOCK_SIZE.unpack(answer)
    raise NotAgreed(Cause.NOT_NBD, "the NBD server does not say how large the export is")


def _refusal(kind: int, data: bytes) -> NotAgreed:
    cause = Cause.UNKNOWN if kind == Reply.ERR_UNKNOWN else Cause.REFUSED
    text = data.decode(errors="replace").strip()
    return NotAgreed(cause, text or f"the NBD server refused with 0x{kind:08x}")


def serve(offer: Offer) -> Steps:
    """Be the server for one trusted client: make this offer under any name. Raises NotAgreed.

    Structured replies and multiple connections are not offered, since the relay has neither.
    """
    lacking = NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN
    offered = Offer(offer.size_bytes, offer.flags & ~lacking)
    yield Send(
        GREETING.pack(NBD_MAGIC, NBD_OPTION_MAGIC, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)
    )
    (client_flags,) = CLIENT_FLAGS.unpack((yield Need(CLIENT_FLAGS.size)))
    for _ in range(OPTIONS_MAX):
        magic, option, length = OPTION_HEADER.unpack((yield Need(OPTION_HEADER.size)))
        if magic != NBD_OPTION_MAGIC or length > OPTION_BYTES_MAX:
            raise NotAgreed(Cause.NOT_NBD, "the relay's client sends no NBD options")
        if length:
            yield Need(length)
        if option in (Option.GO, Option.INFO):
            yield Send(_infos(offered, option) + _reply(option, Reply.ACK))
            if option == Option.GO:
                return offered
        elif option == Option.EXPORT_NAME:
            padding = 0 if client_flags & NBD_FLAG_C_NO_ZEROES else EXPORT_NAME_ZEROES_BYTES
            yield Send(EXPORT_NAME_REPLY.pack(offered.size_bytes, offered.flags) + bytes(padding))
            return offered
        elif option == Option.ABORT:
            yield Send(_reply(option, Reply.ACK))
            raise NotAgreed(Cause.REFUSED, "the relay's client gave up")
        else:
            yield Send(_reply(option, Reply.ERR_UNSUP))
    raise NotAgreed(Cause.NOT_NBD, f"the relay's client sent over {OPTIONS_MAX} options")


def _infos(offer: Offer, option: int) -> bytes:
    size = INFO_EXPORT.pack(Info.EXPORT, offer.size_bytes, offer.flags)
    blocks = INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, PREFERRED_BLOCK_BYTES, PAYLOAD_BYTES_MAX)
    return _reply(option, Reply.INFO, size) + _reply(option, Reply.INFO, blocks)


def _reply(option: int, kind: Reply, data: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(NBD_REP_MAGIC, option, kind, len(data)) + data

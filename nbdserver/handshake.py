"""Fixed-newstyle option haggling, sans-IO: bytes in, bytes and events out.

Owns everything between `accept` and the first request, for one client. It never touches a
socket or a clock: the driver keeps the deadline of `Limits` and decides about exports.
A client is answered one option at a time; while the driver owes an answer (an export may be held
until it may be served) later bytes are only collected, up to a bound.

Driving it:

    handshake.receive_data(received)
    while event := handshake.next_event(): ...   # answer ExportAsked, ListAsked and TlsAsked
    send(handshake.data_to_send())

Options that this server does not know are refused with their data consumed, so that the next one
parses; to add one, add a row to `_OPTION_METHODS`. Whatever could be announced in a length is
bounded before anything waits for it; `option_data.py` takes the data apart.

What was negotiated so far is one object, `_Negotiated`. STARTTLS replaces it by a new one, and a
client that has sent anything beyond its STARTTLS by then is dropped: nothing that came in
plaintext, from the client or from somebody between, counts afterwards. The greeting is not
repeated.

Spec: proto.md, "Fixed newstyle negotiation", "Option types", "Option reply types", "TLS support";
its branch extension-ext-header for EXTENDED_HEADERS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from nbdserver import contexts
from nbdserver.admission import TlsMode
from nbdserver.errors import HandshakeLimit, HandshakeViolation, LocalError
from nbdserver.export import ExportInfo, Refusal
from nbdserver.limits import Limits
from nbdserver.option_data import (
    error_text,
    info_replies,
    name_from,
    parse_context_queries,
    parse_info_request,
    printable,
    server_reply,
)
from nbdserver.protocol import (
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES_BYTES,
    GREETING,
    NBD_FLAG_C_FIXED_NEWSTYLE,
    NBD_FLAG_C_NO_ZEROES,
    NBD_FLAG_FIXED_NEWSTYLE,
    NBD_FLAG_NO_ZEROES,
    NBD_MAGIC,
    NBD_OPTION_MAGIC,
    NBD_REP_MAGIC,
    OPTION_HEADER,
    OPTION_REPLY,
    U32,
    Option,
    Reply,
)
from nbdserver.terms import ReplyStyle, Terms


@dataclass(frozen=True, slots=True)
class ExportAsked:
    """The client asks for `name` by `option`, or about it (INFO, the two META_CONTEXTs); answer
    with `found()` or `refuse()`."""

    name: str
    option: Option


@dataclass(frozen=True, slots=True)
class ListAsked:
    """The client asks what there is; answer with `listed()` or `refuse()`."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """Transmission begins after the data to send; `leftover` was received beyond the handshake."""

    export: ExportInfo
    terms: Terms
    leftover: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is to be closed once the data to send is sent; nobody did anything wrong."""

    reason: str


@dataclass(frozen=True, slots=True)
class TlsAsked:
    """Send the data to send, begin TLS, and answer with `secured()`, or close."""


Event = ExportAsked | ListAsked | TlsAsked | Agreed | Ended


class State(Enum):
    """What the handshake waits for."""

    CLIENT_FLAGS = auto()
    OPTION = auto()
    ANSWER = auto()  # the driver's
    TLS = auto()  # nothing of the client's may be received in this state
    OVER = auto()


@dataclass(frozen=True, slots=True)
class _Question:
    """An option whose answer the driver owes."""

    option: Option
    name: str = ""
    infos: frozenset[int] = frozenset()
    queries: tuple[str, ...] = ()


@dataclass(slots=True)
class _Negotiated:
    """What options before GO have settled. Contexts count only for the export that they name."""

    style: ReplyStyle = ReplyStyle.SIMPLE
    contexts_export: str | None = None
    contexts: tuple[str, ...] = ()

    def terms(self, asked_name: str, export: ExportInfo) -> Terms:
        """The terms on which a client that asks by this name gets the export."""
        chosen: Sequence[str] = ()
        if asked_name == self.contexts_export:
            # The export may have changed since; what is gone cannot be answered.
            chosen = [name for name in self.contexts if name in export.contexts]
        return Terms(self.style, tuple(chosen))


#: What a client may say before TLS where that is required.
_BEFORE_TLS: Final = (Option.STARTTLS, Option.ABORT)
_EXPORT_OPTIONS: Final = (
    Option.EXPORT_NAME,
    Option.INFO,
    Option.GO,
    Option.LIST_META_CONTEXT,
    Option.SET_META_CONTEXT,
)


class Handshake:
    """One client's negotiation, from the greeting to `Agreed` or `Ended`."""

    def __init__(self, limits: Limits | None = None, tls: TlsMode = TlsMode.OFF) -> None:
        self._limits = limits or Limits()
        self._tls = tls
        self._secured = False
        self._received = bytearray()
        self._outgoing = bytearray(
            GREETING.pack(NBD_MAGIC, NBD_OPTION_MAGIC, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)
        )
        self._events: deque[Event] = deque()
        self._state = State.CLIENT_FLAGS
        self._question: _Question | None = None
        self._fixed_newstyle = False
        self._no_zeroes = False
        self._options_seen = 0
        self._negotiated = _Negotiated()

    @property
    def state(self) -> State:
        """What is being waited for; the driver's deadline runs except in `State.ANSWER`."""
        return self._state

    def receive_data(self, received: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client. Raises HandshakeViolation if it broke a rule."""
        if self._state in (State.OVER, State.TLS):
            raise LocalError(f"bytes given to a handshake in state {self._state.name}")
        self._received += received
        self._advance()

    def data_to_send(self) -> bytes:
        """What to send now; each byte is given out once."""
        outgoing = bytes(self._outgoing)
        self._outgoing.clear()
        return outgoing

    def next_event(self) -> Event | None:
        """The next thing for the driver to act on, oldest first."""
        return self._events.popleft() if self._events else None

    # The driver's answers.

    def found(self, export: ExportInfo) -> None:
        """Answer `ExportAsked`: the client may have `export`. All but GO and EXPORT_NAME go on
        haggling."""
        question = self._answered(*_EXPORT_OPTIONS)
        option = question.option
        if option in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
            self._answer_contexts(question, export)
            self._advance()
            return
        terms = self._negotiated.terms(question.name, export)
        flags = terms.transmission_flags(export)
        if option is Option.EXPORT_NAME:
            self._outgoing += EXPORT_NAME_REPLY.pack(export.size_bytes, flags)
            if not self._no_zeroes:
                self._outgoing += bytes(EXPORT_NAME_ZEROES_BYTES)
            self._agree(export, terms)
            return
        for info in info_replies(export, flags, question.infos):
            self._reply(option, Reply.INFO, info)
        self._reply(option, Reply.ACK)
        if option is Option.GO:
            self._agree(export, terms)
        else:
            self._advance()

    def _answer_contexts(self, question: _Question, export: ExportInfo) -> None:
        if question.option is Option.SET_META_CONTEXT:
            names = contexts.selected(export.contexts, question.queries)
            self._negotiated.contexts_export = question.name
            self._negotiated.contexts = tuple(names)
            # `Terms.context_ids` numbers them the same way.
            numbers: Sequence[int] = range(1, len(names) + 1)
        else:
            names = contexts.listed(export.contexts, question.queries)
            numbers = [0] * len(names)
        for number, name in zip(numbers, names, strict=True):
            self._reply(question.option, Reply.META_CONTEXT, U32.pack(number) + name.encode())
        self._reply(question.option, Reply.ACK)

    def refuse(self, refusal: Refusal) -> None:
        """Answer `ExportAsked` or `ListAsked` with an error; the client may ask something else."""
        question = self._answered(Option.LIST, *_EXPORT_OPTIONS)
        if question.option is Option.EXPORT_NAME:
            # This option has no error reply: the protocol demands a closed connection.
            self._end(f"refused export {printable(question.name)}: {refusal.message}")
            return
        self._refuse(question.option, refusal.option_error, refusal.message)
        self._advance()

    def listed(self, exports: Sequence[tuple[str, str]]) -> None:
        """Answer `ListAsked` with (name, description) of every export the client may see."""
        question = self._answered(Option.LIST)
        for name, description in exports:
            self._reply(question.option, Reply.SERVER, server_reply(name, description))
        self._reply(question.option, Reply.ACK)
        self._advance()

    def secured(self) -> None:
        """Answer `TlsAsked`: whatever comes from now on was encrypted."""
        if self._state is not State.TLS:
            raise LocalError("TLS that the client did not ask for")
        assert not self._received, "plaintext is never carried over the upgrade"
        self._secured = True
        self._negotiated = _Negotiated()
        self._state = State.OPTION

    # Parsing.

    def _advance(self) -> None:
        if self._state is State.CLIENT_FLAGS:
            self._take_client_flags()
        while self._state is State.OPTION and self._take_option():
            pass
        if self._state is State.ANSWER and len(self._received) > self._limits.waiting_bytes:
            text = f"sent over {self._limits.waiting_bytes} bytes without waiting for an answer"
            raise HandshakeLimit("waiting_bytes", text)

    def _take_client_flags(self) -> None:
        if len(self._received) < CLIENT_FLAGS.size:
            return
        (flags,) = CLIENT_FLAGS.unpack_from(self._received)
        if flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES):
            raise HandshakeViolation(f"client flags 0x{flags:08x} have bits that were not offered")
        del self._received[: CLIENT_FLAGS.size]
        self._fixed_newstyle = bool(flags & NBD_FLAG_C_FIXED_NEWSTYLE)
        self._no_zeroes = bool(flags & NBD_FLAG_C_NO_ZEROES)
        self._state = State.OPTION

    def _take_option(self) -> bool:
        """Act on one complete option; False if more bytes are needed."""
        if len(self._received) < OPTION_HEADER.size:
            return False
        magic, number, length = OPTION_HEADER.unpack_from(self._received)
        if magic != NBD_OPTION_MAGIC:
            raise HandshakeViolation(f"option magic 0x{magic:016x} is not IHAVEOPT")
        if length > self._limits.option_bytes:
            text = f"option {number} announces {length} bytes, over {self._limits.option_bytes}"
            raise HandshakeLimit("option_bytes", text)
        if not self._fixed_newstyle and number != Option.EXPORT_NAME:
            raise HandshakeViolation(f"option {number} without the fixed-newstyle flag")
        end = OPTION_HEADER.size + length
        if len(self._received) < end:
            return False
        self._options_seen += 1
        if self._options_seen > self._limits.options:
            raise HandshakeLimit("options", f"sent over {self._limits.options} options")
        option_data = bytes(self._received[OPTION_HEADER.size : end])
        del self._received[:end]
        method = _OPTION_METHODS.get(number)
        if self._tls is TlsMode.REQUIRED and not self._secured and number not in _BEFORE_TLS:
            self._demand_tls(number)
        elif method is None:
            self._refuse(number, Reply.ERR_UNSUP, "this server does not support the option")
        else:
            method(self, Option(number), option_data)
        return True

    def _demand_tls(self, number: int) -> None:
        """Refuse anything that would tell, or take, something in plaintext."""
        if number == Option.EXPORT_NAME:
            self._end("named an export without TLS, which is required")
        else:
            self._refuse(number, Reply.ERR_TLS_REQD, "this server requires TLS")

    def _export_name(self, option: Option, option_data: bytes) -> None:
        if self._negotiated.style is ReplyStyle.EXTENDED:
            raise HandshakeViolation("NBD_OPT_EXPORT_NAME after extended headers")
        self._ask(_Question(option, name_from(option_data)))

    def _abort(self, option: Option, option_data: bytes) -> None:
        self._reply(option, Reply.ACK)
        self._end("client aborted the handshake")

    def _list(self, option: Option, option_data: bytes) -> None:
        if self._has_no_data(option, option_data):
            self._ask(_Question(option))

    def _starttls(self, option: Option, option_data: bytes) -> None:
        if not self._has_no_data(option, option_data):
            return
        if self._secured:
            self._refuse(option, Reply.ERR_INVALID, "TLS has begun already")
        elif self._tls is TlsMode.OFF:
            self._refuse(option, Reply.ERR_UNSUP, "this listener does not offer TLS")
        elif self._received:
            # It may have been put there by somebody between, to be taken for the client's later.
            raise HandshakeViolation("sent plaintext behind NBD_OPT_STARTTLS")
        else:
            self._reply(option, Reply.ACK)
            self._state = State.TLS
            self._events.append(TlsAsked())

    def _info_or_go(self, option: Option, option_data: bytes) -> None:
        try:
            name, infos = parse_info_request(option_data)
        except HandshakeViolation as violation:
            # Framing is intact, so the protocol asks for an error reply and not for a hang-up.
            self._refuse(option, Reply.ERR_INVALID, str(violation))
            return
        self._ask(_Question(option, name, infos))

    def _structured_reply(self, option: Option, option_data: bytes) -> None:
        if not self._has_no_data(option, option_data):
            return
        if self._negotiated.style is ReplyStyle.EXTENDED:
            message = "extended headers were negotiated, which structured replies cannot replace"
            self._refuse(option, Reply.ERR_EXT_HEADER_REQD, message)
            return
        self._negotiated.style = ReplyStyle.STRUCTURED
        self._reply(option, Reply.ACK)

    def _extended_headers(self, option: Option, option_data: bytes) -> None:
        if self._has_no_data(option, option_data):
            self._negotiated.style = ReplyStyle.EXTENDED
            self._reply(option, Reply.ACK)

    def _meta_context(self, option: Option, option_data: bytes) -> None:
        if option is Option.SET_META_CONTEXT:
            # The earlier selection ends whatever becomes of this one.
            self._negotiated.contexts_export = None
            self._negotiated.contexts = ()
        try:
            name, queries = parse_context_queries(option_data)
        except HandshakeViolation as violation:
            self._refuse(option, Reply.ERR_INVALID, str(violation))
            return
        if self._negotiated.style is ReplyStyle.SIMPLE:
            message = "metadata contexts need structured replies or extended headers first"
            self._refuse(option, Reply.ERR_INVALID, message)
            return
        self._ask(_Question(option, name, queries=queries))

    # Small steps.

    def _has_no_data(self, option: Option, option_data: bytes) -> bool:
        """Whether the option came as it should; refused if not."""
        if option_data:
            self._refuse(option, Reply.ERR_INVALID, f"NBD_OPT_{option.name} takes no data")
        return not option_data

    def _ask(self, question: _Question) -> None:
        self._question = question
        self._state = State.ANSWER
        self._events.append(
            ListAsked()
            if question.option is Option.LIST
            else ExportAsked(question.name, question.option)
        )

    def _answered(self, *options: Option) -> _Question:
        question = self._question
        if question is None or question.option not in options:
            raise LocalError("an answer to a question that the client did not ask")
        self._question = None
        self._state = State.OPTION
        return question

    def _agree(self, export: ExportInfo, terms: Terms) -> None:
        self._state = State.OVER
        self._events.append(Agreed(export, terms, bytes(self._received)))
        self._received.clear()

    def _end(self, reason: str) -> None:
        self._state = State.OVER
        self._received.clear()
        self._events.append(Ended(reason))

    def _reply(self, option: int, reply: Reply, reply_data: bytes = b"") -> None:
        self._outgoing += OPTION_REPLY.pack(NBD_REP_MAGIC, option, reply, len(reply_data))
        self._outgoing += reply_data

    def _refuse(self, option: int, error: Reply, message: str) -> None:
        self._reply(option, error, error_text(message))


_OPTION_METHODS: Final[dict[int, Callable[[Handshake, Option, bytes], None]]] = {
    Option.EXPORT_NAME: Handshake._export_name,
    Option.ABORT: Handshake._abort,
    Option.LIST: Handshake._list,
    Option.STARTTLS: Handshake._starttls,
    Option.INFO: Handshake._info_or_go,
    Option.GO: Handshake._info_or_go,
    Option.STRUCTURED_REPLY: Handshake._structured_reply,
    Option.LIST_META_CONTEXT: Handshake._meta_context,
    Option.SET_META_CONTEXT: Handshake._meta_context,
    Option.EXTENDED_HEADERS: Handshake._extended_headers,
}

"""Fixed-newstyle option haggling, sans-IO: bytes in, bytes and events out.

Owns everything between `accept` and the first request, for one client. It never touches a
socket or a clock: the driver keeps the deadline of `HandshakeLimits` and decides about exports.
A client is answered one option at a time; while the driver owes an answer (an export may be held
until it may be served) later bytes are only collected, up to a bound.

Driving it:

    handshake.receive_data(received)
    while event := handshake.next_event(): ...   # answer ExportAsked and ListAsked
    send(handshake.data_to_send())

Options that this server does not know are refused with their data consumed, so that the next one
parses; to add one (structured replies, TLS), add a row to `_OPTION_METHODS`. Whatever could be
announced in a length is bounded before anything waits for it.

Spec: proto.md, "Fixed newstyle negotiation", "Option types", "Option reply types".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from nbdserver.errors import HandshakeViolation, LocalError
from nbdserver.export import ExportInfo, Refusal
from nbdserver.protocol import (
    CLIENT_FLAGS,
    EXPORT_NAME_REPLY,
    EXPORT_NAME_ZEROES_BYTES,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    NBD_FLAG_C_FIXED_NEWSTYLE,
    NBD_FLAG_C_NO_ZEROES,
    NBD_FLAG_FIXED_NEWSTYLE,
    NBD_FLAG_NO_ZEROES,
    NBD_MAGIC,
    NBD_OPTION_MAGIC,
    NBD_REP_MAGIC,
    OPTION_HEADER,
    OPTION_REPLY,
    STRING_BYTES_MAX,
    U16,
    U32,
    Info,
    Option,
    Reply,
)


@dataclass(frozen=True, slots=True)
class HandshakeLimits:
    """What one client may ask for before it is dropped. `deadline_s` is kept by the driver."""

    option_bytes: int = 64 << 10
    options: int = 1000
    waiting_bytes: int = 256 << 10  # received while the driver owes an answer
    deadline_s: float = 10.0


@dataclass(frozen=True, slots=True)
class ExportAsked:
    """The client asks for `name` by `option`; answer with `found()` or `refuse()`."""

    name: str
    option: Option


@dataclass(frozen=True, slots=True)
class ListAsked:
    """The client asks what there is; answer with `listed()` or `refuse()`."""


@dataclass(frozen=True, slots=True)
class Agreed:
    """Transmission begins after the data to send; `leftover` was received beyond the handshake."""

    export: ExportInfo
    leftover: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """The connection is to be closed once the data to send is sent; nobody did anything wrong."""

    reason: str


Event = ExportAsked | ListAsked | Agreed | Ended


class State(Enum):
    """What the handshake waits for."""

    CLIENT_FLAGS = auto()
    OPTION = auto()
    ANSWER = auto()  # the driver's
    OVER = auto()


@dataclass(frozen=True, slots=True)
class _Question:
    """An option whose answer the driver owes."""

    option: Option
    name: str = ""
    infos: frozenset[int] = frozenset()


class Handshake:
    """One client's negotiation, from the greeting to `Agreed` or `Ended`."""

    def __init__(self, limits: HandshakeLimits | None = None) -> None:
        self._limits = limits or HandshakeLimits()
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

    @property
    def state(self) -> State:
        """What is being waited for; the driver's deadline runs except in `State.ANSWER`."""
        return self._state

    def receive_data(self, received: bytes | bytearray | memoryview) -> None:
        """Take bytes from the client. Raises HandshakeViolation if it broke a rule."""
        if self._state is State.OVER:
            raise LocalError("bytes given to a handshake that is over")
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
        """Answer `ExportAsked`: the client may have `export`. INFO goes on haggling."""
        question = self._answered(Option.EXPORT_NAME, Option.INFO, Option.GO)
        if question.option is Option.EXPORT_NAME:
            self._outgoing += EXPORT_NAME_REPLY.pack(export.size_bytes, export.transmission_flags)
            if not self._no_zeroes:
                self._outgoing += bytes(EXPORT_NAME_ZEROES_BYTES)
            self._agree(export)
            return
        for info in _infos(export, question.infos):
            self._reply(question.option, Reply.INFO, info)
        self._reply(question.option, Reply.ACK)
        if question.option is Option.GO:
            self._agree(export)
        else:
            self._advance()

    def refuse(self, refusal: Refusal) -> None:
        """Answer `ExportAsked` or `ListAsked` with an error; the client may ask something else."""
        question = self._answered(Option.EXPORT_NAME, Option.LIST, Option.INFO, Option.GO)
        if question.option is Option.EXPORT_NAME:
            # This option has no error reply: the protocol demands a closed connection.
            self._end(f"refused export {_printable(question.name)}: {refusal.message}")
            return
        self._refuse(question.option, refusal.option_error, refusal.message)
        self._advance()

    def listed(self, exports: Sequence[tuple[str, str]]) -> None:
        """Answer `ListAsked` with (name, description) of every export the client may see."""
        question = self._answered(Option.LIST)
        for name, description in exports:
            encoded = name.encode()
            self._reply(
                question.option,
                Reply.SERVER,
                U32.pack(len(encoded)) + encoded + description.encode(),
            )
        self._reply(question.option, Reply.ACK)
        self._advance()

    # Parsing.

    def _advance(self) -> None:
        if self._state is State.CLIENT_FLAGS:
            self._take_client_flags()
        while self._state is State.OPTION and self._take_option():
            pass
        if self._state is State.ANSWER and len(self._received) > self._limits.waiting_bytes:
            raise HandshakeViolation(
                f"sent over {self._limits.waiting_bytes} bytes without waiting for an answer"
            )

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
            raise HandshakeViolation(
                f"option {number} announces {length} bytes, over {self._limits.option_bytes}"
            )
        if not self._fixed_newstyle and number != Option.EXPORT_NAME:
            raise HandshakeViolation(f"option {number} without the fixed-newstyle flag")
        end = OPTION_HEADER.size + length
        if len(self._received) < end:
            return False
        self._options_seen += 1
        if self._options_seen > self._limits.options:
            raise HandshakeViolation(f"sent over {self._limits.options} options")
        option_data = bytes(self._received[OPTION_HEADER.size : end])
        del self._received[:end]
        method = _OPTION_METHODS.get(number)
        if method is None:
            self._refuse(number, Reply.ERR_UNSUP, "this server does not support the option")
        else:
            method(self, Option(number), option_data)
        return True

    def _export_name(self, option: Option, option_data: bytes) -> None:
        self._ask(_Question(option, _name_from(option_data)))

    def _abort(self, option: Option, option_data: bytes) -> None:
        self._reply(option, Reply.ACK)
        self._end("client aborted the handshake")

    def _list(self, option: Option, option_data: bytes) -> None:
        if option_data:
            self._refuse(option, Reply.ERR_INVALID, "NBD_OPT_LIST takes no data")
            return
        self._ask(_Question(option))

    def _starttls(self, option: Option, option_data: bytes) -> None:
        if option_data:
            self._refuse(option, Reply.ERR_INVALID, "NBD_OPT_STARTTLS takes no data")
            return
        self._refuse(option, Reply.ERR_UNSUP, "this listener does not offer TLS")

    def _info_or_go(self, option: Option, option_data: bytes) -> None:
        try:
            name, infos = _parse_info_request(option_data)
        except HandshakeViolation as violation:
            # Framing is intact, so the protocol asks for an error reply and not for a hang-up.
            self._refuse(option, Reply.ERR_INVALID, str(violation))
            return
        self._ask(_Question(option, name, infos))

    # Small steps.

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

    def _agree(self, export: ExportInfo) -> None:
        self._state = State.OVER
        self._events.append(Agreed(export, bytes(self._received)))
        self._received.clear()

    def _end(self, reason: str) -> None:
        self._state = State.OVER
        self._received.clear()
        self._events.append(Ended(reason))

    def _reply(self, option: int, reply: Reply, reply_data: bytes = b"") -> None:
        self._outgoing += OPTION_REPLY.pack(NBD_REP_MAGIC, option, reply, len(reply_data))
        self._outgoing += reply_data

    def _refuse(self, option: int, error: Reply, message: str) -> None:
        # A cut inside a multi-byte character would no longer be UTF-8.
        text = message.encode()[:STRING_BYTES_MAX].decode(errors="ignore").encode()
        self._reply(option, error, text)


_OPTION_METHODS: dict[int, Callable[[Handshake, Option, bytes], None]] = {
    Option.EXPORT_NAME: Handshake._export_name,
    Option.ABORT: Handshake._abort,
    Option.LIST: Handshake._list,
    Option.STARTTLS: Handshake._starttls,
    Option.INFO: Handshake._info_or_go,
    Option.GO: Handshake._info_or_go,
}


def _parse_info_request(option_data: bytes) -> tuple[str, frozenset[int]]:
    """Data of INFO and GO: u32 name length, name, u16 count, count x u16 information request."""
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
    name = _name_from(option_data[U32.size : name_end])
    infos = (U16.unpack_from(option_data, infos_start + i * U16.size)[0] for i in range(count))
    return name, frozenset(infos)


def _name_from(encoded: bytes) -> str:
    """An export's name. Raises HandshakeViolation if the protocol forbids such a string."""
    if len(encoded) > STRING_BYTES_MAX:
        raise HandshakeViolation(f"name of {len(encoded)} bytes is over {STRING_BYTES_MAX}")
    if b"\0" in encoded:
        raise HandshakeViolation("name contains a NUL byte")
    try:
        return encoded.decode()
    except UnicodeDecodeError as error:
        raise HandshakeViolation("name is not UTF-8") from error


def _infos(export: ExportInfo, requested: frozenset[int]) -> list[bytes]:
    """The data of each NBD_REP_INFO. EXPORT is mandatory and block sizes are worth telling all."""
    infos = [
        INFO_EXPORT.pack(Info.EXPORT, export.size_bytes, export.transmission_flags),
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


def _printable(name: str) -> str:
    """A client's string as it may appear in a log: one line, bounded."""
    return ascii(name if len(name) <= 200 else name[:200] + "…")

"""Fuzz target: NBD transmission, a whole `Connection` on a pretended loop and socket.

Claims: nothing escapes, whatever comes; what can be followed is judged as the model says, reaches
the backend once, in order and whole, and is answered once and rightly; what cannot ends this
connection; pieces, partial sends, late answers in any order and small limits change none of it;
everything that was held is given back, and what is held never exceeds the limits.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Any, cast

from nbdserver.buffers import CHUNK_BYTES_MAX, ByteBudget
from nbdserver.connection import Connection, State
from nbdserver.counters import TransmissionCounters
from nbdserver.export import ExportInfo
from nbdserver.limits import Limits
from nbdserver.requests import Request, StatusRequest
from nbdserver.terms import ReplyStyle, Terms
from tests.fuzz import request_model as model
from tests.fuzz.fake_loop import FakeLoop, FakeSocket
from tests.fuzz.grammar import Grammar
from tests.fuzz.inputs import Choices, claim, parted, pieces, whole
from tests.fuzz.request_model import Answer, Asked, Disk, Followed
from tests.nbdserver.wire import extended_request, request

SIZE = 64 << 10
STYLES = (model.SIMPLE, model.STRUCTURED, model.EXTENDED)
CONTEXTS = ("base:allocation", "x-repl:out-of-sync:beta")
EIO = 5
#: A choice that repeats the stream up to this length, if it is not too short for that.
LONG = 7
LONG_BYTES = 1_200_000
REPEATS_MAX = 100
#: Of a long stream.
PIECE_BYTES = 40_000
#: Offsets whose requests the backend fails, to see errors of its own among the answers.
BAD_BLOCK = 0xBAD


def disk_of(choices: Choices) -> Disk:
    """The export and terms that an input chooses."""
    style = STYLES[choices.number(0, 3)]
    return Disk(
        SIZE,
        style,
        read_only=choices.number(1, 8) == 1,
        block=(1, 1, 1, 512)[choices.number(1, 4)],
        largest=2 << 20 if choices.flag(2, 3) else 8192,
        fast_zero=choices.flag(2, 0),
        contexts=0 if style == model.SIMPLE else choices.number(3, 3),
    )


def limits_of(choices: Choices) -> Limits:
    """Limits that are met even by short streams."""
    return Limits(
        in_flight_requests=(1, 2, 5, 128)[choices.number(4, 4)],
        unsent_bytes=(1, 100, 16 << 20)[choices.number(5, 3)],
        spare_buffer_bytes=(0, 4 << 20)[choices.number(5, 2)],
    )


def fails(command: int, offset: int) -> bool:
    """Whether the backend cannot do it."""
    return offset == BAD_BLOCK and command != model.FLUSH


class Backend:
    """A disk in memory that answers now or later, first come first or not."""

    def __init__(self, chance: random.Random | None) -> None:
        self.disk = bytearray(SIZE)
        self.submitted: list[tuple[int, int, int, int, bytes]] = []
        self._payloads: dict[bytes, bytes] = {}
        self.disconnects = 0
        self._held: list[tuple[Request, bytes]] = []
        self._chance = chance

    def submit(self, connection: Connection, requests: Sequence[Request]) -> None:
        for each in requests:
            payload = b"" if each.payload is None else bytes(each.payload)
            number = int.from_bytes(each.cookie, "big")
            self._payloads[each.cookie] = payload
            self.submitted.append((number, each.command, each.offset, each.length, payload))
            self._held.append((each, self._carried_out(each, payload)))
        if self._chance is None:
            while self.answer():
                pass

    def _carried_out(self, each: Request, payload: bytes) -> bytes:
        """Do it at once, so that the order of requests is the order of effects."""
        place = slice(each.offset, each.offset + each.length)
        if fails(each.command, each.offset):
            return b""
        if each.command == model.WRITE:
            self.disk[place] = payload
        elif each.command in (model.TRIM, model.ZEROES):
            self.disk[place] = bytes(each.length)
        return bytes(self.disk[place]) if each.command == model.READ else b""

    def disconnected(self, connection: Connection) -> None:
        self.disconnects += 1

    def answer(self) -> bool:
        """Answer one request, whether there was one."""
        if not self._held:
            return False
        place = 0 if self._chance is None else self._chance.randrange(len(self._held))
        each, data = self._held.pop(place)
        connection = each.connection
        assert connection is not None
        if each.payload is not None and not fails(each.command, each.offset):
            # It still is what came: its buffer is not used for anything else before the answer.
            came = self._payloads[each.cookie]
            claim(bytes(each.payload) == came, "a payload changed before its answer")
        if fails(each.command, each.offset):
            connection.reply(each, EIO, text="the medium failed", at=each.offset)
        elif isinstance(each, StatusRequest):
            first = min(each.length, 512)
            extents = [(first, 0), (each.length - first, 3)][: 1 if first == each.length else 2]
            connection.reply_status(each, dict.fromkeys(each.contexts, extents))
        elif each.command == model.READ and connection.tells_holes and not data.strip(b"\0"):
            connection.reply_sparse(each, [each.length])
        elif each.command == model.READ:
            connection.reply(each, 0, data)
        else:
            connection.reply(each)
        connection.send_replies()
        return True


class Served:
    """One stream, served to its end on a pretended loop."""

    def __init__(
        self, choices: Choices, stream: bytes, parts: Sequence[bytes], chance: random.Random | None
    ) -> None:
        disk = disk_of(choices)
        self.ends = choices.flag(2, 1)
        self.loop = FakeLoop(chance)
        leftover = parts[0] if parts and choices.flag(2, 2) else b""
        self.sock = FakeSocket(parts[1:] if leftover else parts, ends=self.ends, chance=chance)
        self.backend = Backend(chance)
        self.budget = ByteBudget(64 << 20)
        self.counters = TransmissionCounters()
        self.idle = 0
        self.connection = Connection(
            cast("Any", self.loop),
            cast("Any", self.sock),
            export_of(disk),
            self.backend,
            leftover,
            limits_of(choices),
            "the client",
            self.budget,
            Terms(ReplyStyle(disk.style), CONTEXTS[: disk.contexts]),
            self.counters,
        )
        self.connection.on_idle = self._on_idle
        self.connection.start()
        later = () if chance is None else (self.backend.answer,)
        self.loop.run(self.sock, (*later, self._within_limits))

    def _on_idle(self, _connection: Connection) -> None:
        self.idle += 1

    def _within_limits(self) -> bool:
        """Never moves anything; looks at what is held."""
        held = self.connection._pool.out_bytes
        claim(held <= 2 * CHUNK_BYTES_MAX, f"receive buffers of {held} bytes")
        claim(self.budget.used_bytes <= 2 * CHUNK_BYTES_MAX, "more than the budget has")
        limit = self.connection._limits.in_flight_requests
        claim(self.connection.requests_in_flight <= limit, "more requests in flight than allowed")
        return False

    def check(self, followed: Followed, disk: Disk) -> None:
        """Everything that the model says of the stream."""
        valid = [each for each in followed.asked if each.done]
        came = [(e.number, e.command, e.offset, e.length, e.payload) for e in valid]
        # The payload of a BLOCK_STATUS is the reader's own.
        came = [(*e[:4], e[4] if e[1] == model.WRITE else b"") for e in came]
        claim(self.backend.submitted == came, f"done: {self.backend.submitted}, not {came}")
        finished = followed.violated or followed.disconnected or self.ends
        claim(self.connection.closed == finished, f"{self.connection.state} at the end")
        if not finished:
            claim(self.connection.state is State.OPEN and self.sock.taken, "it stands still")
        got = model.answers(bytes(self.sock.sent), disk, followed.asked, cut=followed.violated)
        if not followed.violated:
            claim(set(got) == {each.number for each in followed.asked}, f"answered: {set(got)}")
        _check_answers(got, followed.asked)
        if not finished:
            self.connection.abandon()
        self._check_end(followed)

    def _check_end(self, followed: Followed) -> None:
        claim(self.sock.closed and self.idle == 1 and self.backend.disconnects == 1, "one end")
        claim(self.budget.used_bytes == 0, f"{self.budget.used_bytes} bytes are never given back")
        connection = self.connection
        claim(not connection.requests_in_flight and not connection.bytes_in_flight, "in flight")
        claim(connection._pool.out_bytes == 0, f"{connection._pool.out_bytes} bytes are still out")
        counted = self.counters
        claim(not counted.bugs and not counted.stalled and not counted.hung_up, f"{counted}")
        claim(counted.violations == followed.violated, f"{counted}")


def export_of(disk: Disk) -> ExportInfo:
    """The same as the server's own object."""
    return ExportInfo(
        "vol",
        disk.size,
        read_only=disk.read_only,
        minimum_block_bytes=disk.block,
        maximum_block_bytes=disk.largest,
        can_fast_zero=disk.fast_zero,
        contexts=CONTEXTS,
    )


def _check_answers(got: dict[int, Answer], asked: Sequence[Asked]) -> None:
    """Errors where there must be some, and data as it was at that place in the stream."""
    disk = bytearray(SIZE)
    for each in asked:
        place = slice(each.offset, each.offset + each.length)
        failed = each.done and fails(each.command, each.offset)
        if each.done and not failed and each.command == model.WRITE:
            disk[place] = each.payload
        elif each.done and not failed and each.command in (model.TRIM, model.ZEROES):
            disk[place] = bytes(each.length)
        answer = got.get(each.number)
        if answer is None:
            continue
        errors = {EIO} if failed else each.errors or {0}
        claim(answer.error in errors, f"error {answer.error} instead of {set(errors)}: {each}")
        if each.done and not failed and each.command == model.READ:
            claim(answer.data == disk[place], f"other data: {each}")
        if each.done and not failed and each.command == model.STATUS:
            claim(tuple(answer.statuses) == each.ids, f"statuses of {set(answer.statuses)}: {each}")
            sums = {sum(length for length, _ in found) for found in answer.statuses.values()}
            claim(sums == {each.length}, f"extents of {sums} bytes: {each}")


def run(data: bytes) -> None:
    """One input: in one piece answered at once, and in many with everything at random."""
    choices, stream = parted(data)
    disk = disk_of(choices)
    is_long = choices.number(3, 32) == LONG and len(stream) * REPEATS_MAX >= LONG_BYTES
    if is_long:
        # So long that requests straddle the ends of receive buffers.
        stream *= LONG_BYTES // len(stream) + 1
    stream = model.numbered(stream, disk)
    followed = model.followed(stream, disk)
    Served(choices, stream, whole(stream), None).check(followed, disk)
    if is_long:
        large = [
            stream[start : start + PIECE_BYTES] for start in range(0, len(stream), PIECE_BYTES)
        ]
        Served(choices, stream, large, None).check(followed, disk)
        return
    chance = choices.random()
    Served(choices, stream, pieces(stream, chance), chance).check(followed, disk)


def split(stream: bytes) -> list[bytes]:
    """Requests of either form, with their payloads."""
    found, position = [], 0
    while position < len(stream):
        is_extended = stream[position : position + 4] == b"\x21\xe4\x1c\x71"
        size = 32 if is_extended else 28
        flags, command = stream[position + 5 : position + 6], stream[position + 7 : position + 8]
        end = position + size
        if flags[:1] >= b"\x20" if is_extended else command == b"\1":
            end += min(int.from_bytes(stream[position + 24 : end], "big"), len(stream))
        found.append(stream[position:end])
        position = end
    return found


def repair(message: bytes) -> bytes:
    """A request whose length is that of its payload, if it has one."""
    if message[:4] == b"\x21\xe4\x1c\x71" and len(message) > 32:
        return message[:24] + struct.pack(">Q", len(message) - 32) + message[32:]
    if message[:4] == b"\x25\x60\x95\x13" and message[7:8] == b"\1" and len(message) > 28:
        return message[:24] + struct.pack(">I", len(message) - 28) + message[28:]
    return message


def _samples() -> tuple[bytes, ...]:
    found = []
    for command in range(10):
        payload = b"p" * 40 if command == model.WRITE else b""
        for offset, length in ((0, 512), (512, 1024), (SIZE - 512, 512), (BAD_BLOCK, 100), (0, 0)):
            body = payload or b""
            size = len(body) or length
            found.append(request(command, offset, size, body))
            found.append(extended_request(command, offset, size, body))
    ids = struct.pack(">QI", 4096, 1), struct.pack(">QII", 512, 2, 1)
    found += [extended_request(model.STATUS, 0, len(each), each) for each in ids]
    found += [request(model.FLUSH), extended_request(model.FLUSH)]
    found.append(request(model.WRITE, 0, 8192, b"w" * 8192))
    found.append(request(model.ZEROES, 0, SIZE, flags=model.FAST_ZERO))
    found.append(extended_request(model.READ, 0, 8192, flags=model.DF))
    return tuple(found)


SAMPLES = _samples()
GRAMMAR = Grammar(split, SAMPLES, ((0, 4), (4, 2), (6, 2), (16, 8), (24, 4), (28, 4)), repair)
_STREAMS = (
    request(1, 0, 8000, b"c" * 8000) + request(0, 0, 600),
    extended_request(1, 0, 8000, b"c" * 8000) + extended_request(0, 0, 600),
    request(1, 0, 600, b"a" * 600) + request(0, 0, 600) + request(3) + request(2),
    request(1, 512, 512, b"b" * 512)
    + request(6, 0, 1024)
    + request(0, 0, 4096)
    + request(4, 0, 512),
    request(9, 1, 1) + request(0, SIZE, 1) + request(1, SIZE - 1, 2, b"xy") + request(0, 0, 1),
    extended_request(1, 0, 600, b"a" * 600)
    + extended_request(7, 0, 4096)
    + extended_request(0, 0, 9),
    extended_request(7, 0, 12, struct.pack(">QI", 4096, 1)) + extended_request(4, 0, 5, b"12345"),
)


def grammar() -> Grammar:
    return GRAMMAR


def seeds() -> list[bytes]:
    """Every style of replies, with and without an end."""
    heads = [bytes([style, 0, end, 2, 3, 2, 0, style]) for style in range(3) for end in (0, 3)]
    heads += [bytes([style, 0, 2, LONG, 3, 2, 0, style]) for style in range(3)]
    return [head + stream for head in heads for stream in _STREAMS]

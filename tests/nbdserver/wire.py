"""The client's half of the protocol, as bytes: what tests send and how they read the answers.

Written from proto.md and not from the server's code, so that a mistake there is not repeated here.
Only the numbers come from `nbdserver.protocol`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from nbdserver import protocol as nbd

GREETING_BYTES = 18
FIXED_NEWSTYLE = struct.pack(">I", 1)
FIXED_NEWSTYLE_NO_ZEROES = struct.pack(">I", 3)
DEADLINE_S = 20.0


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def info_data(name: bytes, *infos: int) -> bytes:
    count = len(infos)
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{count}H", count, *infos)


def go(name: bytes = b"", *infos: int) -> bytes:
    return option(nbd.Option.GO, info_data(name, *infos))


def request(
    command: int,
    offset: int = 0,
    length: int = 0,
    payload: bytes = b"",
    flags: int = 0,
    cookie: int = 0,
    magic: int = nbd.NBD_REQUEST_MAGIC,
) -> bytes:
    return struct.pack(">IHHQQI", magic, flags, command, cookie, offset, length) + payload


def read(offset: int, length: int, cookie: int = 0, flags: int = 0) -> bytes:
    return request(nbd.NBD_CMD_READ, offset, length, flags=flags, cookie=cookie)


def write(offset: int, payload: bytes, cookie: int = 0, flags: int = 0) -> bytes:
    return request(nbd.NBD_CMD_WRITE, offset, len(payload), payload, flags, cookie)


def disc() -> bytes:
    return request(nbd.NBD_CMD_DISC)


def extended_request(
    command: int,
    offset: int = 0,
    length: int = 0,
    payload: bytes = b"",
    flags: int = 0,
    cookie: int = 0,
) -> bytes:
    """A request with a 64-bit length; a payload brings its flag with it."""
    if payload:
        flags |= 1 << 5
    header = struct.pack(">IHHQQQ", 0x21E41C71, flags, command, cookie, offset, length)
    return header + payload


def context_data(name: bytes, *queries: bytes) -> bytes:
    parts = [struct.pack(">I", len(name)), name, struct.pack(">I", len(queries))]
    for query in queries:
        parts += [struct.pack(">I", len(query)), query]
    return b"".join(parts)


def simple_reply(cookie: int, error: int = 0) -> bytes:
    return struct.pack(">IIQ", 0x67446698, error, cookie)


@dataclass(frozen=True)
class Chunk:
    """A structured reply chunk, or one with an extended header (then `offset` is the request's)."""

    flags: int
    type: int
    cookie: int
    payload: bytes
    offset: int | None = None

    @property
    def done(self) -> bool:
        return bool(self.flags & 1)

    def error(self) -> tuple[int, str, bytes]:
        """(error, text, what follows the text) of an error chunk."""
        assert self.type & 1 << 15
        error, length = struct.unpack_from(">IH", self.payload)
        assert len(self.payload) >= 6 + length
        return error, self.payload[6 : 6 + length].decode(), self.payload[6 + length :]

    def extents(self) -> tuple[int, list[tuple[int, int]]]:
        """(context id, [(length, status)]) of a status chunk."""
        if self.type == 5:
            (context,) = struct.unpack_from(">I", self.payload)
            return context, list(struct.iter_unpack(">II", self.payload[4:]))
        assert self.type == 6
        context, count = struct.unpack_from(">II", self.payload)
        found = list(struct.iter_unpack(">QQ", self.payload[8:]))
        assert count in (0, len(found))
        return context, found


def chunks(received: bytes) -> list[Chunk]:
    """Every chunk in `received`, which must end with a complete one."""
    found = []
    while received:
        (magic,) = struct.unpack_from(">I", received)
        offset = None
        if magic == 0x668E33EF:
            size = 20
            _, flags, kind, cookie, length = struct.unpack_from(">IHHQI", received)
        else:
            assert magic == 0x6E8A278C, hex(magic)
            size = 32
            _, flags, kind, cookie, offset, length = struct.unpack_from(">IHHQQQ", received)
        assert len(received) >= size + length, "half a chunk"
        found.append(Chunk(flags, kind, cookie, received[size : size + length], offset))
        received = received[size + length :]
    return found


@dataclass(frozen=True)
class OptionReply:
    option: int
    type: int
    data: bytes


def option_replies(received: bytes) -> list[OptionReply]:
    """Every reply in `received`, which must end with a complete one."""
    replies = []
    while received:
        magic, number, kind, length = struct.unpack_from(">QIII", received)
        assert magic == nbd.NBD_REP_MAGIC
        assert len(received) >= 20 + length, "half a reply"
        replies.append(OptionReply(number, kind, received[20 : 20 + length]))
        received = received[20 + length :]
    return replies


class RawClient:
    """A blocking socket that speaks NBD by hand. Use it as a context manager."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(DEADLINE_S)

    @classmethod
    def to_unix(cls, path: object) -> RawClient:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        return cls(sock)

    @classmethod
    def to_tcp(cls, port: int) -> RawClient:
        return cls(socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S))

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, count: int) -> bytes:
        """Exactly `count` bytes; ConnectionError if the server closes before."""
        received = bytearray(count)
        view, position = memoryview(received), 0
        while position < count:
            taken = self.sock.recv_into(view[position:])
            if not taken:
                raise ConnectionError(f"closed after {position} of {count} bytes")
            position += taken
        return bytes(received)

    def option_reply(self) -> OptionReply:
        magic, number, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == nbd.NBD_REP_MAGIC
        return OptionReply(number, kind, self.receive(length))

    def greet(self, flags: bytes = FIXED_NEWSTYLE_NO_ZEROES) -> RawClient:
        greeting = self.receive(GREETING_BYTES)
        assert greeting == b"NBDMAGICIHAVEOPT\0\3"
        self.send(flags)
        return self

    def go(self, name: bytes = b"", *options: bytes) -> int:
        """Begin transmission; the size of the export in bytes. `options` come before, and each must
        be acknowledged."""
        self.greet()
        for each in options:
            self.send(each)
            while (reply := self.option_reply()).type != nbd.Reply.ACK:
                assert reply.type == nbd.Reply.META_CONTEXT, reply
        self.send(go(name))
        size = -1
        while (reply := self.option_reply()).type != nbd.Reply.ACK:
            assert reply.type == nbd.Reply.INFO, reply
            if reply.data[:2] == b"\0\0":
                _, size, _ = struct.unpack(">HQH", reply.data)
        return size

    def reply(self) -> tuple[int, int]:
        """(error, cookie) of the next simple reply; the data of a READ is still to be received."""
        magic, error, cookie = struct.unpack(">IIQ", self.receive(16))
        assert magic == nbd.NBD_SIMPLE_REPLY_MAGIC
        return error, cookie

    def chunk(self) -> Chunk:
        """The next structured or extended chunk."""
        magic = self.receive(4)
        header = magic + self.receive(16 if magic == b"\x66\x8e\x33\xef" else 28)
        length = int.from_bytes(header[-4 if len(header) == 20 else -8 :], "big")
        (found,) = chunks(header + self.receive(length))
        return found

    def chunks_of_one_reply(self) -> list[Chunk]:
        """Chunks up to the one that says it is the last."""
        found = [self.chunk()]
        while not found[-1].done:
            found.append(self.chunk())
        return found

    def ask(self, data: bytes) -> int:
        """Send one request without answer data; the error of its reply."""
        self.send(data)
        error, _ = self.reply()
        return error

    def ask_read(self, offset: int, length: int) -> bytes:
        self.send(read(offset, length, cookie=77))
        assert self.reply() == (0, 77)
        return self.receive(length)

    def is_closed_by_server(self) -> bool:
        """True once the server has closed; what it still sent is thrown away."""
        try:
            while self.sock.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        return True


class LoopClient:
    """The client's end of a connection that the test's own loop serves."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.setblocking(False)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, count: int) -> bytes:
        """Exactly `count` bytes, or fewer if the server closes."""
        received = bytearray()
        async with asyncio.timeout(DEADLINE_S):
            while len(received) < count:
                loop = asyncio.get_running_loop()
                try:
                    piece = await loop.sock_recv(self.sock, min(count - len(received), 1 << 20))
                except ConnectionError:
                    break
                if not piece:
                    break
                received += piece
        return bytes(received)

    async def reply(self) -> tuple[int, int]:
        """(error, cookie) of the next simple reply."""
        magic, error, cookie = struct.unpack(">IIQ", await self.receive(16))
        assert magic == nbd.NBD_SIMPLE_REPLY_MAGIC
        return error, cookie

    async def read_to_end(self) -> bytes:
        """Everything until the server closes."""
        return await self.receive(1 << 40)

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close so that the server sees a reset, on TCP."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


async def eventually(seen: Callable[[], bool], what: str) -> None:
    """Let the loop run until `seen()`; AssertionError with `what` after a deadline."""
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + DEADLINE_S
    while not seen():
        assert loop.time() < give_up_s, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.001)

"""An NBD server on a Unix socket that behaves as it is told to, and a daemon's answers beside it.

It keeps one bytearray as its content and speaks simple replies only.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from pathlib import Path

from nbdserver import protocol as nbd
from nbdserver.export import ExportInfo, Refusal
from nbdserver.handshake import Agreed, ExportAsked, Handshake
from repl.attach.history import Generation, Lineage
from repl.errors import DaemonUnreachable

ME, OTHER = 11, 22
SIZE_BYTES = 1 << 16


class FakeNbd:
    """`answer` decides what a client gets: the export, a refusal, or None to hold it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = bytearray(SIZE_BYTES)
        self.answer: ExportInfo | Refusal | None = ExportInfo("r0", SIZE_BYTES)
        #: Requests are read and not answered.
        self.mute = False
        #: The next reply to a read is broken off in its middle, and the connection with it.
        self.cut_reply = False
        #: Commands received, in order, over all connections.
        self.commands: list[int] = []
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._asked = asyncio.Event()

    async def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))

    async def stop(self) -> None:
        """Be gone, as a daemon that was killed."""
        assert self._server is not None
        self._server.close()
        self._server = None
        self.drop()

    def drop(self) -> None:
        """Close every connection."""
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            leftover = await self._negotiate(reader, writer)
            if leftover is not None:
                assert leftover == b""
                await self._transmit(reader, writer)
        self._open.discard(writer)
        writer.close()

    async def _negotiate(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | None:
        handshake = Handshake()
        while True:
            writer.write(handshake.data_to_send())
            event = handshake.next_event()
            if isinstance(event, Agreed):
                return event.leftover
            if isinstance(event, ExportAsked):
                while self.answer is None and not reader.at_eof():
                    await asyncio.sleep(0.005)
                if isinstance(self.answer, ExportInfo):
                    handshake.found(self.answer)
                elif self.answer is not None:
                    handshake.refuse(self.answer)
                continue
            received = await reader.read(4096)
            if not received:
                return None
            handshake.receive_data(received)

    async def _transmit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            header = await reader.readexactly(nbd.REQUEST_BYTES)
            _, _, command, cookie, offset, length = nbd.REQUEST.unpack(header)
            data = b""
            if command == nbd.NBD_CMD_WRITE:
                data = await reader.readexactly(length)
            self.commands.append(command)
            if self.mute:
                continue
            body = b""
            if command == nbd.NBD_CMD_WRITE:
                self.content[offset : offset + length] = data
            elif command == nbd.NBD_CMD_READ:
                body = bytes(self.content[offset : offset + length])
            reply = struct.pack(">II8s", nbd.NBD_SIMPLE_REPLY_MAGIC, 0, cookie) + body
            if self.cut_reply and body:
                self.cut_reply = False
                writer.write(reply[: len(reply) // 2])
                return
            writer.write(reply)
            await writer.drain()


class FakeDaemon:
    """Implements `repl.attach.daemon_line.Daemon`."""

    def __init__(self) -> None:
        self.entries = [Generation(1, ME)]
        self.reachable = True
        self.looks = 0

    def lineage(self, volume: str) -> Lineage:
        self._check()
        return Lineage(ME, list(self.entries))

    def generation(self, volume: str) -> int:
        self._check()
        self.looks += 1
        return self.entries[0].id

    def _check(self) -> None:
        if not self.reachable:
            raise DaemonUnreachable("No repld answers.", "a test", "none")

"""Requests as a backend sees them. Offsets and lengths are bytes.

Made by a reader, carried out by a `Backend`, answered once on their connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbdserver.buffers import Chunk

if TYPE_CHECKING:
    from nbdserver.connection import Connection


class Request:
    """One request that passed validation.

    `command` and `flags` are `NBD_CMD_*` and `NBD_CMD_FLAG_*`, `cookie` the client's eight bytes.
    `payload` (WRITE only) is a slice of `chunk`. `connection` is None once it was answered.
    """

    __slots__ = ("chunk", "command", "connection", "cookie", "flags", "length", "offset", "payload")

    def __init__(
        self,
        connection: Connection | None,
        command: int,
        flags: int,
        cookie: bytes,
        offset: int,
        length: int,
        payload: memoryview | None = None,
        chunk: Chunk | None = None,
    ) -> None:
        self.connection = connection
        self.command = command
        self.flags = flags
        self.cookie = cookie
        self.offset = offset
        self.length = length
        self.payload = payload
        self.chunk = chunk

    def __repr__(self) -> str:
        return f"Request({self.command}, 0x{self.flags:x}, {self.offset}+{self.length})"


class StatusRequest(Request):
    """A BLOCK_STATUS; `contexts` maps the ids that it asks about to the contexts' names."""

    __slots__ = ("contexts",)

    def __init__(
        self,
        connection: Connection | None,
        command: int,
        flags: int,
        cookie: bytes,
        offset: int,
        length: int,
        contexts: dict[int, str],
    ) -> None:
        super().__init__(connection, command, flags, cookie, offset, length)
        self.contexts = contexts

"""What an export is, and what stands behind it.

`ExportInfo` is what a client is told, `Refusal` why it is told nothing, `Backend` what carries
out its requests. The promises in `ExportInfo` are the server's word: whoever builds one must be
able to keep them, `can_multi_conn` above all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nbdserver.protocol import (
    NBD_FLAG_CAN_MULTI_CONN,
    NBD_FLAG_HAS_FLAGS,
    NBD_FLAG_READ_ONLY,
    NBD_FLAG_SEND_CACHE,
    NBD_FLAG_SEND_FAST_ZERO,
    NBD_FLAG_SEND_FLUSH,
    NBD_FLAG_SEND_FUA,
    NBD_FLAG_SEND_TRIM,
    NBD_FLAG_SEND_WRITE_ZEROES,
    PAYLOAD_BYTES_MAX,
    STRING_BYTES_MAX,
    Reply,
)

if TYPE_CHECKING:
    from nbdserver.connection import Connection
    from nbdserver.requests import Request

SIZE_BYTES_MAX = (1 << 63) - 1
MINIMUM_BLOCK_BYTES_MAX = 64 << 10


@dataclass(frozen=True, slots=True)
class ExportInfo:
    """One export as a client sees it. Raises ValueError for what the protocol cannot express.

    `can_multi_conn` promises that a FLUSH on one connection covers the writes answered on every
    other, and that all connections see one another's answered writes. `can_fast_zero` promises
    that a WRITE_ZEROES with FAST_ZERO is quick or changes nothing. `contexts` are the names of the
    metadata contexts that BLOCK_STATUS can answer.
    """

    name: str
    size_bytes: int
    read_only: bool = False
    can_multi_conn: bool = False
    description: str = ""
    minimum_block_bytes: int = 1
    preferred_block_bytes: int = 4096
    maximum_block_bytes: int = PAYLOAD_BYTES_MAX
    can_fast_zero: bool = False
    contexts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size_bytes <= SIZE_BYTES_MAX:
            raise ValueError(f"size of {self.size_bytes} bytes is not within 0…2⁶³-1")
        for text in (self.name, self.description, *self.contexts):
            if "\0" in text or len(text.encode()) > STRING_BYTES_MAX:
                raise ValueError(f"a text is over {STRING_BYTES_MAX} bytes or has a NUL")
        if not all(":" in name for name in self.contexts):
            raise ValueError("a metadata context's name is namespace:leaf")
        minimum, preferred = self.minimum_block_bytes, self.preferred_block_bytes
        if minimum & (minimum - 1) or not 1 <= minimum <= MINIMUM_BLOCK_BYTES_MAX:
            raise ValueError(f"minimum block of {minimum} bytes is no power of two up to 64 KiB")
        if preferred & (preferred - 1) or preferred < max(minimum, 512):
            raise ValueError(f"preferred block of {preferred} bytes is no power of two >= minimum")
        if not preferred <= self.maximum_block_bytes <= PAYLOAD_BYTES_MAX:
            raise ValueError(f"maximum block of {self.maximum_block_bytes} bytes is out of range")
        if self.size_bytes % minimum:
            raise ValueError(f"size of {self.size_bytes} bytes is no multiple of {minimum}")

    @property
    def transmission_flags(self) -> int:
        """What the export can do; `Terms.transmission_flags` adds what the client negotiated."""
        flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE
        if self.read_only:
            flags |= NBD_FLAG_READ_ONLY
        else:
            flags |= NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES
            if self.can_fast_zero:
                flags |= NBD_FLAG_SEND_FAST_ZERO
        if self.can_multi_conn:
            flags |= NBD_FLAG_CAN_MULTI_CONN
        return flags


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client does not get an export: an error reply (`Reply.ERR_*`) and a sentence."""

    option_error: Reply
    message: str


class Backend(Protocol):
    """What carries out requests. Every method is called on the loop's thread and must not block.

    The requests of one call arrived in this order; the backend may finish them in any order, now
    or later, by exactly one answer each: `connection.reply`, `reply_sparse` for a READ that met
    holes, `reply_status` for a BLOCK_STATUS. It calls `connection.send_replies()` once after each
    batch of answers. All requests are legal for the export and for what was negotiated: in range,
    writable, aligned to the minimum block, never empty (but FLUSH is always 0+0). A payload is
    valid until the answer, or longer between `request.chunk.retain()` and `release()`.
    """

    def submit(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Take over `requests`. They must be finished even if the connection dies meanwhile."""

    def disconnected(self, connection: Connection) -> None:
        """`connection` is closed: called once, whether or not requests are still in flight."""

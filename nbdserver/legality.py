"""Which requests a client may make of an export, and which error the others get. Pure.

Everything that this module refuses never reaches a backend. Which error when: proto.md, "Error
values" and the sections of the commands; the sentences are ours, and say what would be legal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nbdserver.export import ExportInfo
from nbdserver.protocol import (
    NBD_CMD_BLOCK_STATUS,
    NBD_CMD_CACHE,
    NBD_CMD_FLAG_DF,
    NBD_CMD_FLAG_FAST_ZERO,
    NBD_CMD_FLAG_FUA,
    NBD_CMD_FLAG_NO_HOLE,
    NBD_CMD_FLAG_PAYLOAD_LEN,
    NBD_CMD_FLAG_REQ_ONE,
    NBD_CMD_FLUSH,
    NBD_CMD_READ,
    NBD_CMD_RESIZE,
    NBD_CMD_TRIM,
    NBD_CMD_WRITE,
    NBD_CMD_WRITE_ZEROES,
    NBD_EINVAL,
    NBD_ENOSPC,
    NBD_EPERM,
)
from nbdserver.terms import ReplyStyle, Terms

COMMAND_NAMES: Final = {
    NBD_CMD_READ: "READ",
    NBD_CMD_WRITE: "WRITE",
    NBD_CMD_FLUSH: "FLUSH",
    NBD_CMD_TRIM: "TRIM",
    NBD_CMD_CACHE: "CACHE",
    NBD_CMD_WRITE_ZEROES: "WRITE_ZEROES",
    NBD_CMD_BLOCK_STATUS: "BLOCK_STATUS",
    NBD_CMD_RESIZE: "RESIZE",
}
FLAG_NAMES: Final = {
    NBD_CMD_FLAG_FUA: "FUA",
    NBD_CMD_FLAG_NO_HOLE: "NO_HOLE",
    NBD_CMD_FLAG_DF: "DF",
    NBD_CMD_FLAG_REQ_ONE: "REQ_ONE",
    NBD_CMD_FLAG_FAST_ZERO: "FAST_ZERO",
    NBD_CMD_FLAG_PAYLOAD_LEN: "PAYLOAD_LEN",
}
_WRITING_COMMANDS: Final = frozenset((NBD_CMD_WRITE, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES))


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request is refused. `offset` is the first byte at fault, if it lies in the request."""

    error: int
    text: str
    offset: int | None = None


#: Nothing is to be done and nothing is wrong: a request of length zero.
NOTHING_TO_DO: Final = Fault(0, "")


class Legality:
    """The rules for one connection."""

    __slots__ = ("_allowed", "_export", "_status_is_known")

    def __init__(self, export: ExportInfo, terms: Terms) -> None:
        self._export = export
        self._status_is_known = bool(terms.contexts)
        fua = NBD_CMD_FLAG_FUA
        fragments = terms.style is not ReplyStyle.SIMPLE
        zeroes = fua | NBD_CMD_FLAG_NO_HOLE
        if export.can_fast_zero:
            zeroes |= NBD_CMD_FLAG_FAST_ZERO
        # FUA is legal on every command; where nothing is written it means nothing.
        self._allowed = {
            NBD_CMD_READ: fua | (NBD_CMD_FLAG_DF if fragments else 0),
            NBD_CMD_WRITE: fua,
            NBD_CMD_FLUSH: fua,
            NBD_CMD_TRIM: fua,
            NBD_CMD_CACHE: fua,
            NBD_CMD_WRITE_ZEROES: zeroes,
            NBD_CMD_BLOCK_STATUS: fua | NBD_CMD_FLAG_REQ_ONE,
        }

    def judge(self, command: int, flags: int, offset: int, length: int) -> Fault | None:
        """None if the backend shall have it, `NOTHING_TO_DO`, or why not."""
        allowed = self._allowed.get(command)
        name = COMMAND_NAMES.get(command, f"command {command}")
        if allowed is None:
            return Fault(NBD_EINVAL, f"{name} is not supported by this server")
        if flags & ~allowed:
            return _flags_fault(name, flags & ~allowed)
        if command == NBD_CMD_FLUSH:
            if offset or length:
                return Fault(NBD_EINVAL, "offset and length of a FLUSH must be zero")
            return None
        if command in _WRITING_COMMANDS and self._export.read_only:
            return Fault(NBD_EPERM, f"{name}: the export is read-only")
        if command == NBD_CMD_BLOCK_STATUS and not self._status_is_known:
            return Fault(
                NBD_EINVAL, "BLOCK_STATUS: no metadata context was selected for this export"
            )
        return self._range_fault(name, command, offset, length)

    def _range_fault(self, name: str, command: int, offset: int, length: int) -> Fault | None:
        export = self._export
        size, block, longest = (
            export.size_bytes,
            export.minimum_block_bytes,
            export.maximum_block_bytes,
        )
        what = f"{name} of {length} bytes at {offset}"
        if command <= NBD_CMD_WRITE and length > longest:
            return Fault(NBD_EINVAL, f"{what}: over the largest payload, {longest} bytes")
        if offset + length > size:
            full = command in (NBD_CMD_WRITE, NBD_CMD_WRITE_ZEROES)
            # The first byte past the end, where that is a byte of the request at all.
            first = max(offset, size) if length else None
            return Fault(
                NBD_ENOSPC if full else NBD_EINVAL,
                f"{what}: the export ends at {size}",
                first if first is not None and first < 1 << 64 else None,
            )
        if offset % block or length % block:
            return Fault(NBD_EINVAL, f"{what}: not in blocks of {block} bytes")
        if length:
            return None
        if command == NBD_CMD_BLOCK_STATUS:
            return Fault(NBD_EINVAL, "BLOCK_STATUS of no bytes")
        return NOTHING_TO_DO


def _flags_fault(name: str, wrong: int) -> Fault:
    known = [text for bit, text in FLAG_NAMES.items() if wrong & bit]
    unknown = wrong & ~sum(FLAG_NAMES)
    if unknown:
        known.append(f"unknown flags 0x{unknown:x}")
    return Fault(NBD_EINVAL, f"{name} with {' and '.join(known)}, which it does not take here")

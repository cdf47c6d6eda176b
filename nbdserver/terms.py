"""What one client and the server agreed on beside the export: the form of requests and replies, and
the metadata contexts that BLOCK_STATUS answers.

Terms live as long as their connection. They can be passed to another process as JSON, together
with the export, because a front may negotiate for a process that serves.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any

from nbdserver.export import ExportInfo
from nbdserver.protocol import NBD_FLAG_BLOCK_STATUS_PAYLOAD, NBD_FLAG_SEND_DF


class ReplyStyle(Enum):
    """How requests and replies look on the wire."""

    SIMPLE = "simple"
    STRUCTURED = "structured"  # compact requests, replies in chunks
    EXTENDED = "extended"  # 32-byte headers in both directions, replies in chunks


@dataclass(frozen=True, slots=True)
class Terms:
    """`contexts` are the names that the client selected; the n-th has the id n + 1."""

    style: ReplyStyle = ReplyStyle.SIMPLE
    contexts: tuple[str, ...] = ()

    def transmission_flags(self, export: ExportInfo) -> int:
        """The u16 that the client is told: the export's, and what these terms add to them."""
        flags = export.transmission_flags
        if self.style is not ReplyStyle.SIMPLE:
            flags |= NBD_FLAG_SEND_DF
        if self.style is ReplyStyle.EXTENDED and self.contexts:
            flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD
        return flags

    def context_ids(self) -> dict[int, str]:
        """The selected contexts by the ids that the client was given."""
        return dict(enumerate(self.contexts, 1))


def to_json(export: ExportInfo, terms: Terms) -> dict[str, Any]:
    """An agreement as JSON values; `from_json` undoes it."""
    return {
        "export": dataclasses.asdict(export),
        "style": terms.style.value,
        "contexts": list(terms.contexts),
    }


def from_json(agreement: dict[str, Any]) -> tuple[ExportInfo, Terms]:
    """What `to_json` was given. Raises KeyError, TypeError or ValueError for anything else."""
    export = dict(agreement["export"])
    export["contexts"] = tuple(export["contexts"])
    terms = Terms(ReplyStyle(agreement["style"]), tuple(agreement["contexts"]))
    return ExportInfo(**export), terms

"""Sizes of a simulated world, so small that a volume of a few MiB shows what a huge one does.

The core and the store read their sizes from module constants; `applied` gives them these for as
long as a world lives. Pages of the dirty maps are made small enough for a map to span several.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from repl.core import facts, intents, receiver, source, upkeep, volume, wire, writes
from repl.link import connection
from repl.node import writing
from repl.store import format as metadata_format

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of one simulated world, in bytes unless named otherwise."""

    size_bytes: int = MIB + 1536
    block_shift: int = 12
    #: Bits of one page of a dirty map, in bytes; with its header a whole number of sectors.
    page_bytes: int = 4032
    extent_shift: int = 16
    chunk_bytes: int = 32 << 10
    window_bytes: int = 96 << 10
    persist_bytes: int = 256 << 10
    background_sync_bytes: int = 512 << 10
    zero_in_turn_bytes: int = 16 << 10
    hot_extents_max: int = 6
    #: An extent is at rest after one to two of these.
    checkpoint_interval_s: float = 1.0
    frame_bytes: int = 256 << 10
    receive_buffer_bytes: int = 2 * MIB

    def __post_init__(self) -> None:
        assert self.size_bytes % 512 == 0 and (self.page_bytes + 64) % 512 == 0
        assert self.chunk_bytes % (1 << self.block_shift) == 0
        assert self.receive_buffer_bytes > self.frame_bytes + 48 >= self.chunk_bytes + 48


def random_geometry(choice: random.Random) -> Geometry:
    """Draw sizes: usually a small volume, now and then one whose maps have several pages."""
    large = choice.random() < 0.12
    block_shift = choice.choice((12, 12, 12, 13, 15))
    size_bytes = choice.choice((14 * MIB + 4096, 33 * MIB + 512) if large else (MIB, 3 * MIB))
    frame_bytes = choice.choice((64 << 10, 256 << 10))
    return Geometry(
        size_bytes=size_bytes + choice.choice((0, 512, 1536)),
        block_shift=block_shift,
        page_bytes=448 if large else choice.choice((448, 960, 4032)),
        extent_shift=choice.choice((14, 16, 16, 18, 20)),
        chunk_bytes=choice.choice((32 << 10, 64 << 10)),
        window_bytes=choice.choice((32 << 10, 96 << 10, 1 * MIB)),
        persist_bytes=choice.choice((64 << 10, 256 << 10)),
        background_sync_bytes=choice.choice((64 << 10, 512 << 10)),
        zero_in_turn_bytes=choice.choice((4 << 10, 16 << 10, 64 << 10)),
        hot_extents_max=choice.choice((2, 6, 40)),
        checkpoint_interval_s=choice.choice((0.3, 1.0, 2.0)),
        frame_bytes=frame_bytes,
        receive_buffer_bytes=choice.choice((frame_bytes * 3 // 2, 2 * MIB)),
    )


@contextlib.contextmanager
def applied(geometry: Geometry) -> Iterator[None]:
    """Give the core, the link and the store these sizes, and take them back at the end."""

    def shift(_size_bytes: int) -> int:
        return geometry.extent_shift

    frame_max = geometry.frame_bytes + wire.HEADER_BYTES
    values: list[tuple[ModuleType, str, object]] = [
        (facts, "extent_shift_for", shift),
        (metadata_format, "extent_shift_for", shift),
        (facts, "BLOCK_SHIFT_MIN", geometry.block_shift),
        (facts, "DIRTY_PAGE_BYTES", geometry.page_bytes),
        (metadata_format, "DIRTY_PAGE_BYTES", geometry.page_bytes),
        (source, "CHUNK_BYTES", geometry.chunk_bytes),
        (source, "WINDOW_BYTES", geometry.window_bytes),
        (source, "PERSIST_BYTES", geometry.persist_bytes),
        (receiver, "BACKGROUND_SYNC_BYTES", geometry.background_sync_bytes),
        (volume, "BACKGROUND_SYNC_BYTES", geometry.background_sync_bytes),
        (upkeep, "WATERMARK_INTERVAL_S", geometry.checkpoint_interval_s / 2),
        (writing, "ZERO_IN_TURN_BYTES", geometry.zero_in_turn_bytes),
        (intents, "HOT_EXTENTS_MAX", geometry.hot_extents_max),
        (upkeep, "CHECKPOINT_INTERVAL_S", geometry.checkpoint_interval_s),
        *((module, "PAYLOAD_BYTES_MAX", geometry.frame_bytes) for module in _FRAME_LIMITED),
        (connection, "_FRAME_BYTES_MAX", frame_max),
        (connection, "RECEIVE_BUFFER_BYTES", geometry.receive_buffer_bytes),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in values]
    for module, name, value in values:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, old in before:
            setattr(module, name, old)


#: The modules that hold the one declared limit of a frame's payload.
_FRAME_LIMITED = (wire, writes, receiver, connection)

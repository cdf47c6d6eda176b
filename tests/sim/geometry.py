"""Small extents, chunks and windows, so that a volume of 1 MiB shows what a huge one does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

from repl.core import facts, receiver, source, upkeep, volume
from repl.store import format as metadata_format


@dataclass(frozen=True, slots=True)
class Geometry:
    """The sizes of one simulated world, in bytes unless named otherwise."""

    size_bytes: int = (1 << 20) + 1536
    extent_shift: int = 16
    chunk_bytes: int = 32 << 10
    window_bytes: int = 96 << 10
    persist_bytes: int = 256 << 10
    background_sync_bytes: int = 512 << 10
    hot_extents_max: int = 6


@contextlib.contextmanager
def applied(geometry: Geometry) -> Iterator[None]:
    """Give the core and the store these sizes, and take them back at the end."""

    def shift(_size_bytes: int) -> int:
        return geometry.extent_shift

    values: list[tuple[ModuleType, str, object]] = [
        (facts, "extent_shift_for", shift),
        (metadata_format, "extent_shift_for", shift),
        (source, "CHUNK_BYTES", geometry.chunk_bytes),
        (source, "WINDOW_BYTES", geometry.window_bytes),
        (source, "PERSIST_BYTES", geometry.persist_bytes),
        (receiver, "BACKGROUND_SYNC_BYTES", geometry.background_sync_bytes),
        (volume, "BACKGROUND_SYNC_BYTES", geometry.background_sync_bytes),
        (upkeep, "HOT_EXTENTS_MAX", geometry.hot_extents_max),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in values]
    for module, name, value in values:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, old in before:
            setattr(module, name, old)

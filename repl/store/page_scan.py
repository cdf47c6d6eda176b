"""Reading one map's pages back after a close or a crash: which bits count, which pages are damaged.

A page that was never written reads as zero, so does one of an older epoch than the superblock's. A
damaged page reads as all ones, and so does one of a newer epoch: its commit began to empty the map
and did not get as far as the superblock, so what the page said before is lost, and only a superset
is safe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from repl.core.blockmap import BlockMap
from repl.store.format import (
    PAGE_HEADER_BYTES,
    PageKey,
    Region,
    decode_page,
)
from repl.store.record_json import FormatError

#: Bytes read at once while scanning.
SCAN_BYTES = 1 << 20


@dataclass(slots=True)
class PageScan:
    """What the scan of one map found beside its bits."""

    #: Pages that read as all ones because of what they hold; to be repaired.
    damaged: set[int] = field(default_factory=set)
    #: How many pages were damaged in which way.
    problems: Counter[str] = field(default_factory=Counter)


def scan_pages(
    pread: Callable[[int, int], bytes],
    region: Region,
    map_id: int,
    epoch: int,
    node_id: int,
    bitmap: BlockMap | None,
) -> PageScan:
    """Load the bits of a map's pages into `bitmap`; None for a peer slot that was never used."""
    scan = PageScan()
    for start in range(region.offset, region.end, SCAN_BYTES):
        chunk = pread(start, min(SCAN_BYTES, region.end - start))
        if chunk.count(0) == len(chunk):
            continue
        first_page = (start - region.offset) // region.page_bytes
        for index in range(len(chunk) // region.page_bytes):
            raw = chunk[index * region.page_bytes : (index + 1) * region.page_bytes]
            if raw.count(0) != len(raw):
                _load_page(raw, PageKey(map_id, first_page + index), epoch, node_id, bitmap, scan)
    return scan


def _load_page(
    raw: bytes,
    key: PageKey,
    epoch: int,
    node_id: int,
    bitmap: BlockMap | None,
    scan: PageScan,
) -> None:
    try:
        page_epoch, bits = decode_page(raw, key, node_id)
    except FormatError as error:
        problem = str(error)
    else:
        if page_epoch < epoch:
            return
        if page_epoch == epoch:
            if bitmap is not None:
                bitmap.load_page(key.page_no, bits)
            return
        problem = "of a commit that did not finish (newer epoch)"
    scan.damaged.add(key.page_no)
    scan.problems[problem] += 1
    if bitmap is not None:
        bitmap.load_page(key.page_no, b"\xff" * (len(raw) - PAGE_HEADER_BYTES))

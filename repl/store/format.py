"""The metadata file's layout and encodings, byte by byte (FORMAT.md says the same in prose).

Pure: bytes in, records out and back. It knows where a thing lies and whether its bytes are whole;
when a thing may be written, and what a damaged one means, is `metadata.py`. Every integer is
little-endian, every checksum is CRC-32C over all bytes of the unit that follow the checksum field.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from crc32c import crc32c

from repl.core.blockmap import DIRTY_PAGE_BYTES, INTENT_PAGE_BYTES
from repl.core.facts import Facts, block_shift_for, extent_shift_for
from repl.store.record_json import FormatError, from_json, to_json
from repl.store.stamp import Stamp

FORMAT_VERSION = 1
#: What a disk writes as a whole or not at all; single-sector units rely on it.
SECTOR_BYTES = 512
#: Dirty maps that the file has room for. The first release uses one.
PEER_SLOTS = 4

MARKER_OFFSET = 0
SUPERBLOCK_SLOT_BYTES = 64 << 10
SUPERBLOCK_SLOTS = 2
SUPERBLOCKS_OFFSET = 64 << 10
MAPS_OFFSET = SUPERBLOCKS_OFFSET + SUPERBLOCK_SLOTS * SUPERBLOCK_SLOT_BYTES
REGION_ALIGNMENT_BYTES = 4096

#: Map ids, as they stand in page headers and index `Body.epochs`.
INTENTS_ID = 0
REMAINING_ID = 1
DIRTY_ID = 2
MAP_COUNT = DIRTY_ID + PEER_SLOTS

_MARKER_MAGIC = b"REPLMARK"
_SUPERBLOCK_MAGIC = b"REPLMETA"
_PAGE_MAGIC = b"REPLPAGE"
_ALL_SET_MAGIC = b"REPLONES"
# The first four fields keep their places and meaning in every format version, so that any
# version can tell a record of another version from a torn one.
_SUPERBLOCK = struct.Struct("<8sIIQI36x")  # magic, crc32c, version, serial, body length
_PAGE = struct.Struct("<8sIHxxQQQ24x")  # magic, crc32c, map id, page number, epoch, node id
_MARKER = struct.Struct("<8sIIQ488x")  # magic, crc32c, closed, serial
_CRC_END = 12
PAGE_HEADER_BYTES = _PAGE.size
SUPERBLOCK_HEADER_BYTES = _SUPERBLOCK.size
SUPERBLOCK_BODY_BYTES_MAX = SUPERBLOCK_SLOT_BYTES - SUPERBLOCK_HEADER_BYTES

assert _SUPERBLOCK.size == 64 and _PAGE.size == 64 and _MARKER.size == SECTOR_BYTES
assert DIRTY_PAGE_BYTES + 64 == 4096 and INTENT_PAGE_BYTES + 64 == SECTOR_BYTES


class OtherVersion(FormatError):
    """A whole record of another format version; `version` is its number."""

    def __init__(self, version: int) -> None:
        super().__init__(f"format version {version}")
        self.version = version


class NotUnderstood(FormatError):
    """A record that was written whole and that this program cannot take for a superblock."""


@dataclass(frozen=True, slots=True)
class Region:
    """The place of one map's pages."""

    offset: int
    page_count: int
    #: Bytes of one page on disk, header included.
    page_bytes: int

    @property
    def end(self) -> int:
        """First byte after the region."""
        return self.offset + self.page_count * self.page_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """The numbers from which every offset follows; stored, and checked on load."""

    size_bytes: int
    block_shift: int
    extent_shift: int
    peer_slots: int

    @classmethod
    def for_volume(cls, size_bytes: int) -> Layout:
        """Return the layout of a new metadata file for a volume of this size."""
        block_shift, extent_shift = block_shift_for(size_bytes), extent_shift_for(size_bytes)
        return cls(size_bytes, block_shift, extent_shift, PEER_SLOTS)

    def region(self, map_id: int) -> Region:
        """Return where the pages of a map lie: intents, remaining, then one map per peer slot."""
        assert 0 <= map_id < DIRTY_ID + self.peer_slots
        intents = Region(
            MAPS_OFFSET,
            _page_count(self.size_bytes, self.extent_shift, INTENT_PAGE_BYTES),
            SECTOR_BYTES,
        )
        if map_id == INTENTS_ID:
            return intents
        first = -(-intents.end // REGION_ALIGNMENT_BYTES) * REGION_ALIGNMENT_BYTES
        pages = _page_count(self.size_bytes, self.block_shift, DIRTY_PAGE_BYTES)
        page_bytes = PAGE_HEADER_BYTES + DIRTY_PAGE_BYTES
        return Region(first + (map_id - REMAINING_ID) * pages * page_bytes, pages, page_bytes)

    @property
    def file_bytes(self) -> int:
        """Length of the whole metadata file."""
        return self.region(DIRTY_ID + self.peer_slots - 1).end


def _page_count(size_bytes: int, shift: int, page_bits_bytes: int) -> int:
    bits = (size_bytes + (1 << shift) - 1) >> shift
    return -(-bits // (page_bits_bytes * 8))


@dataclass(frozen=True, slots=True)
class Body:
    """What a superblock record says."""

    volume: str
    layout: Layout
    stamp: Stamp
    #: By map id: pages of an older epoch read as zero.
    epochs: tuple[int, ...]
    #: By peer slot: the peer's name, empty for a slot that was never used.
    slot_names: tuple[str, ...]
    facts: Facts


@dataclass(frozen=True, slots=True)
class Superblock:
    """One whole record out of a superblock slot."""

    serial: int
    body: Body


def superblock_offset(slot: int) -> int:
    """Return where a superblock slot begins."""
    assert 0 <= slot < SUPERBLOCK_SLOTS
    return SUPERBLOCKS_OFFSET + slot * SUPERBLOCK_SLOT_BYTES


def encode_superblock(superblock: Superblock) -> bytes:
    """Return the record in whole sectors; raise FormatError if it does not fit its slot.

    The bytes are decoded again before they are given out: what could not be read back must not
    replace a record that can.
    """
    text = json.dumps(to_json(superblock.body), separators=(",", ":"))
    body = text.encode("ascii")
    if len(body) > SUPERBLOCK_BODY_BYTES_MAX:
        raise FormatError(f"a record of {len(body)} bytes; {SUPERBLOCK_BODY_BYTES_MAX} fit")
    header = _SUPERBLOCK.pack(_SUPERBLOCK_MAGIC, 0, FORMAT_VERSION, superblock.serial, len(body))
    record = _with_crc(header + body)
    assert decode_superblock(record) == superblock, "a record must read back as itself"
    return record + bytes(-len(record) % SECTOR_BYTES)


def decode_superblock(raw: bytes) -> Superblock:
    """Decode what a slot holds.

    Raises FormatError for a torn or damaged record, OtherVersion for a whole one of another format
    version, NotUnderstood for a whole one with an impossible body.
    """
    magic, crc, version, serial, length = _SUPERBLOCK.unpack_from(raw)
    if magic != _SUPERBLOCK_MAGIC:
        raise FormatError("no record")
    end = SUPERBLOCK_HEADER_BYTES + length
    if end > len(raw) or crc32c(raw[_CRC_END:end]) != crc:
        raise FormatError("a torn or damaged record (its checksum does not match)")
    if version != FORMAT_VERSION:
        raise OtherVersion(version)
    try:
        body = from_json(Body, json.loads(raw[SUPERBLOCK_HEADER_BYTES:end]), "body")
        _check_body(body)
    except (ValueError, RecursionError) as error:
        raise NotUnderstood(f"a whole record that is not understood: {error}") from error
    return Superblock(serial, body)


def _check_body(body: Body) -> None:
    if body.layout.size_bytes != body.facts.size_bytes:
        raise FormatError("body.layout and body.facts disagree on the size")
    if body.layout != Layout.for_volume(body.layout.size_bytes):
        raise FormatError("body.layout is not the one for this size")
    if len(body.epochs) != MAP_COUNT or 0 in body.epochs:
        raise FormatError("body.epochs is not one epoch for each map")
    used = [name for name in body.slot_names if name]
    if len(body.slot_names) != PEER_SLOTS or len(set(used)) != len(used):
        raise FormatError("body.slot_names is not one name for each slot")
    if not {peer.name for peer in body.facts.peers} <= set(used):
        raise FormatError("a peer in body.facts has no slot")


@dataclass(frozen=True, slots=True)
class Marker:
    """Whether the last close was complete, and at which serial the file was opened or closed."""

    closed: bool
    serial: int


def encode_marker(marker: Marker) -> bytes:
    """Return the marker's one sector."""
    return _with_crc(_MARKER.pack(_MARKER_MAGIC, 0, marker.closed, marker.serial))


def decode_marker(raw: bytes) -> Marker:
    """Decode the marker's sector; raise FormatError for a damaged one."""
    magic, crc, closed, serial = _MARKER.unpack(raw)
    if magic != _MARKER_MAGIC or crc32c(raw[_CRC_END:]) != crc or closed > 1:
        raise FormatError("the open/closed marker is damaged")
    return Marker(bool(closed), serial)


@dataclass(frozen=True, slots=True)
class PageKey:
    """Which page: a map, and a page's number in it."""

    map_id: int
    page_no: int


def encode_page(key: PageKey, epoch: int, node_id: int, bits: bytes) -> bytes:
    """Return a page as it lies on disk."""
    assert len(bits) == (INTENT_PAGE_BYTES if key.map_id == INTENTS_ID else DIRTY_PAGE_BYTES)
    header = _PAGE.pack(_PAGE_MAGIC, 0, key.map_id, key.page_no, epoch, node_id)
    return _with_crc(header + bits)


def encode_all_set(key: PageKey, epoch: int, node_id: int) -> bytes:
    """Return the one sector that, as a page's first, makes every bit of the page read as set.

    Whatever the page's other sectors hold does not count, so the sector can be put over a damaged
    page without a moment at which the page reads as anything else.
    """
    header = _PAGE.pack(_ALL_SET_MAGIC, 0, key.map_id, key.page_no, epoch, node_id)
    return _with_crc(header + bytes(SECTOR_BYTES - PAGE_HEADER_BYTES))


def decode_page(raw: bytes, key: PageKey, node_id: int) -> tuple[int, bytes]:
    """Return (epoch, bits) of a page that was written; raise FormatError for a damaged one.

    A page that was never written is all zero bytes and is the caller's to recognise.
    """
    magic, crc, map_id, page_no, epoch, owner = _PAGE.unpack_from(raw)
    all_set = magic == _ALL_SET_MAGIC
    covered = raw[_CRC_END:SECTOR_BYTES] if all_set else raw[_CRC_END:]
    if (magic != _PAGE_MAGIC and not all_set) or crc32c(covered) != crc:
        raise FormatError("torn or damaged (checksum)")
    if (map_id, page_no, owner) != (key.map_id, key.page_no, node_id):
        raise FormatError("in the wrong place (header)")
    bits = raw[PAGE_HEADER_BYTES:]
    return epoch, b"\xff" * len(bits) if all_set else bits


def _with_crc(unit: bytes) -> bytes:
    return unit[:8] + struct.pack("<I", crc32c(unit[_CRC_END:])) + unit[_CRC_END:]

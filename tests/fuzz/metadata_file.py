"""Fuzz target: a metadata file that was damaged, or forged with checksums that fit.

An input is a list of patches to one of a few good files. Claims: the file is read or refused, with
a code and a sentence, and nothing else happens; after damage alone no record is believed that was
never written, and no dirty bit is lost except in a page that was wiped whole, which reads as one
never written.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from crc32c import crc32c

from repl.core.facts import Facts, Maps, PeerRecord
from repl.core.outbox import Commit, MapName, MapPage
from repl.errors import Refused
from repl.store.format import DIRTY_ID, MAP_COUNT, REMAINING_ID, SECTOR_BYTES, Layout
from repl.store.metadata import Loaded, Metadata
from repl.store.record_json import to_json
from repl.store.stamp import BackingKind, Stamp
from tests.fuzz.grammar import Grammar
from tests.fuzz.inputs import claim, parted
from tests.store.metadata_model import assert_covers, generation, snapshot

NAME: Final = "r0"
#: Three pages of a dirty map, the last one cut short.
SIZE_BYTES: Final = 300 << 20
LAYOUT: Final = Layout.for_volume(SIZE_BYTES)
SLOTS: Final = (64 << 10, 128 << 10)
SLOT_BYTES: Final = 64 << 10
#: Kind, length, a number, place, length of the data (its last byte counts).
PATCH: Final = struct.Struct(">BBHII")
RAW, WIPE, COPY, CUT, BODY_BYTE, BODY, PAGE = range(7)
HONEST: Final = (RAW, WIPE)
PATCHES_MAX: Final = 16


class Image:
    """A metadata file in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    def pread(self, offset: int, length: int) -> bytes:
        data = bytes(self.content[offset : offset + length])
        if len(data) < length:
            raise OSError(errno.EIO, "it was cut short")
        return data

    def pwrite(self, offset: int, data: bytes) -> None:
        self.content[offset : offset + len(data)] = data

    def sync(self) -> None:
        """Memory is as durable as this gets."""


@dataclass(frozen=True)
class Base:
    """A good file, the records that it ever held, and its maps."""

    content: bytes
    known: tuple[Facts, ...]
    bits: dict[tuple[MapName, str], int]


def _pages(maps: Maps, *marks: tuple[int, int]) -> list[MapPage]:
    beta = maps.dirty["beta"]
    for offset, length in marks:
        beta.mark(offset, length)
        maps.intents.mark(offset, length)
        maps.remaining.mark(offset // 2, length)
    found = [MapPage(MapName.DIRTY, "beta", n, beta.page(n)) for n in beta.take_changed()]
    found += [
        MapPage(MapName.REMAINING, "", n, maps.remaining.page(n))
        for n in maps.remaining.take_changed()
    ]
    intents = [
        MapPage(MapName.INTENTS, "", n, maps.intents.page(n)) for n in maps.intents.take_changed()
    ]
    return found + intents


@cache
def bases() -> tuple[Base, ...]:
    """A file in use, one behind a commit without a record, and one that was closed cleanly."""
    facts = Facts(11, SIZE_BYTES, peers=(PeerRecord("beta", 12, (5, 6), 7, 7),), clean=False)
    file = Image(bytes(LAYOUT.file_bytes))
    metadata = Metadata.create(file, NAME, facts, Stamp(BackingKind.FILE, SIZE_BYTES, tag="ab"))
    maps = Maps.empty(SIZE_BYTES, ("beta",))
    known = [facts]
    found = []
    for number in range(4):
        facts = replace(
            facts,
            volume_id=9,
            lineage=(generation(number + 1, number + 1), *facts.lineage),
            outdated=not facts.outdated,
            clean=number == 3,
        )
        emptied = [(MapName.REMAINING, "")] if number == 1 else []
        if emptied:
            maps.remaining.clear_all()
        pages = _pages(maps, (number << 26, 1 << 21), (number * 77 << 12, 4096))
        has_record = number != 2
        commit = Commit(number, facts if has_record else None, emptied=emptied)
        commit.pages.extend(pages)
        metadata.carry_out(metadata.prepare(commit))
        if has_record:
            known.append(facts)
        found.append(Base(bytes(file.content), tuple(known), snapshot(maps)))
    return tuple(found)


@dataclass(frozen=True)
class Patch:
    """One change of the file."""

    kind: int
    length: int
    place: int
    other: int
    data: bytes


def patches(stream: bytes) -> list[Patch]:
    """The stream as patches; the data of one follows its header."""
    found = []
    for raw in split(stream)[:PATCHES_MAX]:
        if len(raw) >= PATCH.size:
            kind, length, other, place, _ = PATCH.unpack_from(raw)
            found.append(Patch(kind % 7, length, place, other, raw[PATCH.size :]))
    return found


def apply(content: bytearray, patch: Patch) -> None:
    """Change the file as the patch says."""
    size = len(content)
    place = patch.place % max(size, 1)
    sector = place - place % SECTOR_BYTES
    if patch.kind == RAW:
        content[place : place + len(patch.data)] = patch.data[: size - place]
    elif patch.kind == WIPE:
        end = min(size, sector + (1 + patch.length % 8) * SECTOR_BYTES)
        content[sector:end] = bytes(end - sector)
    elif patch.kind == COPY:
        source = patch.other % max(size // SECTOR_BYTES, 1) * SECTOR_BYTES
        piece = content[source : source + (1 + patch.length % 8) * SECTOR_BYTES]
        content[sector : sector + len(piece)] = piece[: size - sector]
    elif patch.kind == CUT:
        del content[place:]
    elif patch.kind in (BODY_BYTE, BODY):
        _forge_body(content, patch)
    else:
        _forge_page(content, patch)


def _forge_body(content: bytearray, patch: Patch) -> None:
    start = SLOTS[patch.other % 2]
    if len(content) < start + SLOT_BYTES:
        return
    (length,) = struct.unpack_from("<I", content, start + 24)
    length = min(length, SLOT_BYTES - 64)
    if patch.kind == BODY:
        repeats = 1 + patch.length % 8 * 100
        body = (patch.data * repeats)[: SLOT_BYTES - 64]
        content[start + 64 : start + 64 + len(body)] = body
        struct.pack_into("<I", content, start + 24, len(body))
        length = len(body)
    elif length and patch.data:
        content[start + 64 + patch.place % length] = patch.data[0]
    struct.pack_into(
        "<I", content, start + 8, crc32c(bytes(content[start + 12 : start + 64 + length]))
    )


def _forge_page(content: bytearray, patch: Patch) -> None:
    region = LAYOUT.region(patch.other % MAP_COUNT)
    start = region.offset + patch.place % region.page_count * region.page_bytes
    if len(content) < start + region.page_bytes:
        return
    content[start + 12 : start + 12 + len(patch.data)] = patch.data
    content[start : start + 8] = b"REPLPAGE" if patch.length % 4 else b"REPLONES"
    end = region.page_bytes if patch.length % 4 else SECTOR_BYTES
    struct.pack_into("<I", content, start + 8, crc32c(bytes(content[start + 12 : start + end])))


def run(data: bytes) -> None:
    """One input: which file, and what is done to it."""
    choices, stream = parted(data)
    base = bases()[choices.number(0, len(bases()))]
    image = Image(base.content)
    done = patches(stream)
    for patch in done:
        apply(image.content, patch)
    before = bytes(image.content)
    try:
        loaded = Metadata.load(image, NAME)
    except Refused as error:
        claim(error.code.startswith("METADATA_"), f"{error.code}")
        claim(error.why and error.next_step, "a refusal without its reason")
        str(error).encode()
        return
    except OSError:
        claim(len(image.content) < LAYOUT.file_bytes, "a file of full length cannot be read")
        return
    claim(bytes(image.content) == before, "loading wrote something")
    _check(base, image, loaded, honest=all(patch.kind in HONEST for patch in done))


def _check(base: Base, image: Image, loaded: Loaded, *, honest: bool) -> None:
    to_json(loaded.facts)
    snapshot(loaded.maps)
    for report in loaded.reports:
        claim(report.isprintable(), f"no line for a log: {report!r}")
    if not honest:
        return
    claim(loaded.facts in base.known, "a record that was never written is believed")
    wiped = _wiped_maps(image.content, base.content)
    needed = {place: bits for place, bits in base.bits.items() if place[0] not in wiped}
    assert_covers(loaded, needed)


def _wiped_maps(content: bytearray, original: bytes) -> set[MapName]:
    """Maps that have a page which now reads as one that was never written."""
    found = set()
    names = {0: MapName.INTENTS, REMAINING_ID: MapName.REMAINING, DIRTY_ID: MapName.DIRTY}
    for map_id, name in names.items():
        region = LAYOUT.region(map_id)
        for start in range(region.offset, region.end, region.page_bytes):
            place = slice(start, start + region.page_bytes)
            if any(original[place]) and not any(content[place]):
                found.add(name)
    return found


def split(stream: bytes) -> list[bytes]:
    """Patches: a header, and as many bytes of data as it says."""
    found, position = [], 0
    while position < len(stream):
        end = position + PATCH.size + stream[min(position + 11, len(stream) - 1)]
        found.append(stream[position:end])
        position = end
    return found


def repair(message: bytes) -> bytes:
    """A patch that says how much data it has."""
    if len(message) < PATCH.size:
        return message
    size = min(len(message) - PATCH.size, 255)
    return message[: PATCH.size - 1] + bytes([size]) + message[PATCH.size : PATCH.size + size]


def patch(kind: int, length: int, other: int, place: int, data: bytes = b"") -> bytes:
    """A patch as bytes."""
    return PATCH.pack(kind, length, other, place, len(data)) + data


_REGIONS: Final = tuple(LAYOUT.region(number).offset for number in range(MAP_COUNT))
_PLACES: Final = (0, 8, 20, *SLOTS, *(start + 20 for start in SLOTS), *_REGIONS)
SAMPLES: Final = (
    *(patch(RAW, 0, 0, start + 64 + place, b"7") for start in SLOTS for place in range(0, 900, 30)),
    *(patch(RAW, 0, 0, place, data) for place in _PLACES for data in (b"\0", b"\xff" * 8)),
    *(patch(WIPE, length, 0, place) for place in _PLACES for length in (0, 7)),
    *(patch(COPY, 7, one // SECTOR_BYTES, two) for one in SLOTS for two in _PLACES),
    *(patch(CUT, 0, 0, place) for place in (0, 100, 70_000, 200_000)),
    *(patch(BODY_BYTE, 0, slot, place, b"9") for slot in (0, 1) for place in range(0, 600, 40)),
    *(
        patch(BODY, n, slot, 0, data)
        for slot in (0, 1)
        for n in (0, 7)
        for data in (b"[", b"{}", b'"\xff', b"1")
    ),
    *(
        patch(PAGE, n, map_id, 0, struct.pack("<H2xQQQ", map_id, 0, 1, 11))
        for map_id in range(6)
        for n in (0, 1)
    ),
)
GRAMMAR: Final = Grammar(split, SAMPLES, ((0, 1), (1, 1), (2, 2), (4, 4)), repair)


def grammar() -> Grammar:
    return GRAMMAR


def seeds() -> list[bytes]:
    """Each kind of patch to each of the files."""
    return [bytes([n]) + bytes(7) + each for n in range(4) for each in SAMPLES[n::9]]

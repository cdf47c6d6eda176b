"""The encodings: every record reads back as itself, and anything else is a FormatError."""

from __future__ import annotations

import copy
import json
import struct
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from repl.core.blockmap import DIRTY_PAGE_BYTES, INTENT_PAGE_BYTES
from repl.core.facts import Facts, PeerRecord
from repl.core.lineage import Generation, Origin
from repl.store import format as fmt
from repl.store.record_json import FormatError, from_json, to_json
from repl.store.stamp import BackingKind, Stamp

NUMBERS = st.integers(0, (1 << 63) - 1)
IDS = st.integers(1, (1 << 63) - 1)
GENERATIONS = st.builds(
    Generation,
    counter=IDS,
    id=IDS,
    primary=NUMBERS,
    members=st.sets(IDS, min_size=1, max_size=3).map(lambda ids: tuple(sorted(ids))),
    answered=st.booleans(),
    origin=st.sampled_from(Origin),
    made_at_s=NUMBERS,
    permit=st.text(max_size=20),
)
PEERS = st.builds(
    PeerRecord,
    name=st.sampled_from(["beta", "gamma"]),
    node_id=NUMBERS,
    tokens=st.lists(NUMBERS, max_size=2).map(tuple),
    base_from=NUMBERS,
    base_to=NUMBERS,
)
FACTS = st.builds(
    Facts,
    node_id=IDS,
    size_bytes=st.integers(1, 1 << 50),
    lineage=st.lists(GENERATIONS, max_size=4).map(tuple),
    discarded=st.lists(IDS, max_size=2).map(tuple),
    boot_id=st.text(max_size=40),
    outdated=st.booleans(),
    peers=st.lists(PEERS, max_size=2, unique_by=lambda peer: peer.name).map(tuple),
)
STAMP = Stamp(BackingKind.BLOCK, 1 << 30, device=5, serial="wwid:é")


def superblock_of(facts: Facts, serial: int = 3) -> fmt.Superblock:
    layout = fmt.Layout.for_volume(facts.size_bytes)
    body = fmt.Body("r0", layout, STAMP, (1,) * fmt.MAP_COUNT, ("beta", "gamma", "", ""), facts)
    return fmt.Superblock(serial, body)


@given(facts=FACTS, serial=st.integers(0, (1 << 64) - 1))
def test_a_superblock_reads_back_as_itself(facts: Facts, serial: int) -> None:
    superblock = superblock_of(facts, serial)
    raw = fmt.encode_superblock(superblock)
    assert len(raw) % fmt.SECTOR_BYTES == 0
    assert fmt.decode_superblock(raw + bytes(fmt.SUPERBLOCK_SLOT_BYTES - len(raw))) == superblock


@given(facts=FACTS, data=st.data())
@settings(max_examples=40)
def test_one_flipped_bit_is_noticed_wherever_it_is(facts: Facts, data: st.DataObject) -> None:
    raw = bytearray(fmt.encode_superblock(superblock_of(facts)))
    length = struct.unpack_from("<I", raw, 24)[0]
    position = data.draw(st.integers(0, fmt.SUPERBLOCK_HEADER_BYTES + length - 1))
    raw[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(FormatError):
        fmt.decode_superblock(bytes(raw))


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    found = [here]
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        found += paths(inner, (*here, key))
    return found


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    document = copy.deepcopy(document)
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return document


RICH = Facts(
    node_id=1,
    size_bytes=1 << 30,
    lineage=(Generation(2, 9, 1, (1, 2), True, Origin.JOINED, 5, "words"),),
    discarded=(4,),
    peers=(PeerRecord("beta", 2, (7, 8), 9, 9),),
)


@pytest.mark.parametrize("wrong", [None, 1.5, -1, 1 << 63, "?", [0], {}, [None], True])
def test_a_wrong_type_anywhere_is_a_format_error(wrong: Any) -> None:
    document = to_json(superblock_of(RICH).body)
    refused = 0
    for path in paths(document):
        changed = replaced(document, path, wrong)
        try:
            decoded = from_json(fmt.Body, changed, "body")
        except FormatError:
            refused += 1
        else:
            assert to_json(decoded) == changed, path
    assert refused > len(paths(document)) // 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("layout", "size_bytes"), 1 << 31),
        (("layout", "block_shift"), 13),
        (("epochs",), [1, 1]),
        (("epochs", 0), 0),
        (("slot_names",), ["", "", "", ""]),
        (("slot_names",), ["beta", "beta", "", ""]),
        (("facts", "node_id"), 0),
        (("facts", "lineage", 0, "members"), [2, 1]),
        (("facts", "lineage", 0, "members"), []),
        (("facts", "lineage", 0, "id"), 0),
        (("facts", "lineage", 0, "origin"), "magic"),
        (("facts", "peers", 0, "name"), ""),
        (("facts", "unheard_of"), 1),
    ],
)
def test_a_whole_record_that_makes_no_sense_is_not_taken_for_a_torn_one(
    field: tuple[Any, ...], value: Any
) -> None:
    body = json.dumps(replaced(to_json(superblock_of(RICH).body), field, value)).encode()
    with pytest.raises(fmt.NotUnderstood):
        fmt.decode_superblock(raw_superblock(body, fmt.FORMAT_VERSION))


def raw_superblock(body: bytes, version: int) -> bytes:
    covered = struct.pack("<IQI36x", version, 3, len(body)) + body
    return b"REPLMETA" + struct.pack("<I", crc32c(covered)) + covered


def test_a_whole_record_of_another_version_is_told_by_its_number() -> None:
    with pytest.raises(fmt.OtherVersion) as caught:
        fmt.decode_superblock(raw_superblock(b"whatever", 7))
    assert caught.value.version == 7


def test_a_record_that_does_not_fit_is_refused() -> None:
    lineage = tuple(Generation(n, n, 1, (1,), False, Origin.ALONE, 0) for n in range(2000, 0, -1))
    with pytest.raises(FormatError, match="fit"):
        fmt.encode_superblock(superblock_of(Facts(1, 1 << 30, lineage=lineage)))


@pytest.mark.parametrize("map_id", [fmt.INTENTS_ID, fmt.REMAINING_ID, fmt.DIRTY_ID])
def test_a_page_reads_back_and_only_in_its_place(map_id: int) -> None:
    length = INTENT_PAGE_BYTES if map_id == fmt.INTENTS_ID else DIRTY_PAGE_BYTES
    bits = bytes(range(64)) * (length // 64)
    key = fmt.PageKey(map_id, 5)
    raw = fmt.encode_page(key, 9, 77, bits)
    assert len(raw) in (512, 4096)
    assert fmt.decode_page(raw, key, 77) == (9, bits)
    for other, node in ((fmt.PageKey(map_id, 6), 77), (fmt.PageKey(map_id + 1, 5), 77), (key, 78)):
        with pytest.raises(FormatError, match="place"):
            fmt.decode_page(raw, other, node)
    for position in (0, 8, 12, 63, 64, len(raw) - 1):
        damaged = bytearray(raw)
        damaged[position] ^= 4
        with pytest.raises(FormatError):
            fmt.decode_page(bytes(damaged), key, 77)


def test_the_all_set_sector_needs_nothing_of_the_rest_of_its_page() -> None:
    key = fmt.PageKey(fmt.DIRTY_ID, 1)
    sector = fmt.encode_all_set(key, 4, 77)
    assert len(sector) == fmt.SECTOR_BYTES
    page = sector + b"rubbish!" * (3584 // 8)
    assert fmt.decode_page(page, key, 77) == (4, b"\xff" * DIRTY_PAGE_BYTES)
    damaged = bytearray(page)
    damaged[500] ^= 1
    with pytest.raises(FormatError):
        fmt.decode_page(bytes(damaged), key, 77)


@pytest.mark.parametrize("closed", [True, False])
def test_the_marker_reads_back_and_damage_is_noticed(closed: bool) -> None:
    raw = fmt.encode_marker(fmt.Marker(closed, 41))
    assert len(raw) == fmt.SECTOR_BYTES
    assert fmt.decode_marker(raw) == fmt.Marker(closed, 41)
    for position in (0, 9, 12, 20, 511):
        damaged = bytearray(raw)
        damaged[position] ^= 1
        with pytest.raises(FormatError):
            fmt.decode_marker(bytes(damaged))
    with pytest.raises(FormatError):
        fmt.decode_marker(bytes(512))


@given(size_bytes=st.one_of(st.integers(1, 1 << 44), st.sampled_from([1 << 40, (1 << 63) - 1])))
def test_regions_lie_one_after_the_other_aligned_and_never_overlap(size_bytes: int) -> None:
    layout = fmt.Layout.for_volume(size_bytes)
    end = fmt.superblock_offset(1) + fmt.SUPERBLOCK_SLOT_BYTES
    for map_id in range(fmt.MAP_COUNT):
        region = layout.region(map_id)
        assert region.offset >= end
        assert region.offset % 4096 == 0
        assert region.page_count > 0
        end = region.end
        bits = region.page_count * (region.page_bytes - fmt.PAGE_HEADER_BYTES) * 8
        shift = layout.extent_shift if map_id == fmt.INTENTS_ID else layout.block_shift
        assert bits << shift >= size_bytes
    assert end == layout.file_bytes

"""Micro-benchmarks of the pure parts on the hot path; run by `make bench-micro`.

Each case does a batch of 32 so that fixed costs weigh as they do at depth 32.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from repl.core import wire
from repl.core.blockmap import DIRTY_PAGE_BYTES, BlockMap
from repl.core.facts import Facts, Maps
from repl.core.outbox import Outbox, WriteKind
from repl.core.promotion import PromoteRequest
from repl.core.spans import Spans
from repl.core.volume import Volume
from repl.core.wire import Type

BATCH = 32
VOLUME_BYTES = 1 << 30
BLOCK = 4096
WARM_EXTENTS = 64


@pytest.fixture
def offsets() -> list[int]:
    choice = random.Random(1)
    return [block * BLOCK for block in choice.sample(range(WARM_EXTENTS << 8), BATCH)]


@pytest.mark.parametrize("size", [4 << 10, 128 << 10])
def test_frames_are_encoded(benchmark: Any, size: int) -> None:
    payload = memoryview(bytes(size))

    def encode() -> None:
        for seq in range(BATCH):
            wire.encode_header(Type.WRITE, payload, seq, 0, size, 1, 0)

    benchmark(encode)


@pytest.mark.parametrize("size", [4 << 10, 128 << 10])
def test_frames_are_decoded_and_verified(benchmark: Any, size: int) -> None:
    payload = bytes(size)
    frame = wire.encode_header(Type.WRITE, payload, 1, 0, size, 1, 0) + payload
    view = memoryview(frame)

    def decode() -> None:
        for _ in range(BATCH):
            header = wire.decode_header(view)
            wire.verify(header, view, view[wire.HEADER_BYTES :])

    benchmark(decode)


def test_random_blocks_are_marked_dirty(benchmark: Any, offsets: list[int]) -> None:
    bitmap = BlockMap(VOLUME_BYTES, 12, DIRTY_PAGE_BYTES)

    def mark() -> None:
        for offset in offsets:
            bitmap.mark(offset, BLOCK)

    benchmark(mark)


def test_writes_in_flight_are_checked_for_overlaps(benchmark: Any, offsets: list[int]) -> None:
    spans = Spans()

    def pass_through() -> None:
        for offset in offsets:
            if not spans.overlaps(offset, offset + BLOCK):
                spans.add(offset, offset + BLOCK)
        for offset in offsets:
            spans.remove(offset)

    benchmark(pass_through)


def _carry_out(volume: Volume) -> list[object]:
    replies: list[object] = []
    box: Outbox
    while not (box := volume.take()).empty:
        for job in box.disk:
            volume.disk_done(job[0])
        if box.commit is not None:
            volume.metadata_done(box.commit.number)
        if box.sync:
            volume.sync_done(box.sync)
        replies += box.replies
    return replies


def test_core_turn_answers_a_batch_of_writes(benchmark: Any, offsets: list[int]) -> None:
    ids = itertools.count(1)
    facts = Facts(node_id=1, size_bytes=VOLUME_BYTES, known_zeroes=True)
    volume = Volume(
        "r0",
        "alpha",
        facts,
        Maps.empty(VOLUME_BYTES, ()),
        boot_id="bench",
        random_id=lambda: next(ids),
        now_s=0.0,
        wall_clock_s=0,
    )
    _carry_out(volume)
    volume.promote(1, PromoteRequest())
    _carry_out(volume)
    assert volume.is_primary
    ops = itertools.count()
    for extent in range(WARM_EXTENTS):
        volume.client_write(next(ops), WriteKind.WRITE, extent << 20, BLOCK, False)
    _carry_out(volume)

    def turn() -> None:
        for offset in offsets:
            volume.client_write(next(ops), WriteKind.WRITE, offset, BLOCK, False)
        assert len(_carry_out(volume)) == BATCH

    benchmark(turn)

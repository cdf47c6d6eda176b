"""Micro-benchmarks of the pure parts on the hot path; run by `make bench-micro`.

Each case does a batch of 32, so that fixed costs weigh as they do at depth 32. Those of whole turns
do a batch of one as well: at depth 1 the fixed costs of a turn are what counts.
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
from tests.core.pair_of_cores import SIZE, Node, established_pair

BATCH = 32
BATCHES = pytest.mark.parametrize("batch", [1, BATCH])
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
            assert spans.claim(offset, offset + BLOCK)
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


def _take_all(volume: Volume) -> list[Outbox]:
    """Take outboxes until one is empty, as the engine does; a sync is over at once."""
    boxes = []
    while not (box := volume.take()).empty:
        boxes.append(box)
        if box.sync:
            volume.sync_done(box.sync)
        for job in box.disk:
            volume.disk_done(job[0])
        for peer, _kind, seq, *_ in box.apply:
            volume.applied(peer, seq)
    return boxes


def _warm_pair() -> tuple[Node, Node]:
    """Return primary and secondary, in sync, with durable intents for every extent."""
    pair = established_pair()
    for offset in range(0, SIZE, 1 << 20):
        pair.alpha.write(offset, bytes(BLOCK))
    pair.run()
    return pair.alpha, pair.beta


def _block_offsets(batch: int) -> list[int]:
    return [block * BLOCK for block in random.Random(1).sample(range(SIZE // BLOCK), batch)]


@BATCHES
def test_primary_mirrors_a_batch_of_writes(benchmark: Any, batch: int) -> None:
    """Two turns of the primary's core: requests in, frames out; acknowledgement in, replies out."""
    primary, _ = _warm_pair()
    volume, session, offsets = primary.volume, primary.session, _block_offsets(batch)
    ops, generation = itertools.count(10_000), volume.facts.generation.id

    def turns() -> None:
        for offset in offsets:
            volume.client_write(next(ops), WriteKind.WRITE, offset, BLOCK, False)
        _take_all(volume)
        seq = session.sent_seq
        volume.peer_frames("beta", [(Type.ACK, seq, seq, 0, generation, 0, b"")])
        assert sum(len(box.replies) for box in _take_all(volume)) == batch

    benchmark(turns)


@BATCHES
def test_secondary_applies_a_batch_of_writes(benchmark: Any, batch: int) -> None:
    """One turn of the secondary's core: frames in, jobs for the disk, one acknowledgement out."""
    primary, secondary = _warm_pair()
    volume, offsets = secondary.volume, _block_offsets(batch)
    seqs, payload = itertools.count(primary.session.sent_seq + 1), memoryview(bytes(BLOCK))
    generation = volume.facts.generation.id

    def turn() -> None:
        volume.peer_frames(
            "alpha",
            [(Type.WRITE, next(seqs), offset, BLOCK, generation, 0, payload) for offset in offsets],
        )
        boxes = _take_all(volume)
        assert sum(len(box.apply) for box in boxes) == batch
        assert boxes[-1].send

    benchmark(turn)

"""The source of a copy: no stale chunk, no hole over a write, nothing cleared or ended early."""

from __future__ import annotations

import pytest

from repl.core.outbox import WriteKind
from repl.core.source import CHUNK_BYTES, WINDOW_BYTES
from repl.core.states import Phase
from repl.core.wire import Type
from tests.core.every_phase import at, behind_pair
from tests.core.pair_of_cores import BLOCK, EXTENT, SIZE, Node, Pair, data, established_pair


def resyncing() -> Node:
    """alpha, source of a resync whose chunks are asked for and not read yet."""
    return at("source")


def finish(node: Node) -> None:
    node.hold_copies = False
    node.pair.run()
    assert node.session.phase is Phase.ESTABLISHED, node.session.phase
    assert node.pair.equal()
    assert not node.broken and not node.other.broken


def dirty(node: Node) -> int:
    return node.volume.maps.dirty[node.peer_name].count


def kinds_since(node: Node, place: int) -> list[Type]:
    return [header.type for header in node.sent[place:]]


def test_a_finished_copy_leaves_two_equal_members_and_an_empty_map() -> None:
    node = resyncing()
    finish(node)
    assert dirty(node) == 0
    assert node.volume.facts.generation.members == (11, 22)


def test_only_what_changed_is_looked_at() -> None:
    node = resyncing()
    finish(node)
    assert node.session.resync_sent_bytes <= EXTENT


def test_a_copy_never_asks_for_more_than_its_window() -> None:
    pair = Pair()
    pair.alpha.adopt()
    pair.run()
    pair.alpha.disk[:] = data(1, SIZE)
    pair.alpha.hold_copies = True
    pair.connect()
    pair.run()
    assert 0 < sum(job[2] for job in pair.alpha.copy_jobs) < WINDOW_BYTES + CHUNK_BYTES
    assert all(0 < job[2] <= CHUNK_BYTES for job in pair.alpha.copy_jobs)


def test_many_small_discards_are_sent_as_one_hole_for_a_chunk() -> None:
    pair = established_pair()
    alpha = pair.alpha
    alpha.write(0, data(1, EXTENT))
    pair.run()
    pair.cut()
    for offset in range(0, EXTENT, BLOCK):
        alpha.write(offset, BLOCK, kind=WriteKind.TRIM)
    pair.advance(2.0)
    place = len(alpha.sent)
    pair.connect()
    pair.run()
    kinds = kinds_since(alpha, place)
    assert 0 < kinds.count(Type.RESYNC_ZERO) <= EXTENT // CHUNK_BYTES
    assert Type.RESYNC_WRITE not in kinds and Type.DIGEST not in kinds
    assert pair.equal()


def test_writing_clients_take_nothing_from_a_copys_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that made way for every write would take days beside a busy application."""
    window_bytes = 4 * CHUNK_BYTES
    monkeypatch.setattr("repl.core.source.WINDOW_BYTES", window_bytes)
    pair = Pair()
    alpha = pair.alpha
    alpha.adopt()
    pair.run()
    alpha.disk[:] = data(1, SIZE)
    alpha.hold_copies = True
    pair.connect()
    pair.run()
    alpha.promote()
    pair.run()
    left_bytes = SIZE
    while alpha.copy_jobs:
        assert sum(job[2] for job in alpha.copy_jobs) >= min(window_bytes, left_bytes)
        job, *alpha.copy_jobs = alpha.copy_jobs
        alpha.finish_copies([job])
        left_bytes -= job[2]
        alpha.write(job[1], data(2))
        pair.run()
    assert left_bytes == 0
    assert pair.equal()


# Writes and chunks.


def test_chunk_before_write() -> None:
    """A chunk read before a write and queued behind it would bring the old bytes back."""
    node = resyncing()
    old, node.copy_jobs = node.copy_jobs, []
    before = bytes(node.disk)
    op = node.write(0, data(7))
    node.pair.run()
    assert op in node.replies
    now, node.disk = node.disk, bytearray(before)
    place = len(node.sent)
    node.finish_copies(old[:1])
    node.disk = now
    assert not {Type.RESYNC_WRITE, Type.DIGEST, Type.RESYNC_ZERO} & set(kinds_since(node, place))
    node.finish_copies(old[1:])
    finish(node)
    assert node.other.disk[0] == 7


def test_a_stale_chunk_is_read_again() -> None:
    node = resyncing()
    asked = {job[1] for job in node.copy_jobs}
    node.write(0, data(7))
    node.pair.run()
    node.hold_copies = False
    jobs, node.copy_jobs = node.copy_jobs, []
    node.hold_copies = True
    node.finish_copies(jobs)
    node.pair.run()
    assert [job[1] for job in node.copy_jobs] == [0]
    assert 0 in asked
    finish(node)


def test_no_chunk_is_read_under_a_write_that_the_local_disk_does_not_have() -> None:
    pair = behind_pair()
    pair.alpha.hold_disk = pair.alpha.hold_copies = True
    pair.alpha.write(0, data(7))
    pair.run()
    pair.connect()
    pair.run()
    assert all(job[1] > 0 for job in pair.alpha.copy_jobs)
    pair.alpha.hold_disk = False
    finish(pair.alpha)


def test_a_write_that_waits_only_for_the_peer_does_not_hold_up_the_copy() -> None:
    """It waits for the settle, so that a settle that waited for it would never end."""
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.cut()
    op = pair.alpha.write(0, data(2))
    pair.run()
    pair.connect()
    pair.run()
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert op in pair.alpha.replies
    assert pair.equal()


def zeroed_alone() -> Pair:
    """alpha zeroed its first extent while it was alone; beta has other bytes there."""
    pair = established_pair()
    pair.alpha.write(0, data(5, EXTENT))
    pair.run()
    pair.cut()
    pair.alpha.write(0, EXTENT, kind=WriteKind.TRIM)
    pair.advance(2.0)
    assert pair.alpha.volume.facts.alone
    pair.alpha.hold_copies = True
    return pair


def test_a_hole_does_not_reach_over_a_write_launched_after_it_was_asked_for() -> None:
    pair = zeroed_alone()
    node = pair.alpha
    pair.connect()
    pair.run()
    node.hold_disk = True
    op = node.write(2 * CHUNK_BYTES, data(7))
    pair.run()
    assert [job[0] for job in node.disk_jobs] == [op]
    node.hold_copies = False
    pair.run()
    node.hold_disk = False
    finish(node)
    assert node.other.disk[2 * CHUNK_BYTES] == 7


def test_a_hole_does_not_reach_over_a_write_that_was_in_flight_when_it_was_asked_for() -> None:
    """The write is behind the chunk's own blocks, and not on the disk that was asked for holes."""
    pair = zeroed_alone()
    node = pair.alpha
    node.hold_disk = True
    node.write(2 * CHUNK_BYTES, data(7))
    pair.run()
    pair.connect()
    pair.run()
    assert node.session.phase is Phase.SOURCE
    node.hold_copies = False
    pair.run()
    node.hold_disk = False
    finish(node)
    assert pair.beta.disk[2 * CHUNK_BYTES] == 7


def test_writes_during_a_copy_are_mirrored_and_the_copy_ends_equal() -> None:
    pair = Pair()
    pair.alpha.adopt()
    pair.run()
    pair.alpha.disk[:] = data(1, SIZE)
    number = pair.alpha.promote()
    pair.run()
    assert pair.alpha.answers[number].ok
    pair.connect()
    ops = []
    for step in range(200):
        if step % 3 == 0:
            offset = (step * 37 % 1000) * BLOCK + step
            kind = WriteKind.TRIM if step % 9 == 0 else WriteKind.WRITE
            what: int | bytes = 9000 if kind is WriteKind.TRIM else data(step % 250, 9000)
            ops.append(pair.alpha.write(offset, what, kind=kind))
        for node in pair.nodes:
            node.step()
    finish(pair.alpha)
    assert sorted(map(str, pair.alpha.replies)) == sorted(ops)


# Bits.


def test_a_dirty_bit_is_cleared_only_at_the_targets_durable_watermark() -> None:
    node = resyncing()
    before = dirty(node)
    node.other.hold_syncs = True
    node.hold_copies = False
    node.pair.run()
    assert node.session.acked_seq == node.session.sent_seq > 0, "everything is applied"
    assert dirty(node) == before
    assert node.session.phase is Phase.SOURCE, "and the copy has not ended"
    node.other.hold_syncs = False
    finish(node)
    assert dirty(node) == 0


def test_an_equal_digest_clears_its_bit_only_when_durable_there() -> None:
    node = at("settle-target").other
    before = dirty(node)
    assert before
    node.other.hold_syncs = True
    node.hold_copies = False
    node.pair.run()
    assert dirty(node) == before
    node.other.hold_syncs = False
    finish(node)
    assert dirty(node) == 0


def test_a_cut_in_the_middle_loses_no_dirty_bit() -> None:
    node = resyncing()
    before = dirty(node)
    node.other.hold_syncs = True
    node.hold_copies = False
    node.pair.run()
    node.write(3 * EXTENT, data(4))
    node.pair.run()
    node.pair.cut()
    assert dirty(node) == before + 1
    node.other.hold_syncs = False
    node.pair.run()
    node.pair.connect()
    finish(node)


def test_a_source_killed_in_the_middle_still_knows_what_to_copy() -> None:
    node = resyncing()
    before = dirty(node)
    node.pair.restart(node)
    node.hold_copies = False
    node.pair.run()
    assert dirty(node) >= before
    node.pair.connect()
    finish(node)


def test_an_interrupted_copy_goes_on_by_the_map() -> None:
    node = resyncing()
    node.pair.restart(node.other)
    node.pair.run()
    node.pair.connect()
    finish(node)
    assert node.session.decision is not None
    assert node.session.decision.rule == "ancestor"


# The end.


def test_a_copy_does_not_end_before_this_node_is_durable_too() -> None:
    """A target that becomes a member must not hold on disk what its source could still lose."""
    node = resyncing()
    node.hold_syncs = True
    node.hold_copies = False
    node.pair.run()
    assert node.session.phase is Phase.SOURCE
    node.hold_syncs = False
    finish(node)


def test_bits_that_appear_before_the_end_are_looked_at_again() -> None:
    node = resyncing()
    node.other.hold_syncs = True
    node.hold_copies = False
    node.pair.run()
    node.volume.maps.dirty["beta"].mark(3 * EXTENT, BLOCK)
    node.disk[3 * EXTENT] = 9
    node.other.hold_syncs = False
    finish(node)
    assert node.other.disk[3 * EXTENT] == 9


def test_a_settle_ends_with_the_marks_cleared_on_both_sides() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(5))
    pair.run()
    pair.restart(pair.beta, power_loss=True)
    pair.run()
    assert pair.beta.volume.facts.cache_lost
    pair.connect()
    pair.run()
    assert pair.equal()
    for node in pair.nodes:
        assert not node.metadata.facts.cache_lost
        assert not node.volume.intents.suspect


def test_wrong_crash_mark() -> None:
    """The primary loses power, its peer only the process: the peer is source and w survives."""
    pair = established_pair()
    pair.alpha.write(0, data(5))
    pair.run()
    assert pair.alpha.durable[0] == 0
    pair.restart(pair.alpha, power_loss=True)
    pair.restart(pair.beta)
    pair.run()
    pair.connect()
    pair.run()
    assert pair.alpha.disk[0] == pair.beta.disk[0] == 5
    assert pair.alpha.session.phase is Phase.ESTABLISHED


def test_join_without_sync() -> None:
    """A joined member holds on disk all that was flushed before it joined."""
    node = resyncing()
    node.hold_copies = False
    node.pair.run()
    assert node.volume.facts.generation.members == (11, 22)
    node.pair.restart(node.other, power_loss=True)
    assert node.other.disk[0] == 1

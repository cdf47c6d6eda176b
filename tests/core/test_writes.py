"""Client requests: admitted in one order, answered once, and never too early."""

from __future__ import annotations

import pytest

from repl.core.outbox import WriteKind
from repl.core.states import Phase
from repl.core.wire import Type
from tests.core.every_phase import at, behind_pair
from tests.core.pair_of_cores import BLOCK, EXTENT, SIZE, Node, Pair, data, established_pair


def warm(pair: Pair) -> None:
    """Make the first extent hot and the generation answered."""
    pair.alpha.write(0, data(9))
    pair.run()
    pair.alpha.replies.clear()
    pair.alpha.events.clear()


def write_frames(node: Node) -> int:
    return sum(header.type is Type.WRITE for header in node.sent)


def test_a_write_is_answered_once_and_is_on_both_nodes() -> None:
    pair = established_pair()
    op = pair.alpha.write(BLOCK, data(1))
    pair.run()
    assert pair.alpha.replies == [op]
    assert pair.alpha.disk[BLOCK] == pair.beta.disk[BLOCK] == 1


def test_a_write_to_a_cold_extent_reaches_no_disk_and_no_peer_before_its_intent_is_durable() -> (
    None
):
    pair = established_pair()
    pair.alpha.hold_commits = True
    op = pair.alpha.write(2 * EXTENT, data(1))
    before = write_frames(pair.alpha)
    pair.run()
    assert ("disk", op) not in pair.alpha.events
    assert write_frames(pair.alpha) == before
    pair.alpha.hold_commits = False
    pair.run()
    assert pair.alpha.replies == [op]


def test_a_write_to_a_hot_extent_costs_no_commit() -> None:
    pair = established_pair()
    warm(pair)
    pair.alpha.hold_commits = pair.beta.hold_commits = True
    op = pair.alpha.write(BLOCK, data(1))
    pair.run()
    assert pair.alpha.replies == [op]


def test_no_reply_before_the_local_disk_has_the_write() -> None:
    pair = established_pair()
    warm(pair)
    pair.alpha.hold_disk = True
    op = pair.alpha.write(0, data(1))
    pair.run()
    assert not pair.alpha.replies
    pair.alpha.hold_disk = False
    pair.run()
    assert pair.alpha.replies == [op]


def test_no_reply_before_every_member_has_applied_the_write() -> None:
    pair = established_pair()
    warm(pair)
    pair.beta.hold_incoming = True
    op = pair.alpha.write(0, data(1))
    pair.run()
    assert pair.alpha.disk[0] == 1
    assert not pair.alpha.replies
    pair.beta.hold_incoming = False
    pair.run()
    assert pair.alpha.replies == [op]


def test_no_reply_before_the_answered_mark_is_stored() -> None:
    pair = established_pair()
    assert not pair.alpha.volume.facts.generation.answered
    op = pair.alpha.write(0, data(1))
    while not pair.alpha.volume.facts.generation.answered:
        pair.alpha.hold_commits = False
        pair.alpha.step()
        pair.alpha.hold_commits = True
        pair.beta.step()
    pair.run()
    assert not pair.alpha.replies, "the mark is in memory only"
    assert not pair.alpha.metadata.facts.generation.answered
    pair.alpha.hold_commits = False
    pair.run()
    assert pair.alpha.replies == [op]
    assert pair.alpha.metadata.facts.generation.answered


def test_a_read_waits_for_nothing() -> None:
    pair = established_pair()
    pair.alpha.hold_disk = True
    pair.alpha.write(0, data(1))
    op = pair.alpha.read()
    pair.run()
    assert pair.alpha.reads == [op]


# Overlap.


@pytest.mark.parametrize("offset", [0, 100, BLOCK - 1])
def test_an_overlapping_write_waits_until_the_first_is_applied_everywhere(offset: int) -> None:
    pair = established_pair()
    warm(pair)
    pair.beta.hold_incoming = True
    first = pair.alpha.write(0, data(1))
    second = pair.alpha.write(offset, data(2))
    pair.run()
    assert ("disk", first) in pair.alpha.events
    assert ("disk", second) not in pair.alpha.events
    pair.beta.hold_incoming = False
    pair.run()
    assert pair.alpha.replies == [first, second]
    assert pair.equal()
    assert pair.alpha.disk[BLOCK - 1] == 2


def test_a_write_beside_one_in_flight_does_not_wait() -> None:
    pair = established_pair()
    warm(pair)
    pair.beta.hold_incoming = True
    pair.alpha.write(0, data(1))
    beside = pair.alpha.write(BLOCK, data(2))
    pair.run()
    assert ("disk", beside) in pair.alpha.events


def test_a_write_does_not_overtake_one_that_waits_for_an_overlap() -> None:
    pair = established_pair()
    warm(pair)
    pair.beta.hold_incoming = True
    ops = [
        pair.alpha.write(0, data(1)),
        pair.alpha.write(0, data(2, 2 * BLOCK)),
        pair.alpha.write(BLOCK, data(3)),
    ]
    pair.run()
    assert ("disk", ops[2]) not in pair.alpha.events
    pair.beta.hold_incoming = False
    pair.run()
    assert pair.alpha.replies == ops
    assert (pair.alpha.disk[0], pair.alpha.disk[BLOCK]) == (2, 3)
    assert pair.equal()


def test_overlapping_writes_end_in_one_order_on_both_nodes_across_a_lost_peer() -> None:
    pair = established_pair()
    warm(pair)
    pair.beta.hold_incoming = True
    first, second = pair.alpha.write(0, data(1)), pair.alpha.write(0, data(2))
    pair.run()
    pair.cut()
    pair.beta.hold_incoming = False
    pair.advance(2.0)
    assert pair.alpha.replies == [first, second]
    pair.connect()
    pair.run()
    assert pair.equal()
    assert pair.beta.disk[0] == 2


# Kinds of writes.


@pytest.mark.parametrize("kind", [WriteKind.TRIM, WriteKind.ZERO])
@pytest.mark.parametrize(("offset", "length"), [(0, BLOCK), (100, 50), (BLOCK - 1, 2), (0, SIZE)])
def test_zeroed_ranges_are_the_same_bytes_everywhere(
    kind: WriteKind, offset: int, length: int
) -> None:
    pair = established_pair()
    pair.alpha.write(0, data(7, 2 * BLOCK))
    pair.run()
    op = pair.alpha.write(offset, length, kind=kind)
    pair.run()
    assert op in pair.alpha.replies
    assert not any(pair.alpha.disk[offset : offset + length])
    assert pair.equal()


def test_a_write_longer_than_a_frame_is_split_and_answered_once() -> None:
    pair = established_pair()
    before = write_frames(pair.alpha)
    op = pair.alpha.write(BLOCK, data(5, 600 << 10))
    pair.run()
    assert write_frames(pair.alpha) - before == 3
    assert pair.alpha.replies == [op]
    assert pair.equal()


# Flush and FUA.


def test_a_flush_waits_for_the_local_sync() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.alpha.hold_syncs = True
    op = pair.alpha.flush()
    pair.run()
    assert op not in pair.alpha.replies
    pair.alpha.hold_syncs = False
    pair.run()
    assert op in pair.alpha.replies
    assert pair.alpha.durable[0] == 1


@pytest.mark.parametrize("fua", [True, False])
def test_what_must_be_durable_is_answered_only_when_every_member_has_it_durable(
    fua: bool,
) -> None:
    pair = established_pair()
    pair.beta.hold_syncs = True
    first = pair.alpha.write(0, data(1), fua=fua)
    pair.run()
    last = first if fua else pair.alpha.flush()
    pair.run()
    assert last not in pair.alpha.replies
    pair.beta.hold_syncs = False
    pair.run()
    assert last in pair.alpha.replies
    assert pair.beta.durable[0] == pair.alpha.durable[0] == 1


def test_a_sync_under_way_when_the_flush_came_is_not_enough() -> None:
    pair = established_pair()
    pair.alpha.hold_syncs = True
    pair.alpha.flush()
    pair.run()
    assert pair.alpha.sync is not None
    pair.alpha.write(0, data(4))
    pair.run()
    op = pair.alpha.flush()
    pair.run()
    pair.alpha.hold_syncs = False
    pair.alpha.step()
    assert op not in pair.alpha.replies
    pair.run()
    assert op in pair.alpha.replies
    assert pair.alpha.durable[0] == 4


def test_a_flush_during_a_settle_is_answered_only_after_its_durable_end() -> None:
    node = at("settle-target")
    primary = node.other
    op = primary.flush()
    primary.pair.run()
    assert op not in primary.replies
    primary.hold_copies = False
    primary.pair.run()
    assert primary.session.phase is Phase.ESTABLISHED
    assert op in primary.replies


# A lost member (G2, G3).


def test_writes_to_a_lost_member_are_answered_only_after_the_generation_without_it_is_stored() -> (
    None
):
    pair = established_pair()
    warm(pair)
    pair.cut()
    op = pair.alpha.write(0, data(1))
    pair.run()
    assert not pair.alpha.replies
    pair.advance(2.0)
    assert pair.alpha.replies == [op]
    assert pair.alpha.metadata.facts.alone


def test_a_write_launched_while_the_lone_generation_is_being_stored_waits_for_it() -> None:
    """Its answer would be one under a generation whose set holds a node that lacks it (G2, G3)."""
    pair = established_pair()
    warm(pair)
    pair.cut()
    pair.alpha.write(0, data(1))
    pair.alpha.hold_commits = True
    pair.advance(2.0)
    assert pair.alpha.volume.facts.alone and not pair.alpha.metadata.facts.alone
    late = pair.alpha.write(BLOCK, data(2))
    pair.run()
    assert not pair.alpha.replies
    pair.alpha.hold_commits = False
    pair.run()
    assert late in pair.alpha.replies


def test_a_flush_while_the_lone_generation_is_being_stored_waits_for_it() -> None:
    pair = established_pair()
    warm(pair)
    pair.cut()
    pair.alpha.write(0, data(1))
    pair.alpha.hold_commits = True
    pair.advance(2.0)
    assert pair.alpha.volume.facts.alone and not pair.alpha.metadata.facts.alone
    late = pair.alpha.flush()
    pair.run()
    assert late not in pair.alpha.replies
    pair.alpha.hold_commits = False
    pair.run()
    assert late in pair.alpha.replies


def test_a_flap_within_the_grace_costs_no_generation() -> None:
    pair = established_pair()
    warm(pair)
    counter = pair.alpha.volume.facts.generation.counter
    pair.cut()
    op = pair.alpha.write(0, data(1))
    pair.advance(0.5)
    pair.connect()
    pair.run()
    assert pair.alpha.replies == [op]
    assert pair.alpha.volume.facts.generation.counter == counter
    assert pair.equal()


def test_an_idle_cut_costs_nothing_until_an_answer_is_needed() -> None:
    pair = established_pair()
    warm(pair)
    counter = pair.alpha.volume.facts.generation.counter
    pair.cut()
    pair.advance(60.0, step_s=5.0)
    assert pair.alpha.volume.facts.generation.counter == counter


def test_a_write_without_its_peer_is_dirty_for_it() -> None:
    pair = behind_pair()
    dirty = pair.alpha.volume.maps.dirty["beta"]
    pair.alpha.write(2 * EXTENT, data(1))
    pair.run()
    assert dirty.any_in(2 * EXTENT, BLOCK)


def test_what_the_peer_applied_but_did_not_make_durable_is_dirty_when_it_drops() -> None:
    pair = established_pair()
    pair.beta.hold_syncs = True
    op = pair.alpha.write(0, data(1))
    pair.run()
    assert pair.alpha.replies == [op]
    pair.cut()
    assert pair.alpha.volume.maps.dirty["beta"].any_in(0, BLOCK)


def test_what_the_peer_made_durable_is_not_dirty_when_it_drops() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(1), fua=True)
    pair.run()
    pair.cut()
    assert not pair.alpha.volume.maps.dirty["beta"].count


# Freezing and abandoning.


def test_a_frozen_volume_keeps_requests_in_their_order() -> None:
    pair = established_pair()
    warm(pair)
    pair.alpha.volume.freeze("test")
    first, second = pair.alpha.write(0, data(1)), pair.alpha.write(0, data(2))
    read = pair.alpha.read()
    pair.run()
    assert not pair.alpha.replies and not pair.alpha.reads
    assert pair.alpha.volume.writes.pending == 3
    pair.alpha.begin_turn().thaw("test")
    pair.run()
    assert pair.alpha.replies == [first, second]
    assert pair.alpha.reads == [read]
    assert pair.alpha.disk[0] == 2


def test_abandoned_requests_are_never_answered_and_never_applied() -> None:
    pair = established_pair()
    warm(pair)
    pair.alpha.hold_commits = True
    cold = pair.alpha.write(2 * EXTENT, data(1))
    blocked = pair.alpha.write(2 * EXTENT, data(2))
    pair.run()
    pair.alpha.begin_turn().roles.step_down("test")
    late = pair.alpha.write(0, data(3))
    pair.alpha.hold_commits = False
    pair.run()
    assert not pair.alpha.replies
    assert len(pair.alpha.forgotten) == 3
    assert set(pair.alpha.forgotten) == {cold, blocked, late}
    assert not any(pair.alpha.disk[2 * EXTENT : 2 * EXTENT + BLOCK])


def test_every_request_in_flight_at_a_forced_step_down_is_let_go_of_exactly_once() -> None:
    """What is neither forgotten nor with the disk would keep its client waiting for ever."""
    pair = established_pair()
    warm(pair)
    pair.beta.hold_incoming = True
    pair.alpha.hold_disk = True
    launched = pair.alpha.write(0, data(1))
    pair.run()
    flush = pair.alpha.flush()
    pair.run()
    assert [job[0] for job in pair.alpha.disk_jobs] == [launched]
    pair.alpha.begin_turn().roles.step_down("test")
    pair.run()
    assert not pair.alpha.replies
    pair.alpha.hold_disk = False
    pair.run()
    assert len(pair.alpha.forgotten) == 2
    assert set(pair.alpha.forgotten) == {flush, launched}


def test_a_write_that_waits_only_for_its_peer_is_let_go_of_at_a_forced_step_down() -> None:
    """Its local part is done: no `disk_done` will ever come for it."""
    pair = established_pair()
    warm(pair)
    pair.beta.hold_incoming = True
    op = pair.alpha.write(0, data(1))
    pair.run()
    assert ("disk", op) in pair.alpha.events
    pair.alpha.begin_turn().roles.step_down("test")
    pair.run()
    assert not pair.alpha.replies
    assert pair.alpha.forgotten == [op]


def test_too_many_hot_extents_start_a_checkpoint_at_once() -> None:
    pair = established_pair()
    pair.alpha.volume.intents.limit = 2
    pair.advance(2.5)
    for extent in (0, 2):
        pair.alpha.write(extent * EXTENT, data(1))
    pair.run()
    assert len(pair.alpha.volume.intents.hot) == 2
    pair.advance(0.5)
    assert list(pair.alpha.volume.intents.hot) == [2], "the one written last is kept"

"""What a peer's stream does here: in order, intents first, acknowledged when true."""

from __future__ import annotations

import pytest

from repl.core import receiver
from repl.core.states import Phase
from repl.core.upkeep import WATERMARK_INTERVAL_S
from repl.core.wire import PAYLOAD_BYTES_MAX, PeerError, Type
from tests.core.every_phase import at, behind_pair
from tests.core.pair_of_cores import BLOCK, EXTENT, SIZE, Node, data


def secondary() -> Node:
    return at("established-secondary")


def generation_of(node: Node) -> int:
    return node.volume.facts.generation.id


def feed_write(node: Node, seq: int, offset: int, payload: bytes = data(1)) -> None:
    node.feed(Type.WRITE, seq, offset, len(payload), generation_of(node), 0, payload)


def acks(node: Node) -> list[tuple[int, int]]:
    """(applied, durable) of every ACK that the node sent."""
    return [(header.seq, header.offset) for header in node.sent if header.type is Type.ACK]


def run_alone(node: Node) -> None:
    """Let only this node move: its peer did not send what a test feeds, and would object."""
    while node.step():
        pass


def said(node: Node) -> list[Type]:
    """Types of the frames that the node sent since its last hello."""
    types = [header.type for header in node.sent]
    last = max(place for place, kind in enumerate(types) if kind is Type.HELLO)
    return types[last:]


def applied(node: Node) -> list[object]:
    return [detail for what, detail in node.events if what.startswith("apply")]


# Order and acknowledgement.


def test_frames_are_applied_in_their_order_and_acknowledged_by_one_number() -> None:
    node = secondary()
    for seq in (1, 2, 3):
        feed_write(node, seq, 0, data(seq))
    node.step()
    node.step()
    assert applied(node) == [1, 2, 3]
    assert node.disk[0] == 3
    assert acks(node)[-1][0] == 3
    assert len(acks(node)) == 1


def test_a_cold_extent_holds_its_frame_and_all_behind_it_until_the_intent_is_durable() -> None:
    node = secondary()
    feed_write(node, 1, 0)
    run_alone(node)
    node.hold_commits = True
    feed_write(node, 2, EXTENT)
    feed_write(node, 3, 0, data(8))
    node.step()
    assert applied(node) == [1]
    assert node.session.receiver.backlog == 2, "the held frame's payload is needed too"
    node.hold_commits = False
    run_alone(node)
    assert applied(node) == [1, 2, 3]
    assert node.session.receiver.backlog == 0


def test_no_byte_of_a_cold_extent_is_written_before_its_intent_is_durable() -> None:
    node = secondary()
    node.hold_commits = True
    feed_write(node, 1, EXTENT)
    node.step()
    assert not any(node.disk)
    assert not acks(node)
    assert not node.metadata.maps().intents.is_set(1)


def test_an_ack_says_durable_only_after_a_sync_that_began_behind_the_frame() -> None:
    node = secondary()
    feed_write(node, 1, 0)
    node.step()
    node.hold_syncs = True
    node.feed(Type.SYNC, 1)
    node.step()
    feed_write(node, 2, 0)
    node.feed(Type.SYNC, 2)
    node.step()
    assert acks(node)[-1] == (2, 0)
    node.hold_syncs = False
    run_alone(node)
    assert (2, 1) in acks(node)
    assert acks(node)[-1] == (2, 2)
    assert acks(node) == sorted(acks(node)), "acknowledgements never go back"


def test_durable_never_runs_ahead_of_applied() -> None:
    node = secondary()
    node.hold_commits = True
    feed_write(node, 1, EXTENT)
    node.feed(Type.SYNC, 1)
    node.step()
    node.hold_commits = False
    run_alone(node)
    assert all(durable <= done for done, durable in acks(node))
    assert acks(node)[-1] == (1, 1)


def test_what_was_applied_becomes_durable_unasked_after_a_while() -> None:
    node = secondary()
    pair = node.pair
    pair.alpha.write(0, data(1))
    pair.run()
    assert node.session.receiver.unsynced
    pair.advance(WATERMARK_INTERVAL_S + 1)
    assert not node.session.receiver.unsynced
    assert node.durable[0] == 1


def feed_writes(node: Node, *writes: tuple[int, int]) -> None:
    """Hand (number, offset) over in one go, as a wake-up brings them."""
    generation = generation_of(node)
    node.begin_turn().peer_frames(
        node.peer_name,
        [(Type.WRITE, seq, at, BLOCK, generation, 0, data(seq)) for seq, at in writes],
    )


def test_many_small_frames_become_durable_unasked_before_much_is_remembered_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receiver, "BACKGROUND_SYNC_FRAMES", 3)
    node = secondary()
    for seq in (1, 2):
        feed_write(node, seq, 0)
    run_alone(node)
    assert acks(node)[-1] == (2, 0)
    feed_write(node, 3, 0)
    run_alone(node)
    assert acks(node)[-1] == (3, 3)


def test_frames_of_one_wake_up_are_taken_as_if_they_came_one_by_one() -> None:
    node = secondary()
    feed_writes(node, (1, 0), (2, BLOCK), (3, 2 * EXTENT), (4, 0), (5, 2 * EXTENT))
    node.hold_commits = True
    node.step()
    assert not applied(node) and node.session.receiver.backlog == 5
    node.hold_commits = False
    run_alone(node)
    assert applied(node) == [1, 2, 3, 4, 5]
    feed_writes(node, (6, 0), (7, 2 * EXTENT), (8, EXTENT), (9, 0))
    node.hold_commits = True
    node.step()
    assert applied(node) == [1, 2, 3, 4, 5, 6, 7], "what lies before a cold extent does not wait"
    assert node.session.receiver.backlog == 2
    node.hold_commits = False
    run_alone(node)
    assert applied(node) == list(range(1, 10))
    assert node.disk[0] == 9 and node.disk[2 * EXTENT] == 7


def test_what_comes_before_a_wrong_frame_in_a_wake_up_counts() -> None:
    node = secondary()
    feed_writes(node, (1, 0))
    run_alone(node)
    with pytest.raises(PeerError, match="number 9 does not follow 3"):
        feed_writes(node, (2, 0), (3, BLOCK), (9, 0), (4, 0))
    assert [job[2] for job in node.volume.outbox.apply] == [2, 3]


# Frames that do not belong.


@pytest.mark.parametrize("seq", [0, 2, 3])
def test_a_number_that_does_not_follow_is_the_peers_error(seq: int) -> None:
    with pytest.raises(PeerError, match="does not follow"):
        feed_write(secondary(), seq, 0)


def test_a_number_used_twice_is_the_peers_error() -> None:
    node = secondary()
    feed_write(node, 1, 0)
    run_alone(node)
    with pytest.raises(PeerError, match="does not follow"):
        feed_write(node, 1, 0)


def test_a_frame_of_another_generation_is_the_peers_error() -> None:
    node = secondary()
    with pytest.raises(PeerError, match="another generation"):
        node.feed(Type.WRITE, 1, 0, BLOCK, generation_of(node) + 1, 0, data(1))


@pytest.mark.parametrize(
    ("offset", "length"),
    [(SIZE, BLOCK), (SIZE - 1, 2), (0, 0), ((1 << 64) - 1, 1), (0, (1 << 64) - 1)],
)
def test_a_range_outside_the_volume_is_the_peers_error(offset: int, length: int) -> None:
    node = secondary()
    with pytest.raises(PeerError, match="not inside the volume"):
        node.feed(Type.ZERO, 1, offset, length, generation_of(node))


@pytest.mark.parametrize("size", [0, BLOCK - 1, BLOCK + 1])
def test_a_payload_of_another_length_than_the_range_is_the_peers_error(size: int) -> None:
    """Else the header would say which blocks were written, and the payload others."""
    node = secondary()
    with pytest.raises(PeerError):
        node.feed(Type.WRITE, 1, 0, BLOCK, generation_of(node), 0, bytes(size))


def test_a_write_longer_than_a_frame_is_the_peers_error() -> None:
    node = secondary()
    length = PAYLOAD_BYTES_MAX + BLOCK
    with pytest.raises(PeerError, match="more than a frame"):
        node.feed(Type.WRITE, 1, 0, length, generation_of(node), 0, bytes(length))


@pytest.mark.parametrize("kind", [Type.RESYNC_WRITE, Type.RESYNC_ZERO, Type.DIGEST])
def test_resync_frames_outside_a_resync_are_the_peers_error(kind: Type) -> None:
    node = secondary()
    with pytest.raises(PeerError, match="no resync is going on"):
        node.feed(kind, 1, 0, BLOCK, generation_of(node), 0, bytes(BLOCK))


@pytest.mark.parametrize(("offset", "size"), [(100, 16), (0, 15), (0, 32)])
def test_digests_that_do_not_fit_their_range_are_the_peers_error(offset: int, size: int) -> None:
    node = at("target")
    generation = node.session.receiver._generation()
    with pytest.raises(PeerError, match="do not fit"):
        node.feed(Type.DIGEST, 1, offset, BLOCK, generation, 0, bytes(size))


def test_a_primary_takes_no_writes_from_anybody() -> None:
    node = at("established-primary")
    with pytest.raises(PeerError, match="not a receiver"):
        feed_write(node, 1, 0)


@pytest.mark.parametrize("stage", ["greeting", "idle", "refused", "split-brain", "source"])
def test_no_write_is_taken_where_nothing_was_agreed(stage: str) -> None:
    node = at(stage)
    with pytest.raises(PeerError, match="not a receiver"):
        node.feed(Type.WRITE, 1, 0, BLOCK, 0, 0, data(1))


def test_a_sync_that_names_a_frame_never_sent_is_the_peers_error() -> None:
    with pytest.raises(PeerError, match="SYNC"):
        secondary().feed(Type.SYNC, 1)


def test_an_announced_generation_must_follow_the_current_one() -> None:
    node = secondary()
    entry = {
        "counter": 9,
        "id": 99,
        "primary": 11,
        "members": [11, 22],
        "answered": False,
        "origin": "promoted",
        "made_at_s": 0,
        "permit": "",
    }
    body = {"volume_id": node.volume.facts.volume_id, "lineage": [entry]}
    with pytest.raises(PeerError, match="does not follow"):
        node.feed_body(Type.GENERATION, body)


# The target of a copy.


def test_a_target_is_durably_inconsistent_before_it_says_that_it_is_ready() -> None:
    node = at("target-starting")
    assert node.volume.facts.inconsistent
    assert not node.metadata.facts.inconsistent, "the commit is held"
    assert Type.READY not in said(node)
    node.hold_commits = False
    node.step()
    assert node.metadata.facts.inconsistent
    assert node.metadata.facts.source_generation == generation_of(node.other)
    assert node.metadata.maps().remaining.count


def test_a_settles_target_is_never_inconsistent() -> None:
    node = at("settle-target")
    assert not node.volume.facts.inconsistent
    assert not node.metadata.facts.inconsistent
    assert node.volume.disk_state_text == "consistent"


def test_the_remaining_map_is_cleared_only_when_the_blocks_are_durable() -> None:
    node = at("target")
    remaining = node.volume.maps.remaining
    before = remaining.count
    node.hold_syncs = True
    node.other.hold_copies = False
    node.pair.run()
    assert node.session.receiver.applied_seq
    assert remaining.count == before
    node.hold_syncs = False
    node.pair.run()
    assert remaining.count == 0
    assert node.session.phase is Phase.ESTABLISHED


def test_an_interrupted_target_stays_inconsistent_and_keeps_its_remaining_map() -> None:
    node = at("target")
    pair, before = node.pair, node.volume.maps.remaining.count
    pair.restart(node)
    pair.run()
    assert node.volume.facts.inconsistent
    assert node.volume.maps.remaining.count >= before > 0
    pair.alpha.hold_copies = False
    pair.connect()
    pair.run()
    assert node.session.phase is Phase.ESTABLISHED
    assert not node.metadata.facts.inconsistent
    assert pair.equal()


@pytest.mark.parametrize("crash", [True, False])
def test_what_an_interrupted_copy_has_brought_durably_is_not_looked_at_again(crash: bool) -> None:
    """Its extents are marked no more, neither in memory nor for a restart."""
    pair = behind_pair()
    for extent in (1, 2):
        pair.alpha.write(extent * EXTENT, data(5))
    pair.run()
    alpha, beta = pair.alpha, pair.beta
    alpha.hold_copies = True
    pair.connect()
    pair.run()
    for _ in ("compared", "copied"):
        brought = [job for job in alpha.copy_jobs if job[1] == 0]
        alpha.copy_jobs = [job for job in alpha.copy_jobs if job[1]]
        alpha.finish_copies(brought)
        pair.run()
    beta.begin_turn()
    beta.session.receiver.sync()
    pair.run()
    assert beta.metadata.facts.inconsistent
    assert beta.metadata.maps().intents.count == beta.volume.maps.intents.count == 0
    if crash:
        pair.restart(beta, power_loss=True)
        pair.run()
    else:
        pair.cut()
    alpha.copy_jobs.clear()
    pair.connect()
    pair.run()
    looked_at = {job[1] for job in alpha.copy_jobs}
    assert looked_at == {EXTENT, 2 * EXTENT}
    alpha.hold_copies = False
    pair.run()
    assert pair.equal() and beta.session.phase is Phase.ESTABLISHED


def test_a_generation_is_confirmed_only_after_it_is_stored() -> None:
    node = at("joining").other
    assert Type.GENERATION_STORED not in said(node)
    node.hold_commits = False
    node.pair.run()
    assert Type.GENERATION_STORED in said(node)
    assert node.metadata.facts.generation.id == generation_of(node.other)


def test_old_frames_new_hello() -> None:
    """A frame that waited for a commit when the connection ended is never applied."""
    node = secondary()
    node.hold_commits = True
    feed_write(node, 1, EXTENT)
    node.step()
    node.pair.cut()
    node.hold_commits = False
    node.pair.run()
    assert not any(node.disk)
    assert node.session.receiver.backlog == 0


# Intents of the receiving side.


def test_intents_are_cleared_only_up_to_what_is_durable_here_too() -> None:
    node = secondary()
    feed_write(node, 1, 0)
    run_alone(node)
    node.feed(Type.CLEAR_INTENTS, 1)
    assert node.volume.maps.intents.count == 1, "not durable here yet"
    node.feed(Type.SYNC, 1)
    run_alone(node)
    node.feed(Type.CLEAR_INTENTS, 1)
    run_alone(node)
    assert node.volume.maps.intents.count == 0
    assert node.metadata.maps().intents.count == 0


def test_intents_of_a_broken_connection_stay_until_a_settle() -> None:
    node = secondary()
    pair = node.pair
    pair.alpha.write(0, data(1))
    pair.run()
    pair.cut()
    assert node.volume.intents.suspect == {0}
    pair.connect()
    pair.run()
    assert node.session.decision is not None
    assert node.session.decision.rule == "equal-unsettled"
    assert not node.volume.intents.suspect


def test_the_intents_of_a_finished_resync_are_cleared_while_nobody_writes() -> None:
    """Else a secondary that crashes after a full copy has the whole volume compared again."""
    node = at("target")
    node.other.hold_copies = False
    node.pair.run()
    node.pair.advance(10.0)
    assert node.session.phase is Phase.ESTABLISHED
    assert node.volume.maps.intents.count == 0

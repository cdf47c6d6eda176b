"""A bounded number of extents is hot; whoever needs more waits, and nobody waits for ever."""

from __future__ import annotations

import pytest

from repl.core.outbox import WriteKind
from repl.core.states import Phase
from tests.core.every_phase import behind_pair
from tests.core.pair_of_cores import EXTENT, SIZE, Node, Pair, data, established_pair


def small(pair: Pair, limit: int = 2) -> Node:
    """alpha, with room for so many hot extents, all of which are in use."""
    node = pair.alpha
    node.volume.intents.limit = limit
    for extent in range(limit):
        node.write(extent * EXTENT, data(extent + 1))
    pair.run()
    assert len(node.volume.intents.hot) == limit
    return node


def marked(node: Node) -> set[int]:
    """The extents that a crash of this node would make suspect."""
    intents = node.metadata.maps().intents
    return {extent for extent in range(intents.bits) if intents.is_set(extent)}


def test_a_write_beyond_the_bound_waits_for_room_and_one_to_hot_extents_does_not() -> None:
    pair = established_pair()
    node = small(pair)
    node.hold_syncs = True
    cold, hot = node.write(3 * EXTENT, data(9)), node.write(0, data(8))
    pair.run()
    assert hot in node.replies and cold not in node.replies
    assert marked(node) == {0, 1} and ("disk", cold) not in node.events
    node.hold_syncs = False
    pair.run()
    assert cold in node.replies
    # What was written last stays hot; the peer has cleared the same.
    assert marked(node) == {0, 3}
    assert len(marked(pair.beta)) <= 2


def test_the_room_is_free_only_when_the_cleared_intents_are_durable() -> None:
    pair = established_pair()
    node = small(pair)
    node.hold_commits = True
    cold = node.write(3 * EXTENT, data(9))
    pair.run()
    assert len(node.volume.intents.hot) < 2, "cleared in memory"
    assert ("disk", cold) not in node.events and cold not in node.volume.writes.in_flight
    node.hold_commits = False
    pair.run()
    assert cold in node.replies


def test_what_is_being_cleared_takes_room_from_writes_that_come_meanwhile() -> None:
    pair = established_pair()
    node = small(pair, limit=3)
    node.hold_commits = True
    node.begin_turn().upkeep.make_room()
    pair.run()
    intents = node.volume.intents
    assert (len(intents.hot), intents.clearing) == (1, 2)
    cold = node.write(3 * EXTENT, data(9))
    pair.run()
    assert cold not in node.volume.writes.in_flight
    node.hold_commits = False
    pair.run()
    assert cold in node.replies


def test_intents_are_cleared_under_a_resync_too_and_nothing_is_forgotten() -> None:
    pair = behind_pair()
    node = pair.alpha
    node.hold_copies = True
    pair.connect()
    pair.run()
    assert node.session.phase is Phase.SOURCE
    small(pair)
    cold = node.write(3 * EXTENT, data(9))
    pair.run()
    assert cold in node.replies and len(marked(node)) <= 2
    pair.restart(node)
    pair.run()
    node.hold_copies = False
    pair.connect()
    pair.advance(2.0)
    assert pair.equal()


def test_a_member_that_is_away_keeps_no_write_waiting_for_room() -> None:
    pair = established_pair()
    node = small(pair)
    pair.cut()
    cold = node.write(3 * EXTENT, data(9))
    pair.run()
    assert ("disk", cold) in node.events, "room was made without the peer"
    pair.advance(2.0)
    assert cold in node.replies


def test_a_peer_that_is_lost_while_room_is_made_stops_nothing() -> None:
    pair = established_pair()
    node = small(pair)
    node.write(0, data(7))
    pair.beta.hold_syncs = True
    cold = node.write(3 * EXTENT, data(9))
    pair.run()
    assert ("disk", cold) not in node.events, "it waits for the peer's watermark"
    pair.cut()
    pair.advance(2.0)
    assert cold in node.replies


def test_a_request_larger_than_the_bound_goes_on() -> None:
    pair = established_pair()
    node = small(pair)
    trim = node.write(0, SIZE, kind=WriteKind.TRIM)
    after = node.write(EXTENT, data(5))
    pair.run()
    assert node.replies[-2:] == [trim, after]
    assert not any(node.disk[:EXTENT]) and pair.equal()
    again = node.write(2 * EXTENT, data(6))
    pair.run()
    assert again in node.replies


def test_extents_that_are_written_all_the_time_do_not_keep_a_write_waiting() -> None:
    pair = established_pair()
    node = small(pair)
    node.hold_syncs = True
    cold = node.write(3 * EXTENT, data(9))
    pair.run()
    busy: list[str] = []
    for step in range(20):
        # Each is written anew while the sync goes on.
        busy += [node.write(extent * EXTENT, data(100 + step)) for extent in (0, 1)]
        pair.run()
        node.hold_syncs = False
        node._finish_disk()
        node.hold_syncs = True
    node.hold_syncs = False
    pair.run()
    assert cold in node.replies and set(busy) <= set(node.replies)
    assert pair.equal()


def test_what_overlaps_a_write_that_waits_comes_behind_it() -> None:
    pair = established_pair()
    node = small(pair)
    node.hold_syncs = True
    first, second = node.write(3 * EXTENT, data(9)), node.write(3 * EXTENT, data(10))
    pair.run()
    node.hold_syncs = False
    pair.run()
    assert node.replies[-2:] == [first, second]
    assert node.disk[3 * EXTENT] == pair.beta.disk[3 * EXTENT] == 10


def test_suspects_take_no_room_from_writes() -> None:
    pair = established_pair()
    small(pair)
    pair.restart(pair.alpha)
    pair.run()
    pair.connect()
    pair.beta.hold_incoming = True
    pair.beta.hold_incoming = False
    pair.run()
    node = small(pair)
    node.volume.intents.suspect |= {0, 1}
    cold = node.write(3 * EXTENT, data(9))
    pair.run()
    assert cold in node.replies
    assert {0, 1} <= marked(node), "suspects stay marked"


def test_a_demotion_waits_for_writes_that_wait_for_room() -> None:
    pair = established_pair()
    node = small(pair)
    cold = node.write(3 * EXTENT, data(9))
    number = node.demote()
    pair.run()
    assert node.answers[number].ok and cold in node.replies
    assert pair.equal()


@pytest.mark.parametrize("forced", [True, False])
def test_what_waits_is_let_go_of_with_the_role(forced: bool) -> None:
    pair = established_pair()
    node = small(pair)
    node.hold_syncs = True
    cold = node.write(3 * EXTENT, data(9))
    pair.run()
    assert node.volume.writes.pending == 1 and not node.volume.writes.drained
    if forced:
        node.begin_turn().roles.step_down("test")
    else:
        node.begin_turn().disk_failed("test")
    pair.run()
    assert cold in node.forgotten and cold not in node.replies
    assert node.volume.writes.drained

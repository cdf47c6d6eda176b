"""Checkpoints clear intents at rest, on both nodes, and cost nothing where nothing rests."""

from __future__ import annotations

from tests.core.pair_of_cores import EXTENT, Node, Pair, data, established_pair


def durable_intents(node: Node) -> set[int]:
    """The extents that a crash of this node would make suspect."""
    intents = node.metadata.maps().intents
    return {extent for extent in range(intents.bits) if intents.is_set(extent)}


def keep_writing(pair: Pair, extent: int, seconds: float) -> None:
    """Write once a tick; nothing is in flight when the clock is looked at."""
    for step in range(int(seconds / 0.5)):
        pair.alpha.write(extent * EXTENT, data(step % 250))
        pair.advance(0.5)


def test_extent_in_use_stays_hot_and_one_at_rest_is_cleared_on_both_nodes() -> None:
    pair = established_pair()
    for extent in (0, 2):
        pair.alpha.write(extent * EXTENT, data(1))
    pair.run()
    assert durable_intents(pair.alpha) == durable_intents(pair.beta) == {0, 2}
    keep_writing(pair, 0, 8)
    assert set(pair.alpha.volume.intents.hot) == {0}
    assert durable_intents(pair.alpha) == durable_intents(pair.beta) == {0}
    pair.advance(8)
    assert durable_intents(pair.alpha) == durable_intents(pair.beta) == set()


def test_extent_in_use_costs_neither_commits_nor_syncs() -> None:
    pair = established_pair()
    keep_writing(pair, 0, 8)
    pair.alpha.events.clear()
    keep_writing(pair, 0, 20)
    assert not pair.alpha.event_kinds("commit", "sync")


def test_extent_with_a_write_in_flight_is_not_at_rest() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.alpha.hold_disk = True
    pair.alpha.write(0, data(2))
    pair.alpha.write(2 * EXTENT, data(2))
    pair.advance(20)
    assert durable_intents(pair.alpha) == {0, 2}
    pair.alpha.hold_disk = False
    pair.advance(20)
    assert durable_intents(pair.alpha) == set()


def test_what_was_sent_on_an_ended_connection_is_told_on_no_other() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.advance(2.5)
    clear = pair.alpha.session.rested()
    pair.cut()
    pair.connect()
    pair.run()
    pair.alpha.write(EXTENT, data(1))
    pair.run()
    pair.alpha.sent.clear()
    pair.alpha.begin_turn()
    clear()
    pair.run()
    assert not pair.alpha.sent

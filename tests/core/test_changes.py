"""Making a generation: sync, then commit, then announce; at most one at a time (G3 to G6)."""

from __future__ import annotations

import pytest

from repl.core.lineage import Origin
from repl.core.probation import JOIN_WAIT_S_MAX
from repl.core.promotion import PromoteRequest
from repl.core.states import Phase
from repl.core.wire import Type
from tests.core.every_phase import at, behind_pair
from tests.core.pair_of_cores import (
    ALPHA_ID,
    BETA_ID,
    BLOCK,
    EXTENT,
    Node,
    Pair,
    data,
    established_pair,
)


def said(node: Node, kind: Type) -> int:
    return sum(header.type is kind for header in node.sent)


def members(node: Node) -> tuple[int, ...]:
    return node.metadata.facts.generation.members


def alone_after_loss(pair: Pair) -> str:
    """Cut, write, and let the grace pass; return the write."""
    pair.cut()
    op = pair.alpha.write(0, data(1))
    pair.advance(2.0)
    return op


# First contact and adoption.


def test_two_new_copies_get_one_first_generation() -> None:
    pair = established_pair(primary=False)
    assert pair.alpha.metadata.facts.lineage == pair.beta.metadata.facts.lineage
    assert pair.alpha.metadata.facts.volume_id == pair.beta.metadata.facts.volume_id
    assert members(pair.alpha) == (ALPHA_ID, BETA_ID)
    assert pair.alpha.metadata.facts.generation.primary == 0


def test_an_interrupted_first_contact_goes_on_at_the_next_one() -> None:
    pair = Pair()
    pair.connect()
    pair.beta.hold_commits = False
    for _ in range(1000):
        pair.alpha.step()
        pair.beta.step()
        if pair.alpha.session.phase is Phase.JOINING:
            break
    pair.beta.hold_commits = True
    pair.run()
    pair.restart(pair.beta)
    pair.beta.hold_commits = False
    pair.run()
    assert pair.beta.volume.facts.fresh
    pair.connect()
    pair.run()
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.alpha.metadata.facts.lineage == pair.beta.metadata.facts.lineage


def test_adoption_makes_a_generation_of_this_node_alone() -> None:
    pair = Pair(known_zeroes=False)
    number = pair.alpha.adopt()
    pair.run()
    assert pair.alpha.answers[number].ok
    assert members(pair.alpha) == (ALPHA_ID,)
    assert pair.alpha.metadata.facts.generation.origin is Origin.ADOPTED
    assert "synced" in pair.alpha.event_kinds("synced"), "its data is durable first"


def test_a_volume_that_holds_data_is_not_adopted_again() -> None:
    pair = established_pair()
    number = pair.alpha.adopt()
    pair.run()
    assert pair.alpha.answers[number].code == "ADOPT_NOT_NEEDED"


# G3.


def test_a_lone_generation_is_synced_then_stored_then_answered_under() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(9))
    pair.run()
    pair.alpha.events.clear()
    alone_after_loss(pair)
    order = pair.alpha.event_kinds("sync", "synced", "commit", "committed", "reply")
    # The time at which contact was lost was stored before.
    assert order[order.index("sync") : order.index("reply") + 1] == [
        "sync",
        "synced",
        "commit",
        "committed",
        "reply",
    ]


def test_descendant_loses_cache() -> None:
    """A promoted node holds on disk all that its ancestor acknowledged."""
    pair = established_pair()
    pair.alpha.write(0, data(7))
    pair.run()
    assert pair.beta.durable[0] == 0
    pair.cut()
    number = pair.beta.promote(PromoteRequest(peer_dead="alpha"))
    pair.run()
    assert pair.beta.answers[number].ok
    assert pair.beta.durable[0] == 7


def test_a_generation_is_given_to_nobody_before_it_is_stored() -> None:
    pair = established_pair(primary=False)
    before = said(pair.alpha, Type.GENERATION)
    pair.alpha.promote()
    pair.alpha.hold_commits = True
    pair.run()
    assert pair.alpha.volume.facts.generation.primary == ALPHA_ID
    assert said(pair.alpha, Type.GENERATION) == before
    assert not pair.alpha.volume.is_primary
    pair.alpha.hold_commits = False
    pair.run()
    assert said(pair.alpha, Type.GENERATION) == before + 1
    assert pair.beta.metadata.facts.generation == pair.alpha.metadata.facts.generation


def test_no_hello_is_sent_while_a_generation_is_being_made() -> None:
    pair = established_pair()
    pair.cut()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.alpha.hold_commits = True
    pair.advance(2.0)
    assert pair.alpha.volume.changes.busy
    before = said(pair.alpha, Type.HELLO)
    pair.connect()
    pair.run()
    assert said(pair.alpha, Type.HELLO) == before
    pair.alpha.hold_commits = False
    pair.run()
    assert said(pair.alpha, Type.HELLO) == before + 1
    assert pair.alpha.session.phase is Phase.ESTABLISHED


# G4.


def test_losing_a_peer_waits_for_the_grace() -> None:
    pair = established_pair()
    pair.cut()
    op = pair.alpha.write(0, data(1))
    pair.advance(0.5)
    assert not pair.alpha.volume.facts.alone
    pair.advance(1.0)
    assert pair.alpha.metadata.facts.alone
    assert op in pair.alpha.replies


def test_a_flush_alone_makes_a_loss_begin_and_is_answered_behind_it() -> None:
    pair = established_pair()
    pair.cut()
    op = pair.alpha.flush()
    pair.advance(2.0)
    assert op in pair.alpha.replies
    assert pair.alpha.metadata.facts.alone


def test_a_peer_that_comes_back_during_the_loss_is_left_out_and_joins_again() -> None:
    pair = established_pair()
    pair.cut()
    op = pair.alpha.write(0, data(1))
    pair.alpha.hold_syncs = True
    pair.advance(2.0)
    assert pair.alpha.volume.changes.busy
    pair.connect()
    pair.alpha.hold_syncs = False
    pair.run()
    assert op in pair.alpha.replies
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert members(pair.alpha) == members(pair.beta) == (ALPHA_ID, BETA_ID)
    assert [g.members for g in pair.alpha.metadata.facts.lineage[:2]] == [
        (ALPHA_ID, BETA_ID),
        (ALPHA_ID,),
    ]
    assert pair.equal()


def test_a_silent_peer_is_dropped_and_its_writes_are_answered() -> None:
    pair = established_pair()
    pair.beta.hold_incoming = True
    op = pair.alpha.write(0, data(1))
    pair.advance(10.0)
    assert op in pair.alpha.replies
    assert pair.alpha.metadata.facts.alone


def test_the_lone_generations_dirty_map_is_stored_with_it() -> None:
    pair = established_pair()
    alone_after_loss(pair)
    assert pair.alpha.metadata.maps().dirty["beta"].any_in(0, BLOCK)


def test_nothing_is_lost_if_the_node_dies_at_any_step_of_a_loss() -> None:
    for steps in range(12):
        pair = established_pair()
        pair.cut()
        op = pair.alpha.write(0, data(1))
        pair.now_s += 2.0
        pair.alpha.begin_turn().tick()
        for _ in range(steps):
            pair.alpha.step()
        answered = op in pair.alpha.replies
        pair.restart(pair.alpha, power_loss=True)
        pair.run()
        assert not answered or pair.alpha.volume.facts.alone, steps
        pair.connect()
        pair.run()
        assert pair.equal(), steps
        assert not pair.alpha.broken + pair.beta.broken


# G5.


def rejoining() -> Node:
    """alpha, whose joining generation is stored and announced; beta's commit is held."""
    node = at("joining")
    assert members(node) == (ALPHA_ID, BETA_ID)
    return node


def test_a_join_waits_until_all_writes_in_flight_are_done() -> None:
    pair = behind_pair()
    pair.connect()
    pair.alpha.write(3 * EXTENT, data(1))
    pair.run()
    pair.cut()
    pair.alpha.write(0, data(2))
    pair.advance(2.0)
    pair.alpha.write(0, data(3))
    pair.run()
    pair.alpha.hold_disk = True
    pair.connect()
    for _ in range(3):
        pair.alpha.step()
        pair.beta.step()
    op = pair.alpha.write(2 * EXTENT, data(4))
    pair.run()
    assert members(pair.alpha) == (ALPHA_ID,)
    pair.alpha.hold_disk = False
    pair.advance(JOIN_WAIT_S_MAX)
    assert members(pair.alpha) == members(pair.beta) == (ALPHA_ID, BETA_ID)
    assert op in pair.alpha.replies
    assert pair.equal()


def test_from_the_announcement_on_nothing_is_answered_before_the_confirmation() -> None:
    node = rejoining()
    write, flush = node.write(0, data(6)), node.flush()
    node.pair.run()
    assert write not in node.replies and flush not in node.replies
    node.other.hold_commits = False
    node.pair.run()
    assert {write, flush} <= set(node.replies)


def test_an_announced_peer_that_is_lost_again_is_removed_by_a_new_generation() -> None:
    node = rejoining()
    op = node.write(0, data(6))
    node.pair.cut()
    node.pair.advance(3.0)
    assert op in node.replies
    assert members(node) == (ALPHA_ID,)


def test_a_peer_that_never_confirms_does_not_freeze_the_primary_for_ever() -> None:
    """It answers pings, so that only a time limit of the confirmation itself ends the wait."""
    node = rejoining()
    op = node.write(0, data(6))
    node.pair.advance(60.0)
    assert op in node.replies


def test_the_map_is_emptied_only_on_the_confirmation() -> None:
    pair = behind_pair()
    record = pair.alpha.volume.facts.peer("beta")
    pair.connect()
    node = pair.alpha
    pair.run()
    after = node.metadata.facts.peer("beta")
    assert after.base_from == after.base_to == node.metadata.facts.generation.id
    assert record.base_from != after.base_from
    waiting = rejoining()
    held = waiting.metadata.facts.peer("beta")
    assert held.base_from != waiting.metadata.facts.generation.id
    assert held.base_to == waiting.metadata.facts.generation.id


def test_interrupted_announcement_costs_no_full_copy() -> None:
    """The joining generation is stored here, the announcement is lost: no full copy, no fork."""
    node = rejoining()
    pair = node.pair
    pair.restart(node.other)
    node.other.hold_commits = False
    pair.run()
    pair.connect()
    pair.run()
    assert node.session.decision is not None
    assert node.session.decision.rule in ("ancestor", "equal", "equal-unsettled")
    assert node.session.phase is Phase.ESTABLISHED
    assert members(node.other) == (ALPHA_ID, BETA_ID)


def test_half_copy_becomes_member() -> None:
    """A node that never confirmed its generation is in no promotion's set."""
    node = rejoining()
    pair = node.pair
    pair.restart(node)
    pair.run()
    number = node.promote(PromoteRequest(peer_dead="beta"))
    pair.run()
    assert node.answers[number].ok, node.answers
    assert members(node) == (ALPHA_ID,)


# G6.


def test_a_promotions_set_holds_the_established_members_only() -> None:
    pair = established_pair(primary=False)
    pair.alpha.promote()
    pair.run()
    assert members(pair.alpha) == (ALPHA_ID, BETA_ID)
    node = at("source")
    pair = node.pair
    pair.restart(node)
    pair.run()
    assert members(node) == (ALPHA_ID,)


def test_what_a_promotion_leaves_out_is_dirty_where_intents_were() -> None:
    pair = established_pair()
    pair.alpha.write(2 * EXTENT, data(1))
    pair.run()
    pair.cut()
    pair.beta.promote(PromoteRequest(peer_dead="alpha"))
    pair.run()
    stored = pair.beta.metadata.maps().dirty["alpha"]
    assert stored.any_in(2 * EXTENT, EXTENT)
    assert not stored.any_in(0, EXTENT)


def test_a_generation_of_a_node_that_is_not_primary_keeps_its_parents_primary() -> None:
    node = at("source")
    pair = node.pair
    pair.restart(node)
    node.hold_copies = False
    pair.run()
    number = node.demote()
    pair.run()
    assert node.answers[number].ok
    pair.connect()
    pair.run()
    assert members(node) == (ALPHA_ID, BETA_ID)
    generation = node.metadata.facts.generation
    assert (generation.origin, generation.primary) == (Origin.JOINED, ALPHA_ID)


def test_counters_grow_by_one_and_the_lineages_agree() -> None:
    pair = established_pair()
    for round_ in range(5):
        alone_after_loss(pair)
        pair.connect()
        pair.advance(JOIN_WAIT_S_MAX)
        assert pair.equal(), round_
    lineage = pair.alpha.metadata.facts.lineage
    assert [entry.counter for entry in lineage] == list(range(len(lineage), 0, -1))
    assert [entry.id for entry in lineage] == [
        entry.id for entry in pair.beta.metadata.facts.lineage
    ]


def test_lonely_restarts_keep_the_base() -> None:
    """beta is off while alpha is restarted a hundred times: still a copy by the map."""
    pair = behind_pair()
    for _ in range(100):
        pair.restart(pair.alpha)
        pair.run()
        number = pair.alpha.demote()
        pair.run()
        assert pair.alpha.answers[number].ok
        number = pair.alpha.promote()
        pair.run()
        assert pair.alpha.answers[number].ok
    pair.connect()
    pair.run()
    assert pair.alpha.session.decision is not None
    assert pair.alpha.session.decision.rule == "ancestor"
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.equal()


@pytest.mark.parametrize("promotions", [2000])
def test_a_hello_fits_a_frame_however_often_a_lone_node_was_promoted(promotions: int) -> None:
    pair = behind_pair()
    for _ in range(promotions):
        pair.alpha.demote()
        pair.run()
        pair.alpha.promote()
        pair.run()
    pair.connect()
    pair.run()
    assert pair.alpha.session.phase is Phase.ESTABLISHED


def test_a_peer_dropped_right_after_joining_waits_before_it_joins_again() -> None:
    """G5: twice as long each time, so that a flapping peer does not cost a generation a second."""
    pair = behind_pair()
    pair.connect()
    pair.run()
    waits = []
    for fill in range(1, 4):
        assert pair.alpha.session.phase is Phase.ESTABLISHED
        pair.cut()
        pair.alpha.write(0, data(fill))
        pair.advance(2.0)
        assert not pair.alpha.session.is_member
        pair.connect()
        waited = 0.0
        while pair.alpha.session.phase is not Phase.ESTABLISHED and waited < 60.0:
            pair.advance(0.5)
            waited += 0.5
        waits.append(waited)
    assert waits[0] < waits[1] < waits[2] < 60.0


def test_adopting_a_copy_that_is_being_filled_is_refused() -> None:
    """Half a copy of the peer's data must not become the data of the volume."""
    node = at("first-copy-target")
    number = node.adopt()
    node.pair.run()
    assert not node.answers[number].ok
    assert node.answers[number].code == "ADOPT_NOT_NEEDED"
    assert node.volume.facts.fresh

"""A full comparison by name brings what differs, nothing else, and never costs what is known."""

from __future__ import annotations

import pytest

from repl.core import full_compare
from repl.core.full_compare import Ordered
from repl.core.promotion import PromoteRequest
from repl.core.snapshot import volume_snapshot
from repl.core.states import Phase
from repl.core.verdict import Verdict
from repl.core.wire import Type
from repl.errors import CODES
from tests.core.every_phase import at, behind_pair, split_pair
from tests.core.pair_of_cores import (
    ALPHA_ID,
    BLOCK,
    EXTENT,
    SIZE,
    Node,
    Pair,
    data,
    established_pair,
)


def judged(node: Node) -> Ordered | Verdict:
    return full_compare.judge(node.volume, node.peer_name)


def refused(node: Node) -> str:
    verdict = judged(node)
    assert isinstance(verdict, Verdict) and not verdict.ok
    assert verdict.reason and verdict.code in CODES
    return verdict.code


def order(node: Node) -> int:
    """Give the order; the node stands back first, and nothing moves yet."""
    assert judged(node) is Ordered.GIVE_UP_CLAIM
    return node.ask(lambda n: full_compare.order(node.volume, n, node.peer_name, "uid 0"))


def carried_out(node: Node) -> None:
    """Order it and go on until the claim is given up and the connection is down."""
    pair = node.pair
    number = order(node)
    pair.run()
    if number not in node.answers:
        pair.connect()
        pair.run()
    assert node.answers[number].ok and gave_up(node)


def gave_up(node: Node) -> bool:
    """Whether it is stored that nothing of this copy is trusted."""
    return node.metadata.facts.inconsistent and node.metadata.facts.everything_suspect


def written_pair() -> Pair:
    pair = established_pair()
    for start in range(0, SIZE, EXTENT):
        pair.alpha.write(start, data(1 + start // EXTENT))
    pair.run()
    return pair


def resync_bytes(node: Node) -> int:
    return sum(h.length for h in node.sent if h.type is Type.RESYNC_WRITE)


def reconnect(pair: Pair) -> None:
    pair.connect()
    pair.advance(3.0)


@pytest.mark.parametrize("primary", [True, False])
def test_only_what_differs_is_brought(primary: bool) -> None:
    pair = written_pair()
    if not primary:
        pair.alpha.demote()
        pair.run()
    # A silent corruption of beta's disk, which nothing of the replication knows of.
    pair.beta.disk[EXTENT + 9] ^= 0xFF
    before = resync_bytes(pair.alpha)
    carried_out(pair.beta)
    reconnect(pair)
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.equal()
    assert resync_bytes(pair.alpha) - before == BLOCK
    assert not pair.beta.metadata.facts.inconsistent
    assert pair.beta.event("FULL_COMPARISON_ORDERED").fields == {"peer": "alpha", "by": "uid 0"}


def test_an_interrupted_comparison_is_taken_up_again_even_after_a_restart() -> None:
    pair = written_pair()
    pair.beta.disk[EXTENT + 9] ^= 0xFF
    carried_out(pair.beta)
    pair.alpha.hold_copies = True
    reconnect(pair)
    pair.restart(pair.beta, power_loss=True)
    pair.run()
    pair.alpha.hold_copies = False
    reconnect(pair)
    assert pair.equal() and pair.beta.session.phase is Phase.ESTABLISHED


def test_a_primary_goes_on_while_its_peers_copy_is_compared() -> None:
    pair = written_pair()
    carried_out(pair.beta)
    pair.alpha.hold_copies = True
    pair.connect()
    pair.run()
    op = pair.alpha.write(0, data(77))
    pair.run()
    assert op in pair.alpha.replies, "it has gone on alone before the copy gave up its claim"
    pair.alpha.hold_copies = False
    pair.advance(30.0)
    assert pair.equal() and pair.alpha.session.phase is Phase.ESTABLISHED


def test_a_copy_under_comparison_is_not_promotable() -> None:
    pair = written_pair()
    carried_out(pair.beta)
    number = pair.beta.promote(PromoteRequest(peer_dead="alpha"))
    pair.run()
    assert pair.beta.answers[number].code == "PROMOTE_INCONSISTENT"
    assert volume_snapshot(pair.beta.volume)["disk_state"] == "inconsistent"


# The claim is given up only when the other node has everything on stable storage.


def lost(pair: Pair, node: Node) -> None:
    """The node loses power, comes back, and meets the other one until all is quiet."""
    pair.restart(node, power_loss=True)
    pair.run()
    reconnect(pair)


def test_a_copy_keeps_its_claim_until_the_primary_has_synced_and_stored_that_it_is_alone() -> None:
    pair = written_pair()
    op = pair.alpha.write(0, data(60))
    pair.run()
    assert op in pair.alpha.replies and pair.alpha.durable[:BLOCK] != data(60)
    pair.alpha.hold_syncs = True
    number = order(pair.beta)
    pair.run()
    assert not gave_up(pair.beta) and number not in pair.beta.answers
    pair.alpha.hold_syncs, pair.alpha.hold_commits = False, True
    pair.connect()
    pair.run()
    assert not gave_up(pair.beta), "alpha has synced, and stored nothing yet"
    pair.alpha.hold_commits = False
    pair.run()
    assert pair.beta.answers[number].ok and gave_up(pair.beta)
    assert pair.alpha.metadata.facts.generation.members == (ALPHA_ID,)
    lost(pair, pair.alpha)
    assert pair.alpha.disk[:BLOCK] == data(60) and pair.equal()


@pytest.mark.parametrize("held", ["syncs", "commits"])
def test_a_primary_that_loses_power_before_it_has_everything_gets_it_from_the_copy(
    held: str,
) -> None:
    pair = written_pair()
    pair.alpha.write(0, data(60))
    pair.run()
    setattr(pair.alpha, f"hold_{held}", True)
    number = order(pair.beta)
    pair.run()
    setattr(pair.alpha, f"hold_{held}", False)
    lost(pair, pair.alpha)
    assert pair.beta.answers[number].code == "RESYNC_SOURCE" and not gave_up(pair.beta)
    assert pair.equal() and pair.alpha.disk[:BLOCK] == data(60)
    facts = pair.beta.metadata.facts
    assert not (facts.outdated or facts.released), "what was stored to stand back is taken back"


def test_a_secondary_that_is_the_source_syncs_before_the_claim_is_given_up() -> None:
    pair = established_pair(primary=False)
    pair.alpha.hold_syncs = True
    number = order(pair.beta)
    pair.run()
    assert not gave_up(pair.beta)
    pair.alpha.hold_syncs = False
    pair.run()
    assert pair.beta.answers[number].ok and gave_up(pair.beta)
    reconnect(pair)
    assert pair.equal() and pair.beta.session.phase is Phase.ESTABLISHED


def test_a_cut_before_the_other_sides_answer_leaves_the_copy_as_it_was() -> None:
    pair = established_pair(primary=False)
    pair.alpha.hold_syncs = True
    number = order(pair.beta)
    pair.run()
    pair.cut()
    pair.alpha.hold_syncs = False
    reconnect(pair)
    assert pair.beta.answers[number].code == "RESYNC_SOURCE" and not gave_up(pair.beta)
    assert pair.beta.session.phase is Phase.ESTABLISHED


def test_a_crash_of_the_target_while_it_stands_back_loses_the_order_only() -> None:
    pair = written_pair()
    order(pair.beta)
    pair.run()
    assert pair.alpha.metadata.facts.generation.members == (ALPHA_ID,)
    pair.restart(pair.beta)
    reconnect(pair)
    assert not gave_up(pair.beta)
    assert pair.equal() and pair.beta.session.phase is Phase.ESTABLISHED


def test_an_order_without_an_answer_is_refused_in_time() -> None:
    pair = written_pair()
    pair.alpha.hold_incoming = True
    number = order(pair.beta)
    pair.run()
    # A peer that shows that it lives, and does not answer.
    pair.beta.session.live.excuse(full_compare.PATIENCE_S)
    pair.now_s += full_compare.PATIENCE_S
    pair.beta.begin_turn()
    pair.run()
    assert pair.beta.answers[number].code == "RESYNC_SOURCE" and not gave_up(pair.beta)
    assert not pair.beta.connected, "what was stored is taken back by the next handshake"


def test_two_orders_that_cross_give_up_neither_copy() -> None:
    pair = established_pair(primary=False)
    numbers = [order(node) for node in pair.nodes]
    pair.run()
    assert not any(gave_up(node) for node in pair.nodes)
    reconnect(pair)
    for node, number in zip(pair.nodes, numbers, strict=True):
        assert not node.answers[number].ok and not gave_up(node)
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert not any(node.broken for node in pair.nodes)


def test_nobody_is_promoted_while_a_copy_stands_back_for_it() -> None:
    pair = established_pair(primary=False)
    pair.alpha.hold_syncs = True
    order(pair.beta)
    pair.run()
    asked, own = pair.alpha.promote(), pair.beta.promote()
    pair.run()
    assert pair.alpha.answers[asked].code == "PROMOTE_PEER_REFUSED"
    assert "giving up its copy" in pair.alpha.answers[asked].reason
    assert pair.beta.answers[own].code == "VOLUME_BUSY"


def test_an_order_during_a_settle_waits_for_its_end() -> None:
    pair = written_pair()
    pair.alpha.hold_copies = True
    pair.restart(pair.beta)
    pair.connect()
    pair.run()
    assert pair.beta.session.phase is Phase.TARGET
    number = order(pair.beta)
    pair.run()
    assert not gave_up(pair.beta) and number not in pair.beta.answers
    pair.alpha.hold_copies = False
    pair.run()
    pair.connect()
    pair.run()
    assert pair.beta.answers[number].ok and gave_up(pair.beta)


def test_a_copy_that_claims_nothing_need_not_stand_back() -> None:
    pair = behind_pair()
    pair.alpha.hold_copies = True
    pair.connect()
    pair.run()
    assert pair.beta.session.phase is Phase.TARGET and pair.beta.metadata.facts.inconsistent
    number = order(pair.beta)
    pair.run()
    assert pair.beta.answers[number].ok and gave_up(pair.beta)


def test_a_stop_ends_the_order_and_goes_on() -> None:
    pair = written_pair()
    pair.alpha.hold_syncs = True
    number = order(pair.beta)
    pair.beta.hold_commits = True
    stop = pair.beta.leave()
    pair.run()
    assert pair.beta.answers[number].code == "VOLUME_BUSY"
    pair.beta.hold_commits = pair.alpha.hold_syncs = False
    pair.run()
    assert pair.beta.answers[stop].ok and not gave_up(pair.beta)
    assert not any(node.broken for node in pair.nodes)


def test_a_primary_of_an_older_version_does_what_is_needed() -> None:
    """It knows LEAVE without a word about comparisons: it goes on alone as if the node stopped."""
    pair = written_pair()
    pair.alpha.hold_incoming = True
    order(pair.beta)
    pair.run()
    pair.alpha.hold_incoming = False
    pair.alpha.incoming.clear()
    pair.alpha.feed_body(Type.LEAVE, {"outdated": True})
    pair.run()
    assert pair.alpha.metadata.facts.generation.members == (ALPHA_ID,)


# Refusals.


def test_a_primarys_copy_is_never_the_target() -> None:
    assert refused(established_pair().alpha) == "RESYNC_PRIMARY"


def test_a_primary_that_waits_to_resume_is_none_either() -> None:
    pair = established_pair()
    pair.restart(pair.alpha)
    pair.run()
    assert refused(pair.alpha) == "RESYNC_PRIMARY"


def test_a_source_must_be_connected_and_whole() -> None:
    assert refused(at("down").other) == "RESYNC_SOURCE"
    pair = behind_pair()
    pair.alpha.demote()
    pair.run()
    pair.alpha.hold_copies = True
    pair.connect()
    pair.run()
    assert refused(pair.alpha) == "RESYNC_SOURCE", "beta is being brought up to alpha"


def test_a_failed_source_is_no_source() -> None:
    pair = established_pair()
    pair.beta.session.peer_status["disk_state"] = "failed"
    assert refused(pair.beta) == "RESYNC_SOURCE"


def test_a_split_brain_is_for_a_person_to_resolve() -> None:
    pair = split_pair()
    pair.beta.demote()
    pair.run()
    pair.connect()
    pair.run()
    assert refused(pair.beta) == "SPLIT_BRAIN"


def test_an_unknown_peer_and_a_busy_volume_are_refused() -> None:
    pair = established_pair()
    verdict = full_compare.judge(pair.beta.volume, "gamma")
    assert isinstance(verdict, Verdict) and verdict.code == "NO_SUCH_PEER"
    assert refused(at("greeting").other) == "VOLUME_BUSY"


def test_a_new_copy_is_copied_as_a_whole_anyway() -> None:
    assert refused(at("first-copy-target")) == "ALREADY"


def test_a_failed_copy_cannot_be_mended_by_comparing_it() -> None:
    pair = established_pair()
    pair.beta.begin_turn().disk_failed("test")
    pair.run()
    assert refused(pair.beta) == "DISK_FAILED"


def restored_pair() -> Pair:
    """beta was restored from an image: the two do not remember the same last contact."""
    pair = written_pair()
    saved = pair.beta.metadata.facts, dict(pair.beta.metadata.pages), bytes(pair.beta.disk)
    for _ in range(2):
        pair.cut()
        pair.connect()
        pair.run()
    pair.alpha.write(0, data(50))
    pair.run()
    pair.cut()
    pair.beta.metadata.facts, pair.beta.metadata.pages = saved[0], saved[1]
    pair.beta.disk[:] = saved[2]
    pair.restart(pair.beta)
    pair.run()
    pair.connect()
    pair.run()
    return pair


def test_a_restored_backup_becomes_a_new_copy_of_the_same_blocks() -> None:
    pair = restored_pair()
    assert pair.beta.session.phase is Phase.REFUSED
    assert judged(pair.beta) is Ordered.BECOME_NEW
    decision = pair.beta.session.decision
    assert decision is not None
    assert "on beta: replctl resync r0 --full --from alpha" in decision.next_step


def test_the_newer_of_two_strangers_is_never_the_target() -> None:
    pair = restored_pair()
    # alpha lost beta meanwhile and is ahead: its own writes are what a comparison would undo.
    pair.cut()
    pair.alpha.write(EXTENT, data(51))
    pair.advance(3.0)
    pair.alpha.demote()
    pair.run()
    pair.connect()
    pair.run()
    assert pair.alpha.session.phase is Phase.REFUSED
    assert refused(pair.alpha) == "RESYNC_NEWER"
    assert judged(pair.beta) is Ordered.BECOME_NEW


def test_a_refusal_that_no_comparison_mends_keeps_its_own_words() -> None:
    pair = Pair()
    for node in pair.nodes:
        node.adopt()
    pair.run()
    for node in pair.nodes:
        node.demote()
    pair.run()
    pair.connect()
    pair.run()
    verdict = judged(pair.beta)
    assert isinstance(verdict, Verdict) and verdict.code == "RESYNC_SOURCE"
    assert verdict.reason == "The volume called r0 on alpha is another volume."
    assert verdict.next_step

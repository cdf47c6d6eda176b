"""Who may be primary: every kind of evidence, and every refusal with its code."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from repl.core.promotion import PromoteRequest, judge
from repl.core.states import Phase
from tests.core.asking import LOSE_DATA, VOUCH_ALPHA, left, promote
from tests.core.every_phase import at, behind_pair, established_pair_cut, split_pair
from tests.core.pair_of_cores import BETA_ID, Node, Pair, established_pair

# Evidence.


def test_a_connected_peer_that_agrees_is_evidence() -> None:
    pair = established_pair(primary=False)
    assert promote(pair.alpha) == ""
    assert "agreed" in pair.alpha.metadata.facts.generation.permit
    assert pair.alpha.metadata.facts.is_primary


def test_the_resync_target_of_this_node_may_agree_too() -> None:
    node = at("source")
    pair = node.pair
    pair.restart(node)
    pair.run()
    node.demote()
    pair.run()
    node.hold_copies = True
    pair.connect()
    pair.run()
    assert node.session.phase is Phase.SOURCE
    assert promote(node) == ""
    node.hold_copies = False
    pair.run()
    assert node.session.settled
    assert pair.equal()


def test_a_lone_survivor_is_promoted_again_after_a_restart() -> None:
    pair = behind_pair()
    pair.alpha.demote()
    pair.run()
    pair.restart(pair.alpha)
    pair.run()
    assert not pair.alpha.volume.is_primary
    assert promote(pair.alpha) == ""


def test_an_adopted_copy_is_promoted_without_its_peer() -> None:
    pair = Pair(known_zeroes=False)
    pair.alpha.adopt()
    pair.run()
    assert promote(pair.alpha) == ""


def test_a_release_by_the_last_primary_is_evidence() -> None:
    pair = established_pair()
    left(pair, pair.alpha)
    pair.cut()
    assert promote(pair.beta) == ""


def test_an_operators_vouching_is_evidence_and_is_recorded() -> None:
    pair = established_pair_cut()
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    assert "vouched" in pair.beta.metadata.facts.generation.permit


def test_accepted_loss_of_data_needs_no_evidence_and_voids_the_bases() -> None:
    pair = established_pair_cut()
    assert promote(pair.beta, LOSE_DATA) == ""
    facts = pair.beta.metadata.facts
    assert facts.generation.members == (BETA_ID,)
    assert (facts.peer("alpha").base_from, facts.peer("alpha").base_to) == (0, 0)


# Refusals.


def failed() -> Node:
    node = established_pair_cut().beta
    node.begin_turn().disk_failed("test")
    node.pair.run()
    return node


def outdated() -> Node:
    """beta left cleanly while alpha was primary."""
    pair = established_pair()
    left(pair, pair.beta)
    pair.restart(pair.beta)
    pair.run()
    return pair.beta


def half_copied() -> Node:
    node = at("target")
    node.pair.restart(node)
    node.pair.run()
    return node


def cache_lost() -> Node:
    pair = established_pair()
    pair.restart(pair.beta, power_loss=True)
    pair.run()
    return pair.beta


def released() -> Node:
    pair = established_pair()
    left(pair, pair.alpha)
    pair.restart(pair.alpha)
    pair.run()
    return pair.alpha


def peer_is_primary() -> Node:
    return at("established-secondary")


def cut_off() -> Node:
    return established_pair_cut().beta


def busy() -> Node:
    node = established_pair(primary=False).alpha
    node.promote()
    return node


REFUSALS: list[tuple[str, Callable[[], Node], PromoteRequest]] = [
    ("DISK_FAILED", failed, PromoteRequest()),
    ("DISK_FAILED", failed, LOSE_DATA),
    ("PROMOTE_FRESH", lambda: Pair().alpha, PromoteRequest()),
    ("PROMOTE_FRESH", lambda: Pair().alpha, LOSE_DATA),
    ("VOLUME_BUSY", busy, PromoteRequest()),
    ("PROMOTE_INCONSISTENT", half_copied, PromoteRequest()),
    ("PROMOTE_INCONSISTENT", half_copied, VOUCH_ALPHA),
    ("PROMOTE_INCONSISTENT", half_copied, LOSE_DATA),
    ("PROMOTE_SETTLING", lambda: at("target"), PromoteRequest()),
    ("PROMOTE_SETTLING", lambda: at("settle-target"), PromoteRequest()),
    ("PROMOTE_SETTLING", lambda: at("target-starting"), PromoteRequest()),
    ("PROMOTE_HANDSHAKE", lambda: at("greeting").other, PromoteRequest()),
    ("SPLIT_BRAIN", lambda: split_connected().beta, PromoteRequest()),
    ("PROMOTE_OUTDATED", outdated, PromoteRequest()),
    ("PROMOTE_OUTDATED", outdated, VOUCH_ALPHA),
    ("PROMOTE_CACHE_LOST", cache_lost, PromoteRequest()),
    ("PROMOTE_CACHE_LOST", cache_lost, VOUCH_ALPHA),
    ("PEER_IS_CONNECTED", peer_is_primary, VOUCH_ALPHA),
    ("PROMOTE_PEER_REFUSED", peer_is_primary, PromoteRequest()),
    ("PROMOTE_RELEASED", released, PromoteRequest()),
    ("PROMOTE_NO_EVIDENCE", cut_off, PromoteRequest()),
    ("NO_SUCH_PEER", cut_off, PromoteRequest(peer_dead="gamma")),
]


def split_connected() -> Pair:
    pair = split_pair()
    number = pair.beta.demote()
    pair.run()
    assert pair.beta.answers[number].ok
    pair.connect()
    pair.run()
    assert pair.beta.session.phase is Phase.SPLIT_BRAIN
    return pair


@pytest.mark.parametrize(
    ("code", "build", "request_"),
    REFUSALS,
    ids=[f"{code}-{place}" for place, (code, _, _) in enumerate(REFUSALS)],
)
def test_a_refusal_has_its_code_its_reason_and_a_next_step(
    code: str, build: Callable[[], Node], request_: PromoteRequest
) -> None:
    node = build()
    stored = node.metadata.facts.lineage
    number = node.promote(request_)
    if code == "PROMOTE_PEER_REFUSED":
        node.pair.run()
    verdict = node.answers.get(number) or dict(node.volume.outbox.answers)[number]
    assert (verdict.ok, verdict.code) == (False, code)
    assert verdict.reason and verdict.next_step
    assert not node.volume.is_primary
    assert node.metadata.facts.lineage == stored, "a refused promotion leaves nothing behind"


def test_a_half_copied_copy_is_promoted_only_if_even_that_is_accepted() -> None:
    node = half_copied()
    assert promote(node, PromoteRequest(lose_data=True, accept_half_copied=True)) == ""
    assert not node.metadata.facts.inconsistent
    assert not node.metadata.maps().remaining.count


def test_a_stale_copy_is_promoted_if_its_loss_is_accepted() -> None:
    node = outdated()
    assert promote(node, LOSE_DATA) == ""
    node = cache_lost()
    assert promote(node, LOSE_DATA) == ""
    assert not node.metadata.facts.cache_lost


def test_lone_power_cut() -> None:
    """The mark means nothing while the set is {me}."""
    pair = behind_pair()
    pair.alpha.demote()
    pair.run()
    pair.restart(pair.alpha, power_loss=True)
    pair.run()
    assert pair.alpha.volume.facts.cache_lost
    assert promote(pair.alpha) == ""


def test_mark_lost_by_clean_stop() -> None:
    node = cache_lost()
    left(node.pair, node)
    node.pair.restart(node)
    node.pair.run()
    assert node.metadata.facts.cache_lost
    assert judge(node.volume, VOUCH_ALPHA).verdict.code == "PROMOTE_CACHE_LOST"


def test_a_promoted_node_is_promoted_already() -> None:
    pair = established_pair()
    counter = pair.alpha.metadata.facts.generation.counter
    assert promote(pair.alpha) == ""
    assert pair.alpha.metadata.facts.generation.counter == counter

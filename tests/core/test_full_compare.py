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
from tests.core.pair_of_cores import BLOCK, EXTENT, SIZE, Node, Pair, data, established_pair


def judged(node: Node) -> Ordered | Verdict:
    return full_compare.judge(node.volume, node.peer_name)


def refused(node: Node) -> str:
    verdict = judged(node)
    assert isinstance(verdict, Verdict) and not verdict.ok
    assert verdict.reason and verdict.code in CODES
    return verdict.code


def order(node: Node) -> int:
    assert judged(node) is Ordered.GIVE_UP_CLAIM
    return node.ask(lambda n: full_compare.give_up_claim(node.volume, n, node.peer_name, "uid 0"))


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
    number = order(pair.beta)
    pair.run()
    assert pair.beta.answers[number].ok
    assert pair.beta.metadata.facts.inconsistent and pair.beta.metadata.facts.everything_suspect
    reconnect(pair)
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.equal()
    assert resync_bytes(pair.alpha) - before == BLOCK
    assert not pair.beta.metadata.facts.inconsistent
    assert pair.beta.event("FULL_COMPARISON_ORDERED").fields == {"peer": "alpha", "by": "uid 0"}


def test_an_interrupted_comparison_is_taken_up_again_even_after_a_restart() -> None:
    pair = written_pair()
    pair.beta.disk[EXTENT + 9] ^= 0xFF
    order(pair.beta)
    pair.run()
    pair.alpha.hold_copies = True
    reconnect(pair)
    pair.restart(pair.beta, power_loss=True)
    pair.run()
    pair.alpha.hold_copies = False
    reconnect(pair)
    assert pair.equal() and pair.beta.session.phase is Phase.ESTABLISHED


def test_a_primary_goes_on_while_its_peers_copy_is_compared() -> None:
    pair = written_pair()
    order(pair.beta)
    pair.run()
    pair.alpha.hold_copies = True
    pair.connect()
    pair.run()
    op = pair.alpha.write(0, data(77))
    pair.advance(2.0)
    assert op in pair.alpha.replies, "within the grace of a broken connection, not minutes"
    pair.alpha.hold_copies = False
    if not pair.alpha.connected:
        pair.connect()
    pair.advance(30.0)
    assert pair.equal() and pair.alpha.session.phase is Phase.ESTABLISHED


def test_a_copy_under_comparison_is_not_promotable() -> None:
    pair = written_pair()
    order(pair.beta)
    pair.run()
    number = pair.beta.promote(PromoteRequest(peer_dead="alpha"))
    pair.run()
    assert pair.beta.answers[number].code == "PROMOTE_INCONSISTENT"
    assert volume_snapshot(pair.beta.volume)["disk_state"] == "inconsistent"


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

"""A copy that stands still says what it waits for; one that moves says nothing."""

from __future__ import annotations

from repl.core.progress import STALLED_AFTER_S
from repl.core.stalls import why_stalled
from repl.core.states import Phase
from tests.core.every_phase import STAGES, at
from tests.core.pair_of_cores import Node

LONG_S = STALLED_AFTER_S + 2


def stalled(node: Node) -> str:
    """Let time pass in which nothing of the copy moves, while the connection lives."""
    node.pair.advance(LONG_S)
    assert node.session.phase in (Phase.SOURCE, Phase.TARGET), node.drops
    return why_stalled(node.session)


def test_nothing_is_stalled_where_nothing_is_copied_or_time_has_not_passed() -> None:
    for stage in STAGES:
        assert why_stalled(at(stage).session) == "", stage


def test_a_source_that_waits_for_its_own_disk_says_so() -> None:
    node = at("source")
    assert stalled(node).startswith("waiting for this node's disk: a read has not ended for ")


def test_a_target_says_that_the_source_sends_nothing() -> None:
    node = at("target")
    assert stalled(node).startswith("alpha, the source, has sent nothing of the copy for ")


def test_a_source_that_waits_for_the_peers_disk_says_so() -> None:
    node = at("source")
    node.other.hold_syncs = True
    node.hold_copies = False
    assert stalled(node).startswith("waiting for beta's disk: a sync there has not ended for ")


def test_a_source_that_waits_for_the_local_sync_at_the_end_says_so() -> None:
    node = at("source")
    node.hold_syncs = True
    node.hold_copies = False
    assert stalled(node).startswith("waiting for this node's disk: a sync has not ended for ")


def test_a_peer_that_waits_before_it_joins_again_is_named() -> None:
    node = at("source")
    node.session.probation._wait_s = 1e6
    node.hold_copies = False
    assert stalled(node).startswith("beta was lost right after it joined, and waits before it")


def test_a_stall_and_its_end_are_told_once_each() -> None:
    node = at("source")
    stalled(node)
    node.pair.advance(LONG_S)
    assert node.codes.count("RESYNC_STALLED") == 1
    assert node.event("RESYNC_STALLED").fields["why"].startswith("waiting for this node's disk")
    node.hold_copies = False
    node.pair.run()
    assert node.session.phase is Phase.ESTABLISHED
    assert node.codes.count("RESYNC_FINISHED") == 1


def test_a_copy_that_moves_again_is_told_so() -> None:
    node = at("source")
    stalled(node)
    # Read, sent and applied, but not durable there: it moved, and is not done.
    node.other.hold_syncs = True
    node.hold_copies = False
    node.pair.advance(1.0)
    assert node.codes[-1] == "RESYNC_MOVING"

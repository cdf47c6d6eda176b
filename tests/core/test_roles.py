"""Asking, demoting, leaving: nothing is given up before it is safe, nothing is forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl.core.states import Phase
from repl.core.wire import PeerError, Type
from tests.core.asking import VOUCH_ALPHA, contact_until_rest, left, promote
from tests.core.every_phase import at, behind_pair
from tests.core.pair_of_cores import BLOCK, EXTENT, data, established_pair

# Agreement.


@pytest.mark.parametrize("alpha_first", [True, False])
def test_of_two_nodes_that_ask_at_once_the_lower_id_wins(alpha_first: bool) -> None:
    pair = established_pair(primary=False)
    order = pair.nodes if alpha_first else pair.nodes[::-1]
    numbers = {node: node.promote() for node in order}
    pair.run()
    assert pair.alpha.answers[numbers[pair.alpha]].ok
    assert pair.beta.answers[numbers[pair.beta]].code == "PROMOTE_PEER_REFUSED"
    assert pair.alpha.volume.is_primary and not pair.beta.volume.is_primary
    assert not pair.alpha.broken + pair.beta.broken


def test_a_resume_and_a_promotion_at_once_break_no_protocol() -> None:
    pair = established_pair()
    pair.restart(pair.alpha)
    pair.run()
    pair.connect()
    for _ in range(1000):
        pair.alpha.step()
        if pair.alpha.session.phase is Phase.ESTABLISHED:
            break
        pair.beta.step()
    pair.alpha.hold_incoming = True
    while pair.beta.session.phase is not Phase.ESTABLISHED:
        pair.beta.step()
    number = pair.beta.promote()
    pair.alpha.hold_incoming = False
    pair.run()
    assert number in pair.beta.answers
    assert pair.alpha.volume.is_primary != pair.beta.volume.is_primary
    assert not pair.alpha.broken + pair.beta.broken


def test_a_connection_that_breaks_while_the_peer_is_asked_refuses() -> None:
    pair = established_pair(primary=False)
    number = pair.alpha.promote()
    pair.beta.hold_incoming = True
    pair.run()
    pair.cut()
    pair.run()
    assert pair.alpha.answers[number].code == "PROMOTE_PEER_REFUSED"
    assert not pair.alpha.volume.roles.busy


def test_a_node_that_was_primary_stores_that_it_is_not_before_it_agrees() -> None:
    """Else a restart would resume what it gave away."""
    pair = established_pair()
    pair.restart(pair.alpha)
    pair.beta.hold_incoming = True
    pair.run()
    pair.connect()
    pair.beta.hold_incoming = False
    pair.alpha.begin_turn().roles.resume_pending = False
    pair.run()
    assert pair.alpha.metadata.facts.is_primary, "stored, not in force"
    pair.beta.promote()
    pair.alpha.hold_commits = True
    pair.run()
    assert not pair.beta.volume.is_primary
    pair.alpha.hold_commits = False
    pair.run()
    assert pair.beta.volume.is_primary
    assert not pair.alpha.metadata.facts.is_primary


def test_an_agreement_is_not_sent_on_a_later_connection() -> None:
    pair = established_pair(primary=False)
    pair.alpha.promote()
    pair.alpha.step()
    pair.beta.volume.facts = replace(pair.beta.volume.facts)
    pair.beta.hold_commits = True
    pair.run()
    pair.cut()
    pair.connect()
    pair.beta.hold_commits = False
    pair.run()
    assert not pair.alpha.broken + pair.beta.broken
    assert pair.alpha.session.phase is Phase.ESTABLISHED


def test_an_answer_to_nothing_is_the_peers_error() -> None:
    node = at("established-secondary")
    with pytest.raises(PeerError, match="nothing was asked"):
        node.feed_body(Type.PROMOTE_ANSWER, {"number": 1, "agree": True, "reason": ""})
    assert not node.volume.is_primary


# Demotion.


def test_a_demotion_drains_flushes_and_stores_before_it_answers() -> None:
    pair = established_pair()
    op = pair.alpha.write(0, data(1))
    number = pair.alpha.demote()
    pair.beta.hold_syncs = True
    pair.run()
    assert op in pair.alpha.replies
    assert number not in pair.alpha.answers
    assert pair.alpha.metadata.facts.is_primary
    pair.beta.hold_syncs = False
    pair.run()
    assert pair.alpha.answers[number].ok
    assert not pair.alpha.metadata.facts.is_primary
    assert pair.beta.durable[0] == pair.alpha.durable[0] == 1


def test_fork_on_quick_switch() -> None:
    """A demotion waits until every connected member has stored the generation."""
    pair = established_pair(primary=False)
    pair.beta.promote()
    pair.beta.step()
    pair.alpha.step()
    while not pair.beta.volume.is_primary:
        pair.alpha.hold_incoming = pair.beta.volume.changes.busy
        pair.beta.step()
        pair.alpha.step()
    pair.alpha.hold_incoming = False
    pair.alpha.hold_commits = True
    number = pair.beta.demote()
    pair.run()
    assert pair.alpha.metadata.facts.generation != pair.beta.metadata.facts.generation
    assert number not in pair.beta.answers
    pair.alpha.hold_commits = False
    pair.run()
    assert pair.beta.answers[number].ok
    assert pair.alpha.metadata.facts.generation == pair.beta.metadata.facts.generation


def test_a_graceful_switch_and_back_keeps_every_write() -> None:
    pair = established_pair()
    for fill in (1, 2, 3):
        here, there = (pair.alpha, pair.beta) if fill % 2 else (pair.beta, pair.alpha)
        here.write(fill * BLOCK, data(fill))
        pair.run()
        number = here.demote()
        pair.run()
        assert here.answers[number].ok
        assert promote(there) == ""
    assert [pair.alpha.disk[fill * BLOCK] for fill in (1, 2, 3)] == [1, 2, 3]
    assert pair.equal()
    assert not pair.alpha.broken + pair.beta.broken


def test_a_demotion_clears_the_intents_on_both_sides() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.alpha.demote()
    pair.run()
    for node in pair.nodes:
        assert not node.metadata.maps().intents.count, node.name


def test_a_demotion_without_the_peer_goes_on_alone_first() -> None:
    pair = established_pair()
    pair.cut()
    pair.alpha.write(0, data(1))
    number = pair.alpha.demote()
    pair.advance(3.0)
    assert pair.alpha.answers[number].ok
    assert pair.alpha.metadata.facts.alone


def test_the_demotion_of_a_secondary_ends_a_pending_resume() -> None:
    pair = established_pair()
    pair.restart(pair.alpha)
    pair.run()
    assert pair.alpha.volume.roles.resume_pending
    number = pair.alpha.demote()
    pair.run()
    assert pair.alpha.answers[number].ok
    assert not pair.alpha.volume.roles.resume_pending
    assert not pair.alpha.metadata.facts.is_primary


def test_a_step_down_in_the_middle_of_a_demotion_leaves_no_freeze_behind() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.beta.hold_syncs = True
    pair.alpha.write(0, data(1))
    number = pair.alpha.demote()
    pair.run()
    pair.alpha.begin_turn().roles.step_down("test")
    pair.beta.hold_syncs = False
    pair.run()
    assert number in pair.alpha.answers
    pair.connect()
    pair.run()
    assert promote(pair.alpha) == ""
    op = pair.alpha.write(0, data(2))
    pair.run()
    assert op in pair.alpha.replies


def test_checkpoints_go_on_after_a_step_down_in_the_middle_of_one() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.beta.hold_syncs = True
    pair.advance(2.5)
    pair.alpha.begin_turn().roles.step_down("test")
    pair.beta.hold_syncs = False
    pair.run()
    pair.connect()
    pair.run()
    assert promote(pair.alpha) == ""
    pair.alpha.write(2 * EXTENT, data(1))
    pair.advance(10.0)
    assert not pair.alpha.volume.intents.hot


def test_a_disk_failure_answers_an_operator_who_waits() -> None:
    pair = established_pair()
    pair.beta.hold_syncs = True
    pair.alpha.write(0, data(1))
    number = pair.alpha.demote()
    pair.run()
    pair.alpha.begin_turn().disk_failed("test")
    pair.run()
    assert number in pair.alpha.answers
    pair = established_pair(primary=False)
    pair.alpha.hold_syncs = True
    number = pair.alpha.promote()
    pair.run()
    pair.alpha.begin_turn().disk_failed("test")
    pair.run()
    assert number in pair.alpha.answers
    assert not pair.alpha.answers[number].ok


# Leaving.


def test_a_primary_that_leaves_gives_the_volume_to_its_peer() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(1))
    left(pair, pair.alpha)
    assert pair.alpha.metadata.facts.released
    assert pair.alpha.metadata.facts.clean
    assert not pair.alpha.metadata.facts.is_primary
    assert pair.beta.metadata.facts.holds_release
    assert pair.beta.durable[0] == 1


def test_a_release_is_void_at_the_next_contact() -> None:
    pair = established_pair()
    left(pair, pair.alpha)
    pair.restart(pair.alpha)
    pair.run()
    pair.connect()
    pair.run()
    for node in pair.nodes:
        assert not node.metadata.facts.released
        assert not node.metadata.facts.holds_release
        assert node.session.phase is Phase.ESTABLISHED


def test_a_secondary_that_leaves_is_outdated_and_the_primary_goes_on_at_once() -> None:
    pair = established_pair()
    left(pair, pair.beta)
    assert pair.beta.metadata.facts.outdated
    assert pair.alpha.metadata.facts.alone
    op = pair.alpha.write(0, data(1))
    pair.run()
    assert op in pair.alpha.replies


def test_a_secondary_that_left_before_it_knew_the_primary_can_be_vouched_for() -> None:
    """The lone generation that its leaving made has answered nobody, and gives way."""
    pair = established_pair(primary=False)
    pair.alpha.promote()
    pair.alpha.step()
    while not pair.alpha.volume.is_primary:
        pair.beta.step()
        pair.alpha.step()
    pair.beta.hold_incoming = True
    pair.beta.leave()
    pair.run()
    assert not pair.beta.metadata.facts.outdated
    assert pair.alpha.metadata.facts.alone
    assert not pair.alpha.metadata.facts.generation.answered
    pair.restart(pair.alpha)
    pair.beta.hold_incoming = False
    pair.restart(pair.beta)
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    pair.beta.write(0, data(5))
    pair.run()
    contact_until_rest(pair)
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.alpha.disk[0] == 5


@pytest.mark.parametrize(("body", "answered"), [({}, True), ({"outdated": False}, False)])
def test_a_leaving_peer_of_an_older_version_is_taken_for_outdated(
    body: dict[str, bool], answered: bool
) -> None:
    pair = established_pair()
    pair.alpha.feed_body(Type.LEAVE, body)
    pair.run()
    assert pair.alpha.metadata.facts.alone
    assert pair.alpha.metadata.facts.generation.answered == answered


def test_outdated_for_ever() -> None:
    """A node that left behind a primary is up to date again after a settle in equal generation."""
    pair = established_pair()
    number = pair.beta.leave()
    pair.alpha.hold_incoming = True
    pair.run()
    pair.restart(pair.alpha)
    pair.restart(pair.beta)
    assert pair.beta.metadata.facts.outdated
    pair.alpha.hold_incoming = False
    pair.run()
    pair.connect()
    pair.run()
    assert number
    assert not pair.beta.metadata.facts.outdated
    assert pair.beta.volume.disk_state_text == "up-to-date"


def test_both_leave_in_either_order_and_start_in_either_order() -> None:
    for first_out in (0, 1):
        for first_in in (0, 1):
            pair = established_pair()
            pair.alpha.write(0, data(1))
            pair.run()
            for place in (first_out, 1 - first_out):
                left(pair, pair.nodes[place])
            for place in (first_in, 1 - first_in):
                pair.restart(pair.nodes[place])
                pair.run()
            pair.connect()
            pair.run()
            assert pair.alpha.session.phase is Phase.ESTABLISHED
            assert promote(pair.beta) == ""
            assert pair.equal()


def test_leaving_a_failed_volume_is_answered_at_once() -> None:
    node = established_pair().beta
    node.begin_turn().disk_failed("test")
    node.pair.run()
    number = node.leave()
    node.pair.run()
    assert node.answers[number].ok


def test_a_primary_alone_leaves_without_anybody() -> None:
    pair = behind_pair()
    left(pair, pair.alpha)
    assert not pair.alpha.metadata.facts.released
    pair.restart(pair.alpha)
    pair.run()
    assert promote(pair.alpha) == ""


@pytest.mark.parametrize("held", ["hold_commits", "hold_syncs"])
@pytest.mark.parametrize("ask", ["demote", "leave"])
def test_a_demotion_that_a_forced_step_down_ended_does_nothing_more(held: str, ask: str) -> None:
    pair = established_pair()
    pair.cut()
    pair.alpha.write(0, data(1))
    pair.advance(2.0)
    setattr(pair.alpha, held, True)
    number = getattr(pair.alpha, ask)()
    pair.run()
    pair.alpha.begin_turn().roles.step_down("a peer has newer writes")
    setattr(pair.alpha, held, False)
    pair.run()
    assert 0 not in pair.alpha.answers and number in pair.alpha.answers
    assert pair.alpha.notes.count("alpha is secondary of r0") == 1
    assert not pair.alpha.volume.facts.released


def test_a_copy_that_fails_while_it_is_being_promoted_never_becomes_primary() -> None:
    pair = established_pair()
    pair.cut()
    pair.run()
    pair.beta.hold_commits = True
    number = pair.beta.promote(VOUCH_ALPHA)
    pair.run()
    pair.beta.begin_turn().disk_failed("the disk said no")
    pair.run()
    pair.beta.hold_commits = False
    pair.run()
    assert not pair.beta.answers[number].ok
    assert not pair.beta.volume.is_primary and not pair.beta.metadata.facts.is_primary


def test_a_sync_that_fails_while_the_volume_closes_still_lets_it_close() -> None:
    """The mark that the copy failed is the last commit then, and the process may end."""
    pair = established_pair()
    pair.alpha.hold_syncs = True
    closed: list[bool] = []
    pair.alpha.begin_turn().close(lambda: closed.append(True))
    pair.run()
    assert not closed
    pair.alpha.begin_turn().disk_failed("the disk said no")
    pair.run()
    assert closed == [True]
    assert pair.alpha.metadata.facts.inconsistent and not pair.alpha.metadata.facts.clean

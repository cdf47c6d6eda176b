"""After a restart or a fork: who resumes, who yields, who steps down; and after a disk error."""

from __future__ import annotations

from repl.core.promotion import PromoteRequest
from repl.core.states import Phase
from tests.core.asking import VOUCH_ALPHA, contact_until_rest, promote
from tests.core.every_phase import at, behind_pair
from tests.core.pair_of_cores import ALPHA_ID, EXTENT, Pair, data, established_pair

# Resuming.


def test_a_primary_killed_and_restarted_resumes_with_its_peers_agreement() -> None:
    pair = established_pair()
    op = pair.alpha.write(0, data(1))
    pair.run()
    assert op in pair.alpha.replies
    counter = pair.alpha.metadata.facts.generation.counter
    pair.restart(pair.alpha)
    pair.run()
    assert not pair.alpha.volume.is_primary
    assert pair.alpha.volume.roles.resume_pending
    pair.connect()
    pair.run()
    assert pair.alpha.volume.is_primary
    assert pair.alpha.metadata.facts.generation.counter == counter
    op = pair.alpha.write(0, data(2))
    pair.run()
    assert op in pair.alpha.replies
    assert pair.equal()


def test_a_lone_survivor_resumes_at_once() -> None:
    pair = behind_pair()
    pair.restart(pair.alpha)
    pair.run()
    assert pair.alpha.volume.is_primary


def test_resume_undoes_vouching() -> None:
    """alpha must not go on alone: beta was promoted meanwhile and acknowledged writes."""
    pair = established_pair()
    pair.cut()
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    pair.beta.write(0, data(5))
    pair.run()
    pair.restart(pair.alpha)
    pair.advance(60.0, step_s=5.0)
    assert not pair.alpha.volume.is_primary
    pair.connect()
    pair.run()
    assert pair.alpha.disk[0] == 5
    assert not pair.alpha.volume.is_primary
    assert not pair.alpha.metadata.facts.is_primary


def test_primary_as_ancestor() -> None:
    """A primary whose peer was promoted steps down without an answer and is its target."""
    pair = established_pair()
    pair.cut()
    pending = pair.alpha.write(0, data(4))
    pair.run()
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    op = pair.beta.write(0, data(5))
    pair.run()
    assert op in pair.beta.replies
    pair.connect()
    pair.run()
    assert pending not in pair.alpha.replies
    assert not pair.alpha.volume.is_primary
    if not pair.alpha.connected:
        pair.connect()
        pair.run()
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.alpha.disk[0] == pair.beta.disk[0] == 5


def test_a_forced_step_down_blames_nobody() -> None:
    """The peer did nothing wrong: its frames that cross the step-down's commit are no error."""
    pair = established_pair()
    pair.cut()
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    pair.connect()
    while pair.alpha.volume.is_primary:
        pair.alpha.step()
        pair.beta.step()
    pair.alpha.hold_commits = True
    pair.run()
    pair.alpha.hold_commits = False
    contact_until_rest(pair)
    assert not pair.alpha.broken + pair.beta.broken
    assert pair.alpha.session.phase is Phase.ESTABLISHED


def forked_pair() -> Pair:
    """Both were vouched for; alpha answered nothing since, beta did. Not connected."""
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.cut()
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    pair.beta.write(0, data(6))
    pair.run()
    pair.restart(pair.alpha)
    pair.run()
    assert promote(pair.alpha, PromoteRequest(peer_dead="beta")) == ""
    assert not pair.alpha.metadata.facts.generation.answered
    assert pair.beta.metadata.facts.generation.answered
    return pair


def test_unanswered_generation_forks() -> None:
    pair = forked_pair()
    contact_until_rest(pair)
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.beta.volume.is_primary and not pair.alpha.volume.is_primary
    assert pair.alpha.disk[0] == 6
    assert pair.equal()
    assert not pair.alpha.broken + pair.beta.broken


def test_a_write_answered_between_decision_and_yielding_is_not_given_up() -> None:
    """If what a hello said changed before the decision is carried out, the handshake begins anew:
    what was an unanswered branch is one half of a split-brain now, and both copies are kept."""
    pair = forked_pair()
    pair.connect()
    pair.alpha.step()
    pair.beta.step()
    late = pair.alpha.incoming.pop()
    pair.run()
    assert pair.alpha.session.decision is not None
    assert pair.alpha.session.decision.rule == "unanswered-fork"
    op = pair.alpha.write(EXTENT, data(7))
    pair.run()
    assert op in pair.alpha.replies
    pair.alpha.incoming.append(late)
    contact_until_rest(pair)
    assert pair.alpha.disk[EXTENT] == 7
    assert pair.alpha.session.phase is Phase.SPLIT_BRAIN


def test_idle_double_power_cut() -> None:
    pair = established_pair()
    pair.advance(5.0)
    for node in pair.nodes:
        pair.restart(node, power_loss=True)
    pair.run()
    pair.connect()
    pair.run()
    assert pair.alpha.volume.is_primary, "the old primary resumes"
    assert pair.alpha.session.phase is Phase.ESTABLISHED


def test_promoted_mid_settle() -> None:
    node = at("settle-target")
    assert promote(node) == "PROMOTE_SETTLING"


# A failed disk.


def test_a_failed_primary_hands_its_peer_the_evidence_to_be_promoted() -> None:
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    pair.alpha.begin_turn().disk_failed("test")
    pair.run()
    assert pair.alpha.metadata.facts.inconsistent
    assert not pair.alpha.volume.serving
    assert promote(pair.beta) == ""
    assert pair.beta.disk[0] == 1


def test_a_failed_secondary_leaves_the_set() -> None:
    pair = established_pair()
    pair.beta.begin_turn().disk_failed("test")
    pair.run()
    op = pair.alpha.write(0, data(1))
    pair.advance(3.0)
    assert op in pair.alpha.replies
    assert pair.alpha.metadata.facts.generation.members == (ALPHA_ID,)
    assert pair.beta.metadata.facts.everything_suspect

"""A primary that did not run for a while answers nobody before it has met its members anew."""

from __future__ import annotations

import pytest

from repl.core.snapshot import volume_snapshot
from repl.core.states import Phase
from repl.core.timeouts import AWAY_S
from repl.core.wire import PeerError, Type
from tests.core.asking import VOUCH_ALPHA, promote
from tests.core.every_phase import behind_pair
from tests.core.pair_of_cores import Pair, data, established_pair

LONG_S = 10.0
#: How often the engine looks at the clock.
TICK_S = 0.2


def after_absence(pair: Pair) -> None:
    """Let time pass in which neither node runs: for alpha it is its own absence."""
    pair.now_s += LONG_S
    pair.alpha.begin_turn()


def test_requests_wait_for_the_answer_to_a_ping_of_now() -> None:
    pair = established_pair()
    pair.beta.hold_incoming = True
    after_absence(pair)
    read, write = pair.alpha.read(), pair.alpha.write(0, data(1))
    pair.run()
    assert pair.alpha.volume.frozen
    assert not pair.alpha.reads and not pair.alpha.replies
    pair.beta.hold_incoming = False
    pair.run()
    assert pair.alpha.reads == [read]
    assert pair.alpha.replies == [write]


def test_answers_from_before_the_absence_prove_nothing() -> None:
    pair = established_pair()
    pair.alpha.hold_incoming = True
    write = pair.alpha.write(0, data(1))
    pair.advance(3.0)
    assert pair.alpha.incoming, "an acknowledgement and pongs lie in the buffer"
    pair.beta.hold_incoming = True
    after_absence(pair)
    read = pair.alpha.read()
    pair.alpha.hold_incoming = False
    pair.run()
    assert pair.alpha.session.acked_seq == pair.alpha.session.sent_seq
    assert not pair.alpha.reads and not pair.alpha.replies
    pair.beta.hold_incoming = False
    pair.run()
    assert (pair.alpha.reads, pair.alpha.replies) == ([read], [write])


def test_leave_to_resume_from_before_the_absence_serves_nobody() -> None:
    pair = established_pair()
    pair.restart(pair.alpha)
    pair.run()
    pair.connect()
    while pair.alpha.volume.roles.task is None:
        pair.alpha.step()
        if pair.alpha.volume.roles.task is None:
            pair.beta.step()
    pair.beta.step()
    pair.beta.hold_incoming = True
    after_absence(pair)
    pair.run()
    assert pair.alpha.volume.is_primary, "beta agreed before"
    read = pair.alpha.read()
    pair.run()
    assert not pair.alpha.reads, "beta may be primary by now"
    pair.beta.hold_incoming = False
    pair.run()
    assert pair.alpha.reads == [read]


def test_primary_that_was_superseded_meanwhile_answers_nothing() -> None:
    pair = established_pair()
    pair.cut()
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    theirs = pair.beta.write(0, data(2))
    pair.run()
    assert pair.beta.replies == [theirs]
    after_absence(pair)
    read, write = pair.alpha.read(), pair.alpha.write(0, data(1))
    pair.connect()
    pair.run()
    assert not pair.alpha.volume.is_primary
    assert not pair.alpha.reads and not pair.alpha.replies
    assert {read, write} <= set(pair.alpha.forgotten)
    pair.connect()
    pair.run()
    assert pair.equal() and pair.alpha.disk[0] == 2


def test_handshake_of_before_the_absence_proves_nothing() -> None:
    pair = established_pair()
    pair.cut()
    pair.connect()
    # beta has answered alpha's hello with its decision; alpha is gone before that arrives.
    told = len(pair.beta.sent)
    while Type.DECISION not in [header.type for header in pair.beta.sent[told:]]:
        pair.alpha.step()
        pair.beta.step()
    assert pair.alpha.incoming and pair.alpha.session.phase is Phase.GREETING
    pair.beta.hold_incoming = True
    after_absence(pair)
    read = pair.alpha.read()
    pair.run()
    assert pair.alpha.session.phase is not Phase.GREETING
    assert not pair.alpha.reads
    pair.beta.hold_incoming = False
    pair.run()
    assert pair.alpha.reads == [read]


def test_peer_that_came_back_and_follows_ends_the_doubt() -> None:
    pair = established_pair()
    pair.cut()
    after_absence(pair)
    read = pair.alpha.read()
    pair.run()
    assert not pair.alpha.reads
    pair.connect()
    pair.run()
    assert pair.alpha.reads == [read]


def test_nobody_is_given_up_before_there_was_time_to_meet() -> None:
    pair = established_pair()
    pair.cut()
    after_absence(pair)
    write = pair.alpha.write(0, data(1))
    meeting_s = pair.alpha.volume.timeouts.meeting_s
    pair.advance(meeting_s - 0.5)
    assert not pair.alpha.replies
    pair.advance(pair.alpha.volume.timeouts.reconnect_grace_s + 1.0)
    assert pair.alpha.replies == [write]
    assert any("cannot be reached" in note for note in pair.alpha.notes)


def test_lone_primary_that_has_answered_waits_for_nobody() -> None:
    pair = behind_pair()
    after_absence(pair)
    read = pair.alpha.read()
    pair.run()
    assert pair.alpha.reads == [read]


def test_lone_primary_that_has_answered_nobody_can_still_give_way() -> None:
    pair = established_pair()
    pair.cut()
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    theirs = pair.beta.write(0, data(2))
    pair.run()
    assert pair.beta.replies == [theirs]
    # alpha went on alone, too, but nobody has got an answer under that generation.
    pair.alpha.volume.changes.lose([pair.alpha.session], "a test")
    pair.run()
    assert pair.alpha.metadata.facts.alone
    after_absence(pair)
    read = pair.alpha.read()
    pair.run()
    assert not pair.alpha.reads
    for _ in range(3):
        pair.connect()
        pair.run()
        if pair.alpha.connected:
            break
    assert not pair.alpha.reads and read in pair.alpha.forgotten
    assert pair.equal() and pair.alpha.disk[0] == 2


def alone_with_an_answer_on_its_way(pair: Pair, held: str) -> str:
    """alpha, alone, is about to mark that it has answered when it ceases to run; beta takes over,
    which is right, for nobody has got an answer; return alpha's write."""
    pair.cut()
    pair.alpha.volume.changes.lose([pair.alpha.session], "a test")
    pair.run()
    assert pair.alpha.metadata.facts.alone
    setattr(pair.alpha, f"hold_{held}", True)
    write = pair.alpha.write(0, data(1))
    pair.run()
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    theirs = pair.beta.write(0, data(2))
    pair.run()
    assert pair.beta.replies == [theirs] and not pair.alpha.replies
    return write


@pytest.mark.parametrize("held", ["commits", "disk"])
def test_an_answer_on_its_way_does_not_keep_a_lone_primary_from_giving_way(held: str) -> None:
    pair = established_pair()
    write = alone_with_an_answer_on_its_way(pair, held)
    after_absence(pair)
    setattr(pair.alpha, f"hold_{held}", False)
    pair.run()
    assert not pair.alpha.replies and not pair.alpha.metadata.facts.generation.answered
    for _ in range(3):
        pair.connect()
        pair.run()
        if pair.alpha.connected:
            break
    assert not pair.alpha.replies and write in pair.alpha.forgotten
    assert pair.equal() and pair.alpha.disk[0] == 2


@pytest.mark.parametrize("held", ["commits", "syncs"])
def test_loss_under_way_does_not_keep_a_lone_primary_from_giving_way(held: str) -> None:
    pair = established_pair()
    pair.alpha.write(0, data(3))
    pair.run()
    pair.cut()
    setattr(pair.alpha, f"hold_{held}", True)
    write = pair.alpha.write(0, data(1))
    pair.advance(3.0)
    assert pair.alpha.volume.changes.busy
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    theirs = pair.beta.write(0, data(2))
    pair.run()
    after_absence(pair)
    setattr(pair.alpha, f"hold_{held}", False)
    pair.run()
    assert write not in pair.alpha.replies
    for _ in range(3):
        pair.connect()
        pair.run()
        if pair.alpha.connected:
            break
    assert pair.beta.replies == [theirs]
    assert write not in pair.alpha.replies and write in pair.alpha.forgotten
    assert pair.equal() and pair.alpha.disk[0] == 2


def test_a_primary_that_waits_for_the_other_to_give_way_answers_nobody_yet() -> None:
    """The other one has decided to, and may answer its clients until it has done so."""
    pair = established_pair()
    pair.cut()
    pair.alpha.volume.changes.lose([pair.alpha.session], "a test")
    pair.run()
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    after_absence(pair)
    write = pair.alpha.write(0, data(1))
    place = len(pair.beta.sent)
    pair.connect()
    while Type.DECISION not in [header.type for header in pair.beta.sent[place:]]:
        assert pair.beta.step() or pair.alpha.step()
    pair.beta.hold_incoming = True
    pair.run()
    assert pair.alpha.session.phase is Phase.IDLE and pair.beta.volume.is_primary
    assert write not in pair.alpha.replies
    pair.beta.hold_incoming = False
    pair.run()
    if not pair.alpha.connected:
        pair.connect()
        pair.run()
    assert not pair.beta.volume.is_primary and write in pair.alpha.replies
    assert pair.equal() and pair.beta.disk[0] == 1


def test_a_mark_that_was_taken_back_is_made_again_before_the_answer() -> None:
    pair = established_pair()
    pair.cut()
    pair.alpha.volume.changes.lose([pair.alpha.session], "a test")
    pair.run()
    pair.alpha.hold_commits = True
    write = pair.alpha.write(0, data(1))
    pair.run()
    after_absence(pair)
    pair.alpha.hold_commits = False
    pair.run()
    assert not pair.alpha.replies
    pair.advance(pair.alpha.volume.timeouts.meeting_s + 1.0)
    assert pair.alpha.replies == [write] and pair.alpha.metadata.facts.generation.answered


def test_status_says_whom_clients_wait_for() -> None:
    pair = established_pair()
    pair.beta.hold_incoming = True
    after_absence(pair)
    pair.run()
    assert "clients wait for word of beta" in volume_snapshot(pair.alpha.volume)["why"]
    assert any("clients wait for word of beta" in note for note in pair.alpha.notes)


def test_pong_that_nobody_asked_for_breaks_the_protocol() -> None:
    pair = established_pair()
    with pytest.raises(PeerError, match="PONG"):
        pair.alpha.feed(Type.PONG)


def test_ordinary_pause_is_no_absence() -> None:
    pair = established_pair()
    pair.beta.hold_incoming = True
    pair.advance(2.0, step_s=TICK_S)
    read = pair.alpha.read()
    pair.run()
    assert pair.alpha.reads == [read]
    assert TICK_S < AWAY_S / 2

"""No room on a disk: the primary's writes wait, a receiver lets go, nothing is forgotten."""

from __future__ import annotations

from repl.core.states import Phase
from tests.core.pair_of_cores import BLOCK, data, established_pair


def test_full_primary_keeps_its_write_and_its_peer() -> None:
    pair = established_pair()
    pair.alpha.hold_disk = True
    op = pair.alpha.write(0, data(1))
    pair.run()
    pair.alpha.begin_turn().no_space("No space left")
    pair.advance(30)
    assert op not in pair.alpha.replies
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.alpha.volume.is_primary
    pair.alpha.hold_disk = False
    pair.alpha.begin_turn().space_back()
    pair.run()
    assert op in pair.alpha.replies


def test_checkpoint_keeps_the_intent_of_a_write_that_waits_for_room() -> None:
    pair = established_pair()
    pair.alpha.hold_disk = True
    pair.alpha.write(0, data(1))
    pair.run()
    volume = pair.alpha.begin_turn()
    volume.no_space("No space left")
    assert volume.writes.written_number < volume.writes.number
    pair.alpha.hold_disk = False
    pair.run()
    assert volume.writes.written_number == volume.writes.number


def test_full_primary_demotes_without_draining_and_the_copies_are_compared() -> None:
    pair = established_pair()
    pair.alpha.hold_disk = True
    op = pair.alpha.write(0, data(1))
    pair.run()
    pair.alpha.begin_turn().no_space("No space left")
    number = pair.alpha.ask(lambda n: pair.alpha.volume.demote(n, drop_clients=True))
    pair.run()
    assert pair.alpha.answers[number].ok
    assert not pair.alpha.metadata.facts.is_primary
    assert not pair.alpha.connected, "the copies may differ: they meet again by a handshake"
    # The engine lets go of what waits for room without carrying it out.
    pair.alpha.disk_jobs.clear()
    pair.alpha.begin_turn().space_back()
    pair.alpha.hold_disk = False
    pair.alpha.events.clear()
    pair.connect()
    pair.run()
    assert pair.alpha.volume.writes.disk_owes
    assert not pair.alpha.event_kinds("send DECISION"), "its disk still works on the write"
    pair.alpha.begin_turn().disk_done(op)
    pair.run()
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.equal() and op not in pair.alpha.replies
    number = pair.beta.promote()
    pair.run()
    assert pair.beta.answers[number].ok


def test_full_secondary_lets_go_and_refuses_until_there_is_room() -> None:
    pair = established_pair()
    pair.beta.begin_turn().no_space("No space left")
    pair.run()
    assert not pair.beta.connected
    assert pair.alpha.session.refusal_code == "DISK_FULL"
    op = pair.alpha.write(BLOCK, data(2))
    pair.advance(3)
    assert op in pair.alpha.replies, "the primary goes on without it"
    pair.connect()
    pair.run()
    assert not pair.beta.connected and not pair.alpha.connected
    pair.beta.begin_turn().space_back()
    pair.connect()
    pair.run()
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.equal()

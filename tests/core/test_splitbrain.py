"""Resolving a split-brain: one side is kept, whatever breaks between the steps, and never none."""

from __future__ import annotations

import pytest

from repl.core.snapshot import split_brain_snapshot
from repl.core.splitbrain import DISCARDED_KEPT, STEPS, Step
from repl.core.states import Phase
from repl.core.wire import Type
from tests.core.asking import LOSE_DATA, VOUCH_ALPHA, contact_until_rest, promote
from tests.core.every_phase import split_pair
from tests.core.pair_of_cores import BLOCK, data
from tests.core.split_pairs import (
    assert_kept,
    code,
    demoted,
    forget_events,
    named,
    resolve,
    split,
    until,
)

WAYS = [(keep, ordered_on) for keep in ("alpha", "beta") for ordered_on in ("alpha", "beta")]


# The whole way.


@pytest.mark.parametrize(("keep", "ordered_on"), WAYS)
def test_either_side_is_kept_by_an_order_on_either_node(keep: str, ordered_on: str) -> None:
    pair = split()
    number = resolve(named(pair, ordered_on), keep)
    pair.run()
    assert code(named(pair, ordered_on), number) == ""
    assert keep in named(pair, ordered_on).answers[number].reason
    assert_kept(pair, keep)


def test_the_kept_side_serves_all_the_while() -> None:
    pair = split(primaries=True)
    demoted(pair.beta)
    number = resolve(pair.beta, "alpha")
    op = pair.alpha.write(0, data(1))
    pair.run()
    assert op in pair.alpha.replies
    assert code(pair.beta, number) == ""
    assert_kept(pair, "alpha")
    assert pair.alpha.volume.is_primary


def test_only_blocks_that_differ_are_copied() -> None:
    pair = split()
    before = len(pair.alpha.sent)
    resolve(pair.alpha, "alpha")
    pair.run()
    contact_until_rest(pair)
    copied = [h for h in pair.alpha.sent[before:] if h.type is Type.RESYNC_WRITE]
    assert sum(header.length for header in copied) == 3 * BLOCK
    digests = [h for h in pair.alpha.sent[before:] if h.type is Type.DIGEST]
    assert digests, "the union is compared"


def test_a_split_brain_is_resolved_twice_in_a_row() -> None:
    pair = split()
    resolve(pair.alpha, "alpha")
    pair.run()
    assert_kept(pair, "alpha")
    assert promote(pair.alpha) == ""
    pair.cut()
    pair.alpha.write(0, data(5))
    pair.advance(2.0)
    assert promote(pair.beta, VOUCH_ALPHA) == ""
    pair.beta.write(0, data(6))
    pair.run()
    demoted(pair.alpha)
    pair.connect()
    pair.run()
    number = resolve(pair.beta, "beta")
    pair.run()
    assert code(pair.beta, number) == ""
    contact_until_rest(pair)
    assert pair.alpha.disk[0] == pair.beta.disk[0] == 6
    assert pair.equal()


def test_a_forced_stale_copy_is_compared_wholly() -> None:
    pair = split_pair()
    # A promotion by --lose-data voids beta's map: nobody knows any more where it differs.
    demoted(pair.beta)
    assert promote(pair.beta, LOSE_DATA) == ""
    pair.beta.write(2 * BLOCK, data(4))
    pair.run()
    demoted(pair.beta)
    pair.alpha.write(BLOCK, data(3))
    pair.run()
    demoted(pair.alpha)
    pair.connect()
    pair.run()
    found = split_brain_snapshot(pair.alpha.volume)
    assert not found["differing_known_from_maps"]
    assert found["differing_bytes_at_most"] == pair.alpha.volume.size_bytes
    resolve(pair.alpha, "beta")
    pair.run()
    assert_kept(pair, "beta")


# Each step is durable before the next.


def test_the_side_to_be_given_up_agrees_only_with_its_mark_stored() -> None:
    pair = split()
    pair.beta.hold_commits = True
    number = resolve(pair.alpha, "alpha")
    pair.run()
    assert number not in pair.alpha.answers
    assert not any(h.type is Type.RESOLVE_ANSWER for h in pair.beta.sent)
    pair.beta.hold_commits = False
    pair.run()
    assert code(pair.alpha, number) == ""
    assert_kept(pair, "alpha")


def test_the_other_side_is_told_only_when_the_choice_is_stored() -> None:
    pair = split()
    number = resolve(pair.alpha, "alpha")
    pair.alpha.hold_commits = True
    pair.run()
    assert number not in pair.alpha.answers
    assert not any(h.type is Type.DISCARD for h in pair.alpha.sent)
    assert pair.beta.volume.facts.outdated and not pair.beta.volume.facts.inconsistent
    pair.alpha.hold_commits = False
    pair.run()
    assert_kept(pair, "alpha")


def test_no_answer_is_given_before_the_record_is_stored() -> None:
    pair = split()
    numbers = {pair.alpha: resolve(pair.alpha, "alpha")}
    until(pair, "DISCARD")
    pair.beta.hold_commits = True
    pair.run()
    assert numbers[pair.alpha] not in pair.alpha.answers
    pair.beta.hold_commits = False
    pair.run()
    assert_kept(pair, "alpha")


def test_the_discarded_generation_is_listed_on_the_kept_side() -> None:
    pair = split()
    given_up = pair.beta.volume.facts.generation.id
    resolve(pair.beta, "alpha")
    pair.run()
    assert pair.alpha.metadata.facts.discarded == (given_up,)
    assert pair.beta.metadata.facts.discarded == ()


def test_the_list_of_discarded_generations_has_an_end() -> None:
    pair = split()
    volume = pair.alpha.begin_turn()
    volume.change_facts(discarded=tuple(range(1, DISCARDED_KEPT + 1)))
    resolve(pair.alpha, "alpha")
    pair.run()
    listed = pair.alpha.metadata.facts.discarded
    assert len(listed) == DISCARDED_KEPT and DISCARDED_KEPT not in listed
    assert_kept(pair, "alpha")


# Interruptions.

#: Where the connection breaks, and both sides or one of them die.
MOMENTS = ("RESOLVE_ASK", "RESOLVE_ANSWER", "DISCARD", "DISCARDED")
DEATHS = ("", "alpha", "beta", "both")


@pytest.mark.parametrize("dies", DEATHS)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("keep", "ordered_on"), WAYS)
def test_an_interruption_anywhere_ends_with_the_ordered_side_kept(
    keep: str, ordered_on: str, moment: str, dies: str
) -> None:
    pair = split()
    number = resolve(named(pair, ordered_on), keep)
    until(pair, moment)
    pair.cut()
    for node in pair.nodes:
        if dies in (node.name, "both"):
            pair.restart(node)
    pair.run()
    stored = named(pair, keep).metadata.facts.discarded
    contact_until_rest(pair)
    if all(node.session.phase is Phase.SPLIT_BRAIN for node in pair.nodes):
        # The choice had not been stored: both copies are kept still, and it is ordered again.
        assert not stored, "what was chosen durably is told again without a person"
        if dies not in (ordered_on, "both"):
            assert code(named(pair, ordered_on), number) == "RESOLVE_INTERRUPTED"
        again = resolve(named(pair, ordered_on), keep)
        pair.run()
        assert code(named(pair, ordered_on), again) == ""
    assert_kept(pair, keep)


@pytest.mark.parametrize("breaks", [1, 5])
def test_a_peer_is_told_again_however_often_it_is_interrupted(breaks: int) -> None:
    pair = split()
    resolve(pair.alpha, "alpha")
    for turn in range(breaks):
        until(pair, "DISCARD")
        pair.cut()
        pair.restart(pair.nodes[turn % 2])
        pair.run()
        assert pair.alpha.volume.facts.discarded
        forget_events(pair)
        pair.connect()
    assert_kept(pair, "alpha")


def test_the_choice_stands_while_it_is_being_stored_and_the_link_breaks() -> None:
    pair = split()
    number = resolve(pair.alpha, "alpha")
    until(pair, "RESOLVE_ANSWER")
    pair.alpha.hold_commits = True
    pair.run()
    assert pair.alpha.session.split is not None
    assert pair.alpha.session.split.step is Step.KEEPING
    pair.cut()
    pair.alpha.hold_commits = False
    pair.run()
    assert code(pair.alpha, number) == ""
    assert "next contact" in pair.alpha.answers[number].reason
    assert_kept(pair, "alpha")


def test_a_resync_interrupted_after_the_record_goes_on() -> None:
    pair = split()
    pair.alpha.hold_copies = True
    resolve(pair.alpha, "alpha")
    contact_until_rest(pair)
    assert pair.beta.session.phase is Phase.TARGET
    pair.restart(pair.beta)
    pair.alpha.hold_copies = False
    pair.run()
    assert pair.beta.volume.facts.inconsistent
    assert_kept(pair, "alpha")


# The table.


def test_every_step_is_reachable_and_leads_somewhere_known() -> None:
    reachable, frontier = {Step.NONE}, [Step.NONE]
    while frontier:
        for step in STEPS[frontier.pop()] - reachable:
            reachable.add(step)
            frontier.append(step)
    assert reachable == set(Step) == set(STEPS)

"""Leave to go on alone: asked for where it must be, given for one absence only, and shown."""

from __future__ import annotations

from itertools import count

import pytest

from repl.core.lineage import Origin
from repl.core.permits import SHOWN_MAX, AskOperator, Manual, Question
from repl.core.promotion import PromoteRequest
from repl.core.snapshot import volume_snapshot
from repl.core.states import Phase
from repl.errors import CODES
from tests.core.every_phase import behind_pair
from tests.core.pair_of_cores import EXTENT, Node, Pair, data, established_pair


def asking_pair() -> Pair:
    """In sync, alpha primary; a primary that loses its peer has to ask."""
    pair = established_pair()
    for node in pair.nodes:
        node.volume.alone.provider = AskOperator()
    return pair


def frozen_pair() -> tuple[Pair, str]:
    """alpha lost beta with a write in flight, and waits for a permit."""
    pair = asking_pair()
    pair.cut()
    op = pair.alpha.write(0, data(1))
    pair.advance(5.0)
    assert pair.alpha.volume.alone.question is not None
    return pair, op


def go_on(node: Node, by: str = "uid 0") -> int:
    number = node.ask(lambda n: node.volume.alone.give(n, by))
    node.pair.run()
    return number


# The providers.


def test_the_default_gives_leave_at_once_and_in_words() -> None:
    assert Manual().ask(Question("beta", 1, 1)) == "manual: beta did not answer"


def test_an_operators_word_counts_for_one_question_only() -> None:
    provider, question = AskOperator(), Question("beta", 7, 3)
    assert provider.ask(question) == ""
    provider.give(question, "uid 0")
    assert provider.ask(question).startswith("an operator (uid 0) continued without beta")
    assert provider.ask(Question("beta", 8, 4)) == ""
    provider.withdraw()
    assert provider.ask(question) == ""


# A frozen primary.


def test_nothing_is_acknowledged_until_an_operator_continues() -> None:
    pair, op = frozen_pair()
    later, flush = pair.alpha.write(EXTENT, data(2)), pair.alpha.flush()
    read = pair.alpha.read()
    pair.advance(60.0)
    assert not {op, later, flush} & set(pair.alpha.replies)
    assert read not in pair.alpha.reads, "the peer may have been promoted meanwhile"
    assert pair.alpha.volume.facts.generation.origin is not Origin.ALONE
    number = go_on(pair.alpha)
    assert pair.alpha.answers[number].ok
    assert pair.alpha.answers[number].reason == "it goes on without beta"
    pair.run()
    assert {op, later, flush} <= set(pair.alpha.replies)
    assert read in pair.alpha.reads


def test_the_permit_is_answered_after_it_is_stored_and_before_that_nothing_is() -> None:
    pair, op = frozen_pair()
    pair.alpha.events.clear()
    number = go_on(pair.alpha)
    order = [e for e in pair.alpha.events if e in (("reply", op), ("answer", number))]
    stored = [n for n, e in enumerate(pair.alpha.events) if e[0] == "committed"]
    first = min(pair.alpha.events.index(event) for event in order)
    assert len(order) == 2 and stored[0] < first


def test_the_permit_is_stored_with_its_generation_and_shown() -> None:
    pair, _ = frozen_pair()
    go_on(pair.alpha, "uid 12")
    generation = pair.alpha.metadata.facts.generation
    assert generation.origin is Origin.ALONE
    assert generation.permit == (
        "an operator (uid 12) continued without beta, which did not answer"
    )
    [permit] = volume_snapshot(pair.alpha.volume)["permits"]
    assert permit == {
        "generation": generation.counter,
        "kind": "alone",
        "at_s": generation.made_at_s,
        "permit": generation.permit,
        "answered": True,
    }
    assert pair.alpha.event("ALONE_PERMITTED").fields["by"] == "uid 12"


def test_status_says_that_it_is_frozen_why_and_what_to_run() -> None:
    pair, _ = frozen_pair()
    shown = volume_snapshot(pair.alpha.volume)
    assert shown["serving"] and shown["frozen"]
    assert shown["alone"]["peer"] == "beta"
    assert shown["alone"]["for_s"] > 0
    assert "beta did not answer, and alpha may not go on without it" in shown["why"]
    assert shown["next"].endswith("replctl continue r0")
    assert shown["frozen_s_total"] == shown["alone"]["for_s"]
    go_on(pair.alpha)
    shown = volume_snapshot(pair.alpha.volume)
    assert shown["alone"] is None and not shown["frozen"]
    assert shown["frozen_s_total"] > 0
    codes = ("FROZEN", "ALONE_PERMITTED", "THAWED")
    assert [code for code in pair.alpha.codes if code in codes] == list(codes)


def test_a_peer_that_comes_back_ends_the_freeze_without_a_permit() -> None:
    pair, op = frozen_pair()
    pair.connect()
    pair.run()
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert op in pair.alpha.replies
    assert pair.alpha.volume.alone.question is None
    assert "beta is back" in pair.alpha.event("THAWED").text
    assert pair.equal()


def test_a_permit_for_one_absence_does_not_count_for_the_next() -> None:
    """The word comes when the peer is back already and being settled: it was for nothing, and the
    generation stays the same."""
    pair, _ = frozen_pair()
    pair.alpha.hold_copies = True
    pair.connect()
    pair.run()
    number = go_on(pair.alpha)
    assert pair.alpha.session.phase is Phase.SOURCE and number not in pair.alpha.answers
    pair.alpha.hold_copies = False
    pair.run()
    assert pair.beta.session.phase is Phase.ESTABLISHED
    assert pair.alpha.answers[number].reason == "beta is back"
    pair.cut()
    op = pair.alpha.write(0, data(9))
    pair.advance(10.0)
    assert op not in pair.alpha.replies
    assert pair.alpha.volume.alone.question is not None


def test_an_idle_primary_that_loses_its_peer_is_not_frozen() -> None:
    pair = asking_pair()
    pair.cut()
    pair.advance(30.0)
    assert pair.alpha.volume.alone.question is None
    read = pair.alpha.read()
    pair.run()
    assert read in pair.alpha.reads


def test_a_peer_that_left_cleanly_is_evidence_enough() -> None:
    pair = asking_pair()
    pair.beta.leave()
    pair.run()
    pair.cut()
    op = pair.alpha.write(0, data(4))
    pair.advance(2.0)
    assert op in pair.alpha.replies
    assert "FROZEN" not in pair.alpha.codes


def test_a_peer_whose_copy_is_incomplete_is_evidence_enough() -> None:
    pair = asking_pair()
    pair.beta.begin_turn().disk_failed("test")
    pair.run()
    pair.alpha.hold_copies = True
    pair.restart(pair.beta)
    pair.run()
    pair.connect()
    pair.run()
    op = pair.alpha.write(0, data(4))
    pair.advance(3.0)
    assert op in pair.alpha.replies
    assert "FROZEN" not in pair.alpha.codes


def test_a_frozen_primary_can_be_demoted_and_acknowledges_nothing_by_that() -> None:
    pair, op = frozen_pair()
    number = pair.alpha.ask(lambda n: pair.alpha.volume.demote(n, drop_clients=True))
    pair.advance(3.0)
    assert pair.alpha.answers[number].ok
    assert not pair.alpha.volume.is_primary
    assert op not in pair.alpha.replies
    assert pair.alpha.volume.alone.question is None
    assert not pair.alpha.metadata.facts.generation.answered


def test_a_frozen_primary_can_be_stopped() -> None:
    pair, op = frozen_pair()
    number = pair.alpha.leave()
    pair.advance(3.0)
    assert pair.alpha.answers[number].ok
    assert op not in pair.alpha.replies


def test_a_failed_disk_ends_the_freeze() -> None:
    pair, _ = frozen_pair()
    waiting = pair.alpha.ask(lambda n: pair.alpha.volume.alone.give(n, "uid 0"))
    pair.alpha.begin_turn().disk_failed("test")
    pair.run()
    assert pair.alpha.volume.alone.question is None
    assert waiting in pair.alpha.answers


# Refusals.


def test_nothing_is_continued_where_nothing_waits() -> None:
    pair = asking_pair()
    refused = [pair.alpha, pair.beta, established_pair().alpha]
    for node in refused:
        verdict = node.answers[go_on(node)]
        assert verdict.code == "CONTINUE_NOT_NEEDED" in CODES
        assert verdict.next_step
    assert 'no alone = "ask"' in refused[2].answers[max(refused[2].answers)].reason


def test_two_permits_at_once_are_one_too_many() -> None:
    pair, _ = frozen_pair()
    pair.alpha.hold_syncs = True
    first = pair.alpha.ask(lambda n: pair.alpha.volume.alone.give(n, "uid 0"))
    pair.run()
    second = go_on(pair.alpha)
    assert pair.alpha.answers[second].code == "VOLUME_BUSY"
    pair.alpha.hold_syncs = False
    pair.run()
    assert pair.alpha.answers[first].ok


# What still matters.


def test_permits_are_shown_until_the_peer_is_a_member_again() -> None:
    pair = established_pair()
    assert volume_snapshot(pair.alpha.volume)["permits"] == []
    pair = behind_pair()
    assert [p["kind"] for p in volume_snapshot(pair.alpha.volume)["permits"]] == ["alone"]
    pair.connect()
    pair.run()
    for node in pair.nodes:
        assert volume_snapshot(node.volume)["permits"] == []


@pytest.mark.parametrize(
    ("request_made", "kind"),
    [
        (PromoteRequest(peer_dead="alpha", by="uid 3"), "peer-dead"),
        (PromoteRequest(lose_data=True, by="uid 3"), "data-lost"),
    ],
)
def test_an_operators_word_is_shown_with_who_and_when(
    request_made: PromoteRequest, kind: str
) -> None:
    pair = established_pair()
    pair.cut()
    pair.run()
    pair.beta.promote(request_made)
    pair.run()
    pair.restart(pair.beta)
    pair.run()
    [permit] = volume_snapshot(pair.beta.volume)["permits"]
    assert (permit["kind"], permit["at_s"] > 0) == (kind, True)
    assert "uid 3" in permit["permit"]


def test_several_permits_are_shown_newest_first() -> None:
    pair = behind_pair()
    numbers = count()
    pair.alpha.demote()
    pair.run()
    pair.alpha.promote(PromoteRequest(lose_data=True, by=f"uid {next(numbers)}"))
    pair.run()
    kinds = [p["kind"] for p in volume_snapshot(pair.alpha.volume)["permits"]]
    assert kinds == ["data-lost", "alone"]
    for _ in range(SHOWN_MAX + 5):
        pair.alpha.demote()
        pair.run()
        pair.alpha.promote(PromoteRequest(lose_data=True, by=f"uid {next(numbers)}"))
        pair.run()
    shown = volume_snapshot(pair.alpha.volume)["permits"]
    assert len(shown) == SHOWN_MAX
    assert f"uid {next(numbers) - 1}" in shown[0]["permit"]

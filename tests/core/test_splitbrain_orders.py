"""Orders that meet each other, a copy in use, a volume that is not split, and a peer's nonsense."""

from __future__ import annotations

import pytest

from repl.core.snapshot import split_brain_snapshot, volume_snapshot
from repl.core.splitbrain import not_split
from repl.core.states import Phase
from repl.core.wire import PeerError, Type, encode_body
from tests.core.asking import LOSE_DATA, VOUCH_ALPHA, contact_until_rest, promote
from tests.core.every_phase import STAGES, at
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

# Two orders at once.


@pytest.mark.parametrize("alpha_first", [True, False])
@pytest.mark.parametrize(("for_alpha", "for_beta"), [("alpha", "beta"), ("beta", "alpha")])
def test_of_two_opposite_orders_the_lower_node_id_wins(
    for_alpha: str, for_beta: str, alpha_first: bool
) -> None:
    """alpha's id is the lower one; `for_alpha` is what is ordered on alpha."""
    pair = split()
    numbers: dict[str, int] = {}
    for name in ("alpha", "beta") if alpha_first else ("beta", "alpha"):
        numbers[name] = resolve(named(pair, name), for_alpha if name == "alpha" else for_beta)
    pair.run()
    assert code(pair.alpha, numbers["alpha"]) == ""
    assert code(pair.beta, numbers["beta"]) == "RESOLVE_RACED"
    assert_kept(pair, for_alpha)


@pytest.mark.parametrize("keep", ["alpha", "beta"])
@pytest.mark.parametrize("alpha_first", [True, False])
def test_one_order_given_on_both_nodes_at_once_is_carried_out_once(
    keep: str, alpha_first: bool
) -> None:
    pair = split()
    order = pair.nodes if alpha_first else pair.nodes[::-1]
    numbers = {node: resolve(node, keep) for node in order}
    pair.run()
    assert [code(node, number) for node, number in numbers.items()] == ["", ""]
    assert_kept(pair, keep)


def test_the_side_that_was_kept_refuses_to_be_given_up() -> None:
    pair = split()
    number = resolve(pair.alpha, "alpha")
    until(pair, "DISCARD")
    refusals = [resolve(pair.alpha, "beta")]
    pair.cut()
    pair.run()
    assert code(pair.alpha, number) == ""
    assert code(pair.alpha, refusals[0]) in ("VOLUME_BUSY", "RESOLVE_DECIDED")
    pair.connect()
    assert_kept(pair, "alpha")


def test_an_order_for_the_other_side_loses_against_a_stored_choice() -> None:
    pair = split()
    resolve(pair.alpha, "alpha")
    until(pair, "DISCARD")
    pair.cut()
    pair.run()
    forget_events(pair)
    pair.connect()
    # beta's hello, alpha's hello and decision; then beta has both, and alpha waits for beta's.
    pair.beta.step()
    pair.alpha.step()
    pair.alpha.hold_incoming = True
    pair.run()
    assert pair.alpha.session.phase is Phase.GREETING
    assert pair.beta.session.phase is Phase.SPLIT_BRAIN
    # alpha is about to tell beta again; now an operator on beta wants beta to be kept.
    number = resolve(pair.beta, "beta")
    pair.beta.step()
    pair.alpha.hold_incoming = False
    pair.run()
    assert code(pair.beta, number) == "RESOLVE_RACED"
    assert_kept(pair, "alpha")


def test_an_agreement_that_was_never_taken_up_binds_nobody() -> None:
    pair = split()
    resolve(pair.alpha, "alpha")
    until(pair, "RESOLVE_ANSWER")
    pair.cut()
    pair.run()
    assert pair.beta.volume.facts.outdated and not pair.alpha.volume.facts.discarded
    pair.connect()
    pair.run()
    number = resolve(pair.beta, "beta")
    pair.run()
    assert code(pair.beta, number) == ""
    assert_kept(pair, "beta")


# A copy in use.


@pytest.mark.parametrize("ordered_on", ["alpha", "beta"])
def test_a_primary_is_not_given_up(ordered_on: str) -> None:
    pair = split(primaries=True)
    pair.beta.volume.client_names = ["one", "two"]
    number = resolve(named(pair, ordered_on), "alpha")
    pair.run()
    assert code(named(pair, ordered_on), number) == "RESOLVE_PRIMARY"
    verdict = named(pair, ordered_on).answers[number]
    assert "beta and 2 clients hold it" in verdict.reason
    assert "on beta: replctl demote r0 --drop-clients" in verdict.next_step
    for node in pair.nodes:
        assert node.volume.is_primary
        facts = node.volume.facts
        assert not (facts.outdated or facts.discarded or facts.inconsistent)
    demoted(pair.beta)
    resolve(named(pair, ordered_on), "alpha")
    pair.run()
    assert_kept(pair, "alpha")


def test_two_primaries_in_a_split_brain_both_go_on_and_status_says_so() -> None:
    pair = split(primaries=True)
    for node in pair.nodes:
        op = node.write(0, data(9))
        pair.run()
        assert op in node.replies
        shown = volume_snapshot(node.volume)
        assert "Both are primary" in shown["why"]
        assert shown["next"] == "replctl splitbrain show r0"


def test_a_copy_that_agreed_is_not_promoted_by_a_plain_command() -> None:
    pair = split()
    resolve(pair.alpha, "alpha")
    until(pair, "DISCARD")
    pair.cut()
    pair.run()
    assert promote(pair.beta) == "PROMOTE_OUTDATED"
    assert promote(pair.beta, VOUCH_ALPHA) == "PROMOTE_OUTDATED"
    assert_kept(pair, "alpha")


def test_writes_made_after_the_choice_by_name_are_not_given_up_for_it() -> None:
    pair = split()
    resolve(pair.alpha, "alpha")
    until(pair, "DISCARD")
    pair.cut()
    pair.run()
    assert promote(pair.beta, LOSE_DATA) == ""
    pair.beta.write(3 * BLOCK, data(7))
    pair.run()
    demoted(pair.beta)
    pair.connect()
    pair.run()
    # Another generation than the one that was discarded: a person looks again.
    assert all(node.session.phase is Phase.SPLIT_BRAIN for node in pair.nodes)
    assert pair.beta.disk[3 * BLOCK] == 7
    number = resolve(pair.beta, "beta")
    pair.run()
    assert code(pair.beta, number) == ""
    contact_until_rest(pair)
    assert pair.alpha.disk[3 * BLOCK] == 7 and pair.equal()


def test_a_copy_that_remembers_no_agreement_obeys_nobody() -> None:
    """beta's disks were put back to before it agreed; it may have served since."""
    pair = split()
    before = pair.beta.metadata.facts
    resolve(pair.alpha, "alpha")
    until(pair, "DISCARD")
    pair.cut()
    pair.beta.metadata.facts = before
    pair.restart(pair.beta)
    pair.run()
    pair.connect()
    pair.run()
    assert pair.beta.session.phase is Phase.SPLIT_BRAIN
    assert not pair.beta.volume.facts.inconsistent
    assert "does not remember" in volume_snapshot(pair.alpha.volume)["why"]
    number = resolve(pair.alpha, "alpha")
    pair.run()
    assert code(pair.alpha, number) == ""
    assert_kept(pair, "alpha")


# Where there is nothing to resolve.


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "split-brain"])
@pytest.mark.parametrize("keep", ["alpha", "beta"])
def test_a_volume_that_is_not_split_refuses_with_the_way_on(stage: str, keep: str) -> None:
    node = at(stage)
    number = resolve(node, keep)
    node.step()
    verdict = node.answers[number]
    assert verdict.code in ("NOT_SPLIT", "VOLUME_BUSY"), verdict
    assert verdict.reason and verdict.next_step
    assert (verdict.code == "VOLUME_BUSY") == (node.session.phase is Phase.GREETING)
    shown = split_brain_snapshot(node.volume)
    assert not shown["split_brain"] and shown["why"] == verdict.reason


def test_a_volume_that_an_operator_disconnected_is_to_be_connected_first() -> None:
    node = at("down")
    bar = not_split(node.volume, [node.session], "an operator (uid 0)")
    assert bar.reason.startswith("an operator (uid 0) disconnected r0 from")
    assert bar.next_step == "replctl connect r0, then: replctl status r0"


def test_an_unknown_node_is_named_as_such() -> None:
    pair = split()
    number = resolve(pair.alpha, "gamma")
    pair.run()
    assert code(pair.alpha, number) == "NO_SUCH_PEER"
    assert "alpha, beta" in pair.alpha.answers[number].next_step


def test_one_side_at_a_time_is_chosen() -> None:
    pair = split()
    number = resolve(pair.alpha, "alpha")
    again = resolve(pair.alpha, "beta")
    pair.run()
    assert code(pair.alpha, again) == "VOLUME_BUSY"
    assert code(pair.alpha, number) == ""


# Old peers and bad ones.


def test_a_peer_of_the_version_before_is_told_nothing_new() -> None:
    pair = split()
    split_side = pair.alpha.session.split
    assert split_side is not None and pair.alpha.session.their_hello is not None
    object.__setattr__(pair.alpha.session.their_hello, "protocol", 1)
    pair.alpha.sent.clear()
    split_side.begin()
    pair.advance(10.0)
    new = {Type.FORK, Type.MAP, Type.RESOLVE_ASK, Type.DISCARD}
    assert not new & {header.type for header in pair.alpha.sent}
    number = resolve(pair.alpha, "alpha")
    pair.run()
    assert code(pair.alpha, number) == "RESOLVE_PEER_REFUSED"


NEW_FRAMES = (Type.FORK, Type.RESOLVE_ASK, Type.RESOLVE_ANSWER, Type.DISCARD, Type.DISCARDED)


@pytest.mark.parametrize("stage", [s for s in STAGES if s not in ("split-brain", "down")])
@pytest.mark.parametrize("kind", NEW_FRAMES)
def test_a_frame_about_a_split_brain_belongs_to_one(stage: str, kind: Type) -> None:
    with pytest.raises(PeerError):
        at(stage).feed_body(kind, {})


@pytest.mark.parametrize(
    ("kind", "seq", "body"),
    [
        (Type.DISCARDED, 5, None),
        (Type.RESOLVE_ASK, 0, {"number": 1}),
        (Type.RESOLVE_ASK, 0, {"number": 1, "keep_me": 1, "generation": 5}),
        (Type.RESOLVE_ANSWER, 0, {"number": 1, "agree": True}),
        (
            Type.RESOLVE_ANSWER,
            0,
            {"number": 9, "agree": True, "code": "", "reason": "", "next": ""},
        ),
        (Type.FORK, 0, {"clients": -1, "client_names": [], "kept": False, "agreed": False}),
        (Type.FORK, 0, {"clients": 1, "client_names": [5], "kept": False, "agreed": False}),
    ],
)
def test_nonsense_about_a_split_brain_drops_the_peer(
    kind: Type, seq: int, body: dict[str, object] | None
) -> None:
    node = at("split-brain")
    payload = b"" if body is None else encode_body(body)
    with pytest.raises(PeerError):
        node.feed(kind, seq, payload=payload)


def test_a_choice_about_another_generation_begins_the_handshake_anew() -> None:
    node = at("split-brain")
    node.feed_body(Type.RESOLVE_ASK, {"number": 1, "keep_me": True, "generation": 5})
    assert node.session.phase is Phase.DOWN
    assert not node.volume.facts.outdated


def test_a_copy_is_not_given_up_because_a_peer_says_so() -> None:
    node = at("split-brain")
    mine = node.volume.facts
    node.feed(Type.DISCARD, mine.generation.id)
    node.pair.run()
    assert node.volume.facts.lineage == mine.lineage and not node.volume.facts.inconsistent

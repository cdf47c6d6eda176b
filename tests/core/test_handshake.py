"""The handshake over its whole (abstracted) input space, and row by row as the design words it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from repl.core.handshake import (
    MIRROR,
    SOURCE_ACTIONS,
    TARGET_ACTIONS,
    Action,
    Decision,
    base_is_valid,
    decide,
)
from repl.core.hello import PROTOCOL_VERSION, Hello
from repl.core.lineage import Generation, Lineage, Origin, Relation, relate

LOW, HIGH, STRANGER = 11, 22, 33
VOLUME_ID = 77
ROOT_ID, MINE_ID, THEIRS_ID = 500, 501, 502


def generation(
    counter: int,
    generation_id: int,
    *,
    members: tuple[int, ...] = (LOW, HIGH),
    primary: int = 0,
    answered: bool = False,
) -> Generation:
    return Generation(counter, generation_id, primary, members, answered, Origin.PROMOTED, 0)


def hello(node_id: int, other_id: int, lineage: Lineage = ()) -> Hello:
    """A side that met the other before and holds this lineage; clean, secondary, no base."""
    return Hello(
        protocol=PROTOCOL_VERSION,
        node=f"node{node_id}",
        volume="r0",
        node_id=node_id,
        volume_id=VOLUME_ID if lineage else 0,
        size_bytes=1 << 30,
        block_shift=12,
        lineage=lineage,
        is_primary=False,
        cache_lost=False,
        crashed=False,
        inconsistent=False,
        everything_suspect=False,
        outdated=False,
        known_zeroes=False,
        has_dirt=False,
        known_peer_id=other_id,
        tokens=(9,),
        base_from=0,
        base_to=0,
    )


ROOT = generation(1, ROOT_ID, answered=True)
COMMON: Lineage = (ROOT,)


def newer(generation_id: int, answered: bool, node_id: int) -> Lineage:
    """The common history and one generation that this node made alone."""
    own = generation(2, generation_id, members=(node_id,), primary=node_id, answered=answered)
    return (own, ROOT)


def forced(generation_id: int, node_id: int) -> Lineage:
    """The common history, and a generation that an operator made of this copy as it was."""
    (own, root) = newer(generation_id, True, node_id)
    return (replace(own, origin=Origin.DATA_LOST), root)


MADE_BY_LOW: Lineage = (generation(1, ROOT_ID, primary=LOW),)
MADE_BY_HIGH: Lineage = (generation(1, ROOT_ID, primary=HIGH),)
NOT_BOTH: Lineage = (generation(1, ROOT_ID, members=(LOW,)),)
#: (name, lineage of the low node, lineage of the high node)
HISTORIES: list[tuple[str, Lineage, Lineage]] = [
    ("both-fresh", (), ()),
    ("low-fresh", (), COMMON),
    ("high-fresh", COMMON, ()),
    ("equal", COMMON, COMMON),
    ("equal-low-was-primary", MADE_BY_LOW, MADE_BY_LOW),
    ("equal-high-was-primary", MADE_BY_HIGH, MADE_BY_HIGH),
    ("equal-not-members", NOT_BOTH, NOT_BOTH),
    ("low-behind", COMMON, newer(THEIRS_ID, True, HIGH)),
    ("high-behind", newer(MINE_ID, True, LOW), COMMON),
    ("low-behind-a-forced-one", COMMON, forced(THEIRS_ID, HIGH)),
    ("high-behind-a-forced-one", forced(MINE_ID, LOW), COMMON),
    *[
        (f"forked-{mine}-{theirs}", newer(MINE_ID, mine, LOW), newer(THEIRS_ID, theirs, HIGH))
        for mine in (False, True)
        for theirs in (False, True)
    ],
    ("unrelated", (generation(1, MINE_ID),), (generation(1, THEIRS_ID),)),
]
CONTACTS: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = [
    ("none", (), ()),
    ("newest", (9, 8), (9, 8)),
    ("one-behind", (10, 9), (9, 8)),
    ("none-common", (10,), (9,)),
    ("one-forgot", (9,), ()),
]
FLAGS = (False, True)
#: Ways in which a side's copy is not whole: (inconsistent, everything_suspect).
WHOLENESS = ((False, False), (True, False), (True, True))


def sides(lineage: Lineage, node_id: int, other_id: int) -> list[Hello]:
    """One side in every combination of its own facts (a fresh copy has few of them)."""
    plain = hello(node_id, other_id, lineage)
    if not lineage:
        return [replace(plain, known_zeroes=zeroes) for zeroes in FLAGS]
    based = replace(plain, base_from=ROOT_ID, base_to=lineage[0].id)
    return [
        replace(
            based if base else plain,
            is_primary=primary,
            cache_lost=lost,
            has_dirt=dirt,
            inconsistent=inconsistent,
            everything_suspect=suspect,
        )
        for base, primary, lost, dirt, (inconsistent, suspect) in product(
            FLAGS, FLAGS, FLAGS, FLAGS, WHOLENESS
        )
    ]


def every_meeting() -> Iterator[tuple[Hello, Hello]]:
    for _, low_lineage, high_lineage in HISTORIES:
        lows, highs = sides(low_lineage, LOW, HIGH), sides(high_lineage, HIGH, LOW)
        for low, high in product(lows, highs):
            yield low, high
    # Contacts and identities matter before all else: a few sides are enough for those.
    for _, low_lineage, high_lineage in HISTORIES:
        low, high = hello(LOW, HIGH, low_lineage), hello(HIGH, LOW, high_lineage)
        for _, low_tokens, high_tokens in CONTACTS:
            for knows in (HIGH, STRANGER, 0):
                met = replace(low, tokens=low_tokens, known_peer_id=knows)
                yield met, replace(high, tokens=high_tokens)
        for change in ODDITIES.values():
            yield low, replace(high, **change)


ODDITIES: dict[str, dict[str, Any]] = {
    "protocol-version": {"protocol": PROTOCOL_VERSION + 2},
    "cloned-node": {"node_id": LOW},
    "size": {"size_bytes": 1 << 31},
    "other-volume": {"volume_id": VOLUME_ID + 1},
}
MEETINGS = list(every_meeting())
EVERY_RULE = {
    "protocol-version",
    "cloned-node",
    "size",
    "other-volume",
    "both-fresh",
    "both-zero",
    "fresh-meets-inconsistent",
    "one-fresh",
    "no-common-contact",
    "both-inconsistent",
    "newer-is-inconsistent",
    "newer-answered-nothing",
    "inconsistent-equal",
    "ancestor",
    "ancestor-without-base",
    "unrelated",
    "not-a-member",
    "two-primaries",
    "equal-unsettled",
    "equal",
    "split-brain",
    "unanswered-fork",
    "forced-beside-a-primary",
}


def source_of(low: Hello, high: Hello, decision: Decision) -> Hello | None:
    """Which side gives data away, by the low side's decision; None if no data flows."""
    if decision.action in SOURCE_ACTIONS:
        return low
    return high if decision.action in TARGET_ACTIONS else None


# Over the whole space.


def test_the_two_sides_always_decide_mirror_images() -> None:
    for low, high in MEETINGS:
        mine, theirs = decide(low, high), decide(high, low)
        assert MIRROR[mine.action] is theirs.action, (low, high)
        assert mine.rule == theirs.rule, (low, high)


def test_mirror_is_its_own_inverse_and_names_every_action() -> None:
    assert set(MIRROR) == set(Action)
    assert all(MIRROR[MIRROR[action]] is action for action in Action)
    assert not SOURCE_ACTIONS & TARGET_ACTIONS


def test_every_rule_is_reached_and_no_other_exists() -> None:
    assert {decide(low, high).rule for low, high in MEETINGS} == EVERY_RULE


def test_every_decision_says_a_sentence_and_a_refusal_says_what_to_do() -> None:
    for low, high in MEETINGS:
        decision = decide(low, high)
        assert decision.sentence.endswith("."), decision
        if decision.action in (Action.REFUSE, Action.WAIT, Action.SPLIT_BRAIN):
            assert decision.next_step, decision


def test_no_rule_resyncs_from_an_inconsistent_source() -> None:
    for low, high in MEETINGS:
        source = source_of(low, high, decide(low, high))
        assert source is None or not source.inconsistent, (low, high)


def test_a_fresh_copy_is_never_a_source_against_one_that_holds_data() -> None:
    for low, high in MEETINGS:
        source = source_of(low, high, decide(low, high))
        if source is not None and low.fresh != high.fresh:
            assert not source.fresh, (low, high)


def test_an_ancestor_is_never_a_source_against_its_descendant() -> None:
    for low, high in MEETINGS:
        if low.fresh or high.fresh:
            continue
        relation = relate(low.lineage, high.lineage)
        source = source_of(low, high, decide(low, high))
        if relation is Relation.ANCESTOR:
            assert source is not low, (low, high)
        if relation is Relation.DESCENDANT:
            assert source is not high, (low, high)


def test_no_data_flows_between_forked_or_unrelated_copies() -> None:
    for low, high in MEETINGS:
        if low.fresh or high.fresh:
            continue
        if relate(low.lineage, high.lineage) in (Relation.FORKED, Relation.UNRELATED):
            assert source_of(low, high, decide(low, high)) is None, (low, high)


def test_only_an_unanswered_side_ever_yields() -> None:
    for low, high in MEETINGS:
        decision = decide(low, high)
        if decision.action in (Action.YIELD, Action.AWAIT_YIELD):
            loser = low if decision.action is Action.YIELD else high
            assert not loser.lineage[0].answered, (low, high)


def test_a_map_copy_needs_a_valid_base_or_an_equal_generation() -> None:
    for low, high in MEETINGS:
        decision = decide(low, high)
        if decision.action is Action.RESYNC_SOURCE:
            equal = low.lineage[0].id == high.lineage[0].id
            assert equal or base_is_valid(low, high), (low, high)


def test_a_copy_of_which_everything_is_suspect_is_never_copied_by_map() -> None:
    for low, high in MEETINGS:
        decision = decide(low, high)
        if low.everything_suspect or high.everything_suspect:
            assert decision.action not in (
                Action.RESYNC_SOURCE,
                Action.RESYNC_TARGET,
                Action.SETTLE_SOURCE,
                Action.SETTLE_TARGET,
            ), (low, high)


def test_a_settle_never_takes_from_the_cache_lost_side_unless_that_is_the_primary() -> None:
    for low, high in MEETINGS:
        decision = decide(low, high)
        if decision.action in (Action.SETTLE_SOURCE, Action.SETTLE_TARGET):
            source = low if decision.action is Action.SETTLE_SOURCE else high
            target = high if source is low else low
            assert not source.cache_lost or target.cache_lost or source.is_primary, (low, high)


def test_a_primary_is_never_the_target_of_a_settle() -> None:
    for low, high in MEETINGS:
        decision = decide(low, high)
        if decision.action is Action.SETTLE_TARGET:
            assert not low.is_primary, (low, high)


# Identity and contact.


@pytest.mark.parametrize("rule", ODDITIES)
def test_a_difference_in_identity_refuses_whatever_else_holds(rule: str) -> None:
    for _, low_lineage, high_lineage in HISTORIES:
        if rule == "other-volume" and not (low_lineage and high_lineage):
            continue
        low = hello(LOW, HIGH, low_lineage)
        high = replace(hello(HIGH, LOW, high_lineage), **ODDITIES[rule])
        assert decide(low, high).rule == rule


def test_another_block_size_refuses_as_another_size() -> None:
    low, high = hello(LOW, HIGH, COMMON), replace(hello(HIGH, LOW, COMMON), block_shift=13)
    assert decide(low, high).rule == "size"


def test_neighbouring_protocol_versions_speak_to_each_other() -> None:
    low, high = hello(LOW, HIGH, COMMON), hello(HIGH, LOW, COMMON)
    assert decide(low, replace(high, protocol=PROTOCOL_VERSION + 1)).rule == "equal"


@pytest.mark.parametrize(("name", "low_tokens", "high_tokens"), CONTACTS)
def test_tokens_match_if_any_kept_one_is_common(
    name: str, low_tokens: tuple[int, ...], high_tokens: tuple[int, ...]
) -> None:
    low = replace(hello(LOW, HIGH, COMMON), tokens=low_tokens)
    high = replace(hello(HIGH, LOW, COMMON), tokens=high_tokens)
    expected = "equal" if name in ("none", "newest", "one-behind") else "no-common-contact"
    assert decide(low, high).rule == expected


def test_a_replaced_node_under_the_old_name_is_no_restored_backup() -> None:
    low = replace(hello(LOW, STRANGER, COMMON), tokens=(9,))
    high = replace(hello(HIGH, 0, COMMON), tokens=())
    assert decide(low, high).rule != "no-common-contact"


def test_a_fresh_copy_needs_no_common_contact() -> None:
    low = replace(hello(LOW, HIGH, COMMON), tokens=(9,))
    high = replace(hello(HIGH, LOW), tokens=())
    assert decide(low, high).action is Action.FULL_SOURCE


# The table of design §5, row by row.


def test_two_new_zero_copies_are_in_sync_without_a_copy() -> None:
    low = replace(hello(LOW, 0), known_zeroes=True)
    high = replace(hello(HIGH, 0), known_zeroes=True)
    assert decide(low, high).action is Action.FIRST_CONTACT_SOURCE


@pytest.mark.parametrize("zeroes", [(False, False), (True, False), (False, True)])
def test_two_new_copies_of_unknown_content_wait_for_adopt(zeroes: tuple[bool, bool]) -> None:
    low = replace(hello(LOW, 0), known_zeroes=zeroes[0])
    high = replace(hello(HIGH, 0), known_zeroes=zeroes[1])
    decision = decide(low, high)
    assert decision.action is Action.WAIT
    assert "volume adopt r0" in decision.next_step


def test_one_fresh_copy_gets_everything() -> None:
    assert decide(hello(LOW, 0), hello(HIGH, 0, COMMON)).action is Action.FULL_TARGET


def test_a_fresh_copy_gets_nothing_from_an_inconsistent_one() -> None:
    holder = replace(hello(HIGH, LOW, COMMON), inconsistent=True)
    decision = decide(hello(LOW, HIGH), holder)
    assert (decision.action, decision.rule) == (Action.REFUSE, "fresh-meets-inconsistent")


def test_equal_generation_without_dirt_is_established() -> None:
    decision = decide(hello(LOW, HIGH, COMMON), hello(HIGH, LOW, COMMON))
    assert (decision.action, decision.rule) == (Action.SETTLE_SOURCE, "equal")


@pytest.mark.parametrize("change", [{"has_dirt": True}, {"cache_lost": True}])
def test_equal_generation_with_dirt_or_a_mark_on_either_side_is_settled(
    change: dict[str, Any],
) -> None:
    low, high = hello(LOW, HIGH, COMMON), hello(HIGH, LOW, COMMON)
    assert decide(replace(low, **change), high).rule == "equal-unsettled"
    assert decide(low, replace(high, **change)).rule == "equal-unsettled"


def test_wrong_crash_mark() -> None:
    """The last primary lost power, the secondary only its process: the secondary is source."""
    lineage = (generation(1, ROOT_ID, primary=LOW, answered=True),)
    low = replace(hello(LOW, HIGH, lineage), cache_lost=True)
    high = replace(hello(HIGH, LOW, lineage), has_dirt=True)
    assert decide(low, high).action is Action.SETTLE_TARGET


def test_a_settle_goes_from_the_primary_even_if_its_id_is_higher() -> None:
    high = replace(hello(HIGH, LOW, COMMON), is_primary=True)
    assert decide(hello(LOW, HIGH, COMMON), high).action is Action.SETTLE_TARGET


def test_a_settle_goes_from_the_generations_primary_if_both_lost_their_cache() -> None:
    lineage = (generation(1, ROOT_ID, primary=HIGH),)
    low = replace(hello(LOW, HIGH, lineage), cache_lost=True)
    high = replace(hello(HIGH, LOW, lineage), cache_lost=True)
    assert decide(low, high).action is Action.SETTLE_TARGET


def test_equal_generation_of_a_node_outside_the_set_is_refused() -> None:
    lineage = (generation(1, ROOT_ID, members=(LOW,)),)
    assert decide(hello(LOW, HIGH, lineage), hello(HIGH, LOW, lineage)).rule == "not-a-member"


def test_an_ancestor_is_target_of_a_map_copy() -> None:
    low = hello(LOW, HIGH, COMMON)
    high = replace(
        hello(HIGH, LOW, newer(THEIRS_ID, True, HIGH)), base_from=ROOT_ID, base_to=ROOT_ID
    )
    assert decide(low, high).action is Action.RESYNC_TARGET


def test_an_ancestor_without_a_valid_base_is_compared_wholly() -> None:
    decision = decide(hello(LOW, HIGH, COMMON), hello(HIGH, LOW, newer(THEIRS_ID, True, HIGH)))
    assert (decision.action, decision.rule) == (Action.FULL_TARGET, "ancestor-without-base")


def test_a_base_for_another_node_is_not_valid() -> None:
    low = hello(LOW, HIGH, COMMON)
    high = replace(
        hello(HIGH, STRANGER, newer(THEIRS_ID, True, HIGH)),
        tokens=(),
        base_from=ROOT_ID,
        base_to=ROOT_ID,
    )
    assert decide(replace(low, tokens=()), high).rule == "ancestor-without-base"


def test_interrupted_announcement_costs_no_full_copy() -> None:
    """The joining generation is stored by one side only: a map copy, no full one, no fork."""
    joined = generation(3, MINE_ID, answered=True)
    alone = generation(2, THEIRS_ID, members=(LOW,), answered=True)
    low = replace(hello(LOW, HIGH, (joined, alone, ROOT)), base_from=ROOT_ID, base_to=joined.id)
    assert decide(low, hello(HIGH, LOW, COMMON)).action is Action.RESYNC_SOURCE
    assert decide(low, hello(HIGH, LOW, (joined, alone, ROOT))).rule == "equal"


def test_primary_as_ancestor() -> None:
    """A primary that finds itself behind is the target, like anybody."""
    low = replace(hello(LOW, HIGH, COMMON), is_primary=True)
    high = replace(
        hello(HIGH, LOW, newer(THEIRS_ID, True, HIGH)), base_from=ROOT_ID, base_to=ROOT_ID
    )
    assert decide(low, high).action is Action.RESYNC_TARGET


@pytest.mark.parametrize(
    ("low_answered", "high_answered", "action"),
    [
        (True, False, Action.AWAIT_YIELD),
        (False, True, Action.YIELD),
        (False, False, Action.AWAIT_YIELD),  # the higher id gives up its own
        (True, True, Action.SPLIT_BRAIN),
    ],
)
def test_of_a_fork_the_side_that_answered_nothing_yields(
    low_answered: bool, high_answered: bool, action: Action
) -> None:
    low = hello(LOW, HIGH, newer(MINE_ID, low_answered, LOW))
    high = hello(HIGH, LOW, newer(THEIRS_ID, high_answered, HIGH))
    assert decide(low, high).action is action


def test_of_two_unanswered_branches_the_primarys_is_kept() -> None:
    low = hello(LOW, HIGH, newer(MINE_ID, False, LOW))
    high = replace(hello(HIGH, LOW, newer(THEIRS_ID, False, HIGH)), is_primary=True)
    assert decide(low, high).action is Action.YIELD


def test_unrelated_copies_are_refused() -> None:
    low = hello(LOW, HIGH, (generation(1, MINE_ID),))
    high = hello(HIGH, LOW, (generation(1, THEIRS_ID),))
    assert decide(low, high).rule == "unrelated"


def test_failed_sync_then_crash() -> None:
    """Inconsistent is looked at before the table: equal generation and no dirt is not in sync."""
    low = replace(hello(LOW, HIGH, COMMON), inconsistent=True, everything_suspect=True)
    decision = decide(low, hello(HIGH, LOW, COMMON))
    assert (decision.action, decision.rule) == (Action.FULL_TARGET, "inconsistent-equal")


def test_an_interrupted_copy_in_equal_generation_goes_on_by_the_maps() -> None:
    low = replace(hello(LOW, HIGH, COMMON), inconsistent=True)
    assert decide(low, hello(HIGH, LOW, COMMON)).action is Action.RESYNC_TARGET


def test_two_primaries_of_one_generation_are_refused() -> None:
    low = replace(hello(LOW, HIGH, COMMON), is_primary=True)
    high = replace(hello(HIGH, LOW, COMMON), is_primary=True)
    assert decide(low, high).rule == "two-primaries"

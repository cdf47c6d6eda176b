"""Lineages: relations are mirror images, histories never lose an entry that is needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.core.lineage import (
    LINEAGE_KEPT,
    Generation,
    Lineage,
    Origin,
    Relation,
    answered_since,
    common_ancestor,
    extend,
    mark_answered,
    relate,
    sole_and_answered,
    within,
)

MIRROR = {
    Relation.EQUAL: Relation.EQUAL,
    Relation.ANCESTOR: Relation.DESCENDANT,
    Relation.DESCENDANT: Relation.ANCESTOR,
    Relation.FORKED: Relation.FORKED,
    Relation.UNRELATED: Relation.UNRELATED,
}


def generation(
    counter: int, generation_id: int, members: tuple[int, ...] = (1, 2), answered: bool = False
) -> Generation:
    return Generation(counter, generation_id, 1, members, answered, Origin.PROMOTED, 0)


def history(*ids: int) -> Lineage:
    """A lineage with these ids, the newest first."""
    return tuple(generation(len(ids) - place, number) for place, number in enumerate(ids))


@st.composite
def two_histories(draw: st.DrawFn) -> tuple[Lineage, Lineage, int, int, int]:
    """A common stem and what each side added to it; the lengths of stem and branches too."""
    stem = draw(st.integers(0, 4))
    mine = draw(st.integers(0 if stem else 1, 4))
    theirs = draw(st.integers(0 if stem else 1, 4))
    base = tuple(range(stem, 0, -1))
    left = tuple(range(100 + mine, 100, -1))
    right = tuple(range(200 + theirs, 200, -1))
    return history(*left, *base), history(*right, *base), stem, mine, theirs


@given(two_histories())
def test_the_relation_follows_from_the_branches_and_mirrors(
    case: tuple[Lineage, Lineage, int, int, int],
) -> None:
    mine, theirs, stem, my_branch, their_branch = case
    relation = relate(mine, theirs)
    if not stem:
        expected = Relation.UNRELATED
    elif my_branch and their_branch:
        expected = Relation.FORKED
    elif my_branch:
        expected = Relation.DESCENDANT
    else:
        expected = Relation.ANCESTOR if their_branch else Relation.EQUAL
    assert relation is expected
    assert relate(theirs, mine) is MIRROR[relation]


@given(two_histories())
def test_the_common_ancestor_is_the_top_of_the_stem_on_both_sides(
    case: tuple[Lineage, Lineage, int, int, int],
) -> None:
    mine, theirs, stem, _, _ = case
    found, mirrored = common_ancestor(mine, theirs), common_ancestor(theirs, mine)
    assert (found and found.id) == (mirrored and mirrored.id)
    if stem:
        assert found is not None
        assert found.id == stem
    else:
        assert found is None


@given(
    ids=st.lists(st.integers(1, 30), unique=True, min_size=1),
    wanted=st.integers(1, 30),
    from_id=st.integers(1, 30),
    to_id=st.integers(1, 30),
)
def test_within_is_the_interval_by_age(
    ids: list[int], wanted: int, from_id: int, to_id: int
) -> None:
    lineage = history(*ids)
    if from_id in ids and to_id in ids:
        expected = wanted in ids[ids.index(to_id) : ids.index(from_id) + 1]
    else:
        expected = False
    assert within(lineage, wanted, from_id, to_id) == expected


def test_an_interval_without_a_base_holds_nothing() -> None:
    lineage = history(3, 2, 1)
    assert not within(lineage, 2, 0, 0)
    assert within(lineage, 2, 2, 2)
    assert not within(lineage, 2, 3, 1)


@given(steps=st.integers(1, 3 * LINEAGE_KEPT), needed=st.sets(st.integers(1, 200), max_size=3))
def test_extend_keeps_what_is_needed_and_enough_of_the_rest(steps: int, needed: set[int]) -> None:
    lineage: Lineage = ()
    for counter in range(1, steps + 1):
        lineage = extend(lineage, generation(counter, counter), needed)
        ids = [entry.id for entry in lineage]
        recent = min(counter, LINEAGE_KEPT)
        assert ids == sorted(ids, reverse=True)
        assert ids[:recent] == list(range(counter, counter - recent, -1))
        assert needed & set(range(1, counter + 1)) <= set(ids)
        if not needed:
            assert len(ids) <= LINEAGE_KEPT


def test_extend_drops_only_what_no_peer_was_offered_and_keeps_its_mark() -> None:
    lineage: Lineage = ()
    for counter in range(1, 401):
        lineage = extend(lineage, generation(counter, counter), {2, 4})
        if counter == 100:
            lineage = mark_answered(lineage)
    ids = [entry.id for entry in lineage]
    assert ids == [*range(400, 400 - LINEAGE_KEPT, -1), 4, 3, 2]
    assert answered_since(lineage, 4), "a dropped generation's answer is not forgotten"


def test_a_lineage_never_goes_back() -> None:
    lineage = history(2, 1)
    for counter in (1, 2, 4):
        with pytest.raises(AssertionError):
            extend(lineage, generation(counter, 9), ())


@pytest.mark.parametrize(
    ("answered_ids", "ancestor_id", "expected"),
    [
        ((), 1, False),
        ((3,), 1, True),
        ((2,), 1, True),
        ((1,), 1, False),
        ((3,), 3, False),
        ((2,), 3, False),
        ((), 9, True),  # not an ancestor: nothing is known, so it counts as answered
    ],
)
def test_answered_since_looks_only_at_what_is_newer(
    answered_ids: tuple[int, ...], ancestor_id: int, expected: bool
) -> None:
    lineage = tuple(replace(entry, answered=entry.id in answered_ids) for entry in history(3, 2, 1))
    assert answered_since(lineage, ancestor_id) == expected


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ((((1,), True),), True),
        ((((1,), False),), False),
        ((((1,), False), ((1,), True)), True),
        ((((1,), False), ((1, 2), True)), False),
        ((((1, 2), True), ((1,), True)), False),
        ((((2,), True),), False),
        ((), False),
    ],
)
def test_a_lone_survivor_answered_within_its_unbroken_run(
    entries: tuple[tuple[tuple[int, ...], bool], ...], expected: bool
) -> None:
    lineage = tuple(
        generation(len(entries) - place, len(entries) - place, members, answered)
        for place, (members, answered) in enumerate(entries)
    )
    assert sole_and_answered(lineage, 1) == expected


def test_marking_answered_touches_only_the_newest() -> None:
    lineage = mark_answered(history(2, 1))
    assert [entry.answered for entry in lineage] == [True, False]
    assert mark_answered(lineage) == lineage


@pytest.mark.parametrize("members", [(), (2, 1), (1, 1)])
def test_members_are_an_ascending_set(members: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        generation(1, 1, members)

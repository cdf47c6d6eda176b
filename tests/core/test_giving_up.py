"""The record of a copy that gives up its own writes: what it covers, and that it is one commit."""

from __future__ import annotations

import pytest

from repl.core.giving_up import give_up_unanswered, take_back
from repl.core.outbox import MapName
from repl.core.states import Phase
from tests.core.every_phase import at, split_pair
from tests.core.pair_of_cores import BLOCK, EXTENT, Node, data


def beta_in_split_brain() -> Node:
    return at("split-brain").other


def test_the_record_names_the_fork_and_everything_the_copy_changed() -> None:
    node = beta_in_split_brain()
    volume = node.begin_turn()
    fork = volume.facts.lineage[1]
    dirty = [first for first, _ in volume.maps.dirty["alpha"].runs()]
    assert dirty
    take_back(node.session)
    assert volume.facts.generation == fork
    assert volume.facts.inconsistent and not volume.facts.everything_suspect
    assert volume.facts.source_generation == node.other.volume.facts.generation.id
    assert all(volume.maps.remaining.is_set(block) for block in dirty)


def test_the_record_covers_every_extent_with_an_intent() -> None:
    pair = split_pair()
    node = pair.beta
    node.hold_disk = True
    node.write(EXTENT + BLOCK, data(5))
    pair.run()
    pair.restart(node)
    pair.run()
    pair.connect()
    pair.run()
    assert node.session.phase is Phase.SPLIT_BRAIN
    take_back(node.session)
    blocks = EXTENT // BLOCK
    assert all(node.volume.maps.remaining.is_set(n) for n in range(blocks, 2 * blocks))


def test_without_a_base_everything_counts_as_changed() -> None:
    node = beta_in_split_brain()
    volume = node.begin_turn()
    volume.set_base("alpha", 0)
    take_back(node.session)
    assert volume.maps.remaining.set_bytes == volume.size_bytes


def test_facts_and_map_go_into_one_commit() -> None:
    node = beta_in_split_brain()
    volume = node.begin_turn()
    take_back(node.session)
    volume.commits.request(with_maps=True)
    commit = volume.take().commit
    assert commit is not None and commit.facts is not None
    assert commit.facts.inconsistent
    assert MapName.REMAINING in {page.map for page in commit.pages}


def test_what_was_answered_is_never_given_up_without_a_person() -> None:
    node = beta_in_split_brain()
    before = node.volume.facts
    give_up_unanswered(node.session)
    assert node.volume.facts is before
    assert node.session.phase is Phase.DOWN


@pytest.mark.parametrize("again", [1, 2])
def test_the_record_survives_a_restart_at_any_time(again: int) -> None:
    node = beta_in_split_brain()
    fork = node.volume.facts.lineage[1]
    take_back(node.session)
    node.volume.commits.request(with_maps=True)
    node.pair.run()
    for _ in range(again):
        node.pair.restart(node)
        node.pair.run()
        assert node.volume.facts.generation == fork
        assert node.volume.maps.remaining.set_bytes > 0

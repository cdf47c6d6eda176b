"""Group commit: a callback runs only after a commit (or sync) that began after it was asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repl.core.commits import Commits, Syncs
from repl.core.facts import Facts, Maps, PeerRecord
from repl.core.outbox import Commit, MapName

SIZE = 64 << 20
FACTS = Facts(11, SIZE, peers=(PeerRecord("beta"),))


def commits() -> tuple[Commits, Maps]:
    maps = Maps.empty(SIZE, ("beta",))
    return Commits(FACTS, maps), maps


def taken(commit: Commit | None) -> Commit:
    assert commit is not None
    return commit


def page_names(commit: Commit) -> set[tuple[MapName, str]]:
    return {(page.map, page.peer) for page in commit.pages}


def test_nothing_asked_is_nothing_committed() -> None:
    group, maps = commits()
    maps.intents.mark(0, 1)
    assert group.take(FACTS) is None
    assert group.idle


def test_a_callback_runs_when_its_commit_is_durable_and_not_before() -> None:
    group, _ = commits()
    called: list[str] = []
    group.request(lambda: called.append("a"))
    commit = taken(group.take(FACTS))
    assert not called
    group.done(commit.number)
    assert called == ["a"]


def test_what_is_asked_during_a_commit_waits_for_the_next_one() -> None:
    group, _ = commits()
    called: list[str] = []
    group.request(lambda: called.append("a"))
    first = taken(group.take(FACTS))
    group.request(lambda: called.append("b"))
    group.request(lambda: called.append("c"))
    assert group.take(FACTS) is None, "one commit at a time"
    group.done(first.number)
    assert called == ["a"]
    second = taken(group.take(FACTS))
    group.done(second.number)
    assert called == ["a", "b", "c"]
    assert group.take(FACTS) is None


def test_what_a_callback_asks_for_is_in_the_next_commit() -> None:
    group, _ = commits()
    called: list[str] = []
    group.request(lambda: group.request(lambda: called.append("late")))
    group.done(taken(group.take(FACTS)).number)
    assert not called
    group.done(taken(group.take(FACTS)).number)
    assert called == ["late"]


def test_stored_facts_are_those_of_the_last_durable_commit() -> None:
    group, _ = commits()
    newer = replace(FACTS, outdated=True)
    group.request()
    commit = taken(group.take(newer))
    assert commit.facts is newer
    assert group.stored is FACTS
    group.done(commit.number)
    assert group.stored is newer


def test_facts_that_are_stored_already_are_not_written_again() -> None:
    group, maps = commits()
    maps.intents.mark(0, 1)
    group.request()
    commit = taken(group.take(FACTS))
    assert commit.facts is None
    assert page_names(commit) == {(MapName.INTENTS, "")}


def test_facts_that_changed_during_their_commit_are_not_taken_for_stored() -> None:
    group, _ = commits()
    first, second = replace(FACTS, outdated=True), replace(FACTS, cache_lost=True)
    group.request()
    commit = taken(group.take(first))
    called: list[str] = []
    group.when_stored(second, lambda: called.append("stored"))
    group.done(commit.number)
    assert not called
    group.done(taken(group.take(second)).number)
    assert called == ["stored"]


def test_when_stored_is_at_once_only_if_nothing_is_asked_for() -> None:
    group, _ = commits()
    called: list[str] = []
    group.when_stored(FACTS, lambda: called.append("a"))
    assert called == ["a"]
    group.request()
    group.when_stored(FACTS, lambda: called.append("b"))
    assert called == ["a"]
    group.done(taken(group.take(FACTS)).number)
    assert called == ["a", "b"]


def test_dirty_maps_are_written_only_when_somebody_wants_them() -> None:
    group, maps = commits()
    maps.dirty["beta"].mark(0, 1)
    maps.remaining.mark(0, 1)
    group.request()
    commit = taken(group.take(FACTS))
    assert not commit.pages
    group.done(commit.number)
    group.request(with_maps=True)
    commit = taken(group.take(FACTS))
    assert page_names(commit) == {(MapName.DIRTY, "beta"), (MapName.REMAINING, "")}


def test_a_page_holds_the_bits_of_the_moment_of_its_commit() -> None:
    group, maps = commits()
    maps.dirty["beta"].mark(0, 1)
    group.request(with_maps=True)
    commit = taken(group.take(FACTS))
    maps.dirty["beta"].mark(4096, 1)
    assert commit.pages[0].bits[0] == 1
    group.done(commit.number)
    group.request(with_maps=True)
    assert taken(group.take(FACTS)).pages[0].bits[0] == 3


def test_an_emptied_map_is_one_mark_and_no_page() -> None:
    group, maps = commits()
    maps.dirty["beta"].mark(0, SIZE)
    group.request(with_maps=True)
    group.done(taken(group.take(FACTS)).number)
    group.empty(MapName.DIRTY, "beta")
    commit = taken(group.take(FACTS))
    assert commit.emptied == [(MapName.DIRTY, "beta")]
    assert not commit.pages
    assert commit.facts is FACTS, "the new epoch is in the superblock"


def test_a_bit_set_after_its_map_was_emptied_is_in_the_same_commit() -> None:
    group, maps = commits()
    maps.remaining.mark(0, SIZE)
    group.empty(MapName.REMAINING)
    maps.remaining.mark(4096, 4096)
    commit = taken(group.take(FACTS))
    assert [(page.map, page.bits[0]) for page in commit.pages] == [(MapName.REMAINING, 2)]


def test_a_map_emptied_twice_is_named_once() -> None:
    group, _ = commits()
    group.empty(MapName.REMAINING)
    group.empty(MapName.REMAINING)
    assert taken(group.take(FACTS)).emptied == [(MapName.REMAINING, "")]


def test_commits_that_end_out_of_order_are_our_bug() -> None:
    group, _ = commits()
    group.request()
    number = taken(group.take(FACTS)).number
    with pytest.raises(AssertionError):
        group.done(number + 1)


def test_a_sync_covers_only_what_was_asked_before_it_began() -> None:
    syncs = Syncs()
    called: list[str] = []
    assert syncs.take() == 0
    syncs.request(lambda: called.append("a"))
    first = syncs.take()
    syncs.request(lambda: called.append("b"))
    assert syncs.take() == 0, "one sync at a time"
    syncs.done(first)
    assert called == ["a"]
    second = syncs.take()
    assert second != first
    syncs.done(second)
    assert called == ["a", "b"]


def test_a_sync_that_was_not_begun_cannot_end() -> None:
    with pytest.raises(AssertionError):
        Syncs().done(1)


def test_bytes_count_as_unsynced_from_the_beginning_of_a_sync() -> None:
    syncs = Syncs()
    syncs.unsynced_bytes = 100
    syncs.request(lambda: None)
    syncs.take()
    assert syncs.unsynced_bytes == 0

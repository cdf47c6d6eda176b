"""Write intents: a bit before the data, cleared only by what came before the number told."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from repl.core.blockmap import DIRTY_PAGE_BYTES, INTENT_PAGE_BYTES, BlockMap
from repl.core.intents import AHEAD_EXTENTS, Intents

EXTENT = 1 << 20
EXTENTS = 8
SIZE = EXTENTS * EXTENT - 4096


def blank() -> Intents:
    return Intents(BlockMap(SIZE, 20, INTENT_PAGE_BYTES))


def with_hot(*extents: int) -> Intents:
    """Intents whose extents are durable, written by the numbers 1, 2, …"""
    intents = blank()
    for number, extent in enumerate(extents, 1):
        intents.touch(extent * EXTENT, 1, number)
    intents.stored(tuple(intents.coming))
    return intents


def marked(intents: Intents) -> set[int]:
    return {extent for extent in range(EXTENTS) if intents.bitmap.is_set(extent)}


def test_a_cold_extent_is_not_ready_and_is_marked() -> None:
    intents = blank()
    assert not intents.touch(0, 4096, 1)
    assert intents.coming == {0}
    assert marked(intents) == {0}


def test_a_coming_extent_is_not_ready_until_it_is_stored() -> None:
    intents = blank()
    intents.touch(0, 4096, 1)
    assert not intents.touch(4096, 4096, 2)
    intents.stored((0,))
    assert intents.touch(8192, 4096, 3)


def test_a_write_over_two_extents_needs_both() -> None:
    intents = with_hot(0)
    assert not intents.touch(EXTENT - 1, 2, 5)
    assert intents.coming == {1}
    intents.stored((1,))
    assert intents.touch(EXTENT - 1, 2, 6)


def test_only_extents_last_written_at_or_below_the_number_are_cleared() -> None:
    intents = with_hot(0, 2, 4)
    assert intents.clear_up_to(2) == 2
    assert marked(intents) == {4}


def test_a_stream_marks_ahead_and_needs_no_commit_for_it() -> None:
    intents = with_hot(0)
    assert not intents.touch(EXTENT, 4096, 2)
    assert intents.coming == set(range(1, 2 + AHEAD_EXTENTS)) & set(range(EXTENTS))
    intents.stored(tuple(intents.coming))
    assert intents.touch(2 * EXTENT, 4096, 3)
    intents.clear_up_to(2)
    assert marked(intents) == {2}, "what was marked in vain is cleared like any other"


def test_a_write_elsewhere_marks_nothing_ahead() -> None:
    intents = with_hot(0)
    assert not intents.touch(3 * EXTENT, 4096, 2)
    assert intents.coming == {3}


def test_a_later_write_keeps_the_extent_marked() -> None:
    intents = with_hot(0)
    intents.touch(0, 1, 9)
    assert intents.clear_up_to(8) == 0
    assert marked(intents) == {0}


def test_an_extent_whose_commit_is_under_way_is_not_cleared() -> None:
    intents = blank()
    intents.touch(0, 1, 1)
    assert intents.clear_up_to(5) == 0
    assert marked(intents) == {0}


def test_what_a_crash_left_is_suspect_and_no_number_clears_it() -> None:
    bitmap = BlockMap(SIZE, 20, INTENT_PAGE_BYTES)
    bitmap.mark_blocks(2, 4)
    intents = Intents(bitmap)
    assert intents.suspect == {2, 3}
    assert intents.touch(2 * EXTENT, 1, 1), "its bit is durable already"
    assert intents.clear_up_to(100) == 0
    assert marked(intents) == {2, 3}


def test_the_end_of_a_connection_makes_what_was_hot_suspect() -> None:
    intents = with_hot(0, 5)
    intents.connection_ended()
    assert intents.suspect == {0, 5}
    assert not intents.hot
    assert intents.clear_up_to(100) == 0


def test_the_end_of_a_settle_clears_suspects_but_not_what_is_hot_again() -> None:
    intents = with_hot(0, 5)
    intents.connection_ended()
    intents.touch(5 * EXTENT, 1, 1)
    intents.clear_suspects()
    assert marked(intents) == {5}
    assert not intents.suspect


def test_suspects_are_marked_as_whole_extents_of_blocks() -> None:
    intents = with_hot(0, EXTENTS - 1)
    intents.connection_ended()
    intents.touch(EXTENT, 1, 3)
    blocks = BlockMap(SIZE, 12, DIRTY_PAGE_BYTES)
    intents.mark_suspects_in(blocks)
    assert blocks.set_bytes == 2 * EXTENT - 4096, "the last extent is cut short"
    assert not blocks.any_in(EXTENT, EXTENT)
    intents.mark_all_in(blocks)
    assert blocks.any_in(EXTENT, EXTENT)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("touch"), st.integers(0, EXTENTS - 1), st.integers(0, 2)),
        st.tuples(st.just("stored"), st.just(0), st.just(0)),
        st.tuples(st.just("clear"), st.integers(0, 40), st.just(0)),
        st.tuples(st.just("ended"), st.just(0), st.just(0)),
        st.tuples(st.just("settled"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(STEPS)
def test_every_extent_with_a_write_above_the_number_told_stays_marked(
    steps: list[tuple[str, int, int]],
) -> None:
    intents, number = blank(), 0
    last: dict[int, int] = {}
    for step, what, reach in steps:
        if step == "touch":
            number += 1
            offset = what * EXTENT
            length = min(reach * EXTENT + 1, SIZE - offset)
            intents.touch(offset, length, number)
            for extent in range(what, (offset + length - 1) // EXTENT + 1):
                last[extent] = number
        elif step == "stored":
            intents.stored(tuple(intents.coming))
        elif step == "clear":
            intents.clear_up_to(what)
            last = {
                extent: n for extent, n in last.items() if n > what or extent in marked(intents)
            }
        elif step == "ended":
            intents.connection_ended()
        else:
            intents.clear_suspects()
            last = {extent: n for extent, n in last.items() if extent in intents.hot}
        assert set(last) <= marked(intents)
        assert set(intents.hot) <= marked(intents)
        assert intents.suspect <= marked(intents)

"""Spans against a set of bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.core.spans import Spans

RANGES = st.tuples(st.integers(0, 60), st.integers(1, 12)).map(lambda r: (r[0], r[0] + r[1]))


@given(st.lists(st.tuples(RANGES, st.booleans()), max_size=60))
def test_spans_behave_like_a_list_of_ranges(steps: list[tuple[tuple[int, int], bool]]) -> None:
    spans, model = Spans(), list[tuple[int, int]]()
    for (start, end), remove in steps:
        clash = any(start < stop and begin < end for begin, stop in model)
        assert spans.claim(start, end) != clash
        if not clash:
            model.append((start, end))
        elif remove:
            begun = model.pop(len(model) // 2)
            spans.remove(begun[0])
        assert len(spans) == len(model)


def test_ranges_that_touch_do_not_overlap() -> None:
    spans = Spans()
    assert spans.claim(10, 20)
    assert spans.claim(20, 30)
    assert spans.claim(0, 10)
    assert len(spans) == 3


@pytest.mark.parametrize(("start", "end"), [(5, 11), (10, 20), (12, 13), (19, 25), (0, 40)])
def test_an_overlap_is_not_added(start: int, end: int) -> None:
    spans = Spans()
    assert spans.claim(10, 20)
    assert not spans.claim(start, end)
    assert len(spans) == 1


def test_removing_what_was_never_added_is_loud() -> None:
    spans = Spans()
    spans.claim(10, 20)
    with pytest.raises(AssertionError):
        spans.remove(5)

"""Progress is never negative and never complete before the copy is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.cli import progress
from repl.cli.snapshot import Peer, Resync, read_volume
from tests.cli import recorded

ANY_NUMBER = st.one_of(
    st.integers(), st.floats(), st.none(), st.booleans(), st.text(max_size=3), st.just(10**400)
)


def resyncing_peer(**fields: Any) -> tuple[Peer, Resync]:
    """Return the peer of a volume whose `resync` has `fields`, as the command line reads it."""
    peer = read_volume(recorded.resyncing(**fields)).peers[0]
    assert peer.resync is not None
    return peer, peer.resync


@given(
    done_bytes=ANY_NUMBER,
    remaining_bytes=ANY_NUMBER,
    rate_bytes_per_s=ANY_NUMBER,
    eta_s=ANY_NUMBER,
    unicode=st.booleans(),
)
def test_progress_is_at_least_zero_and_below_a_hundred(unicode: bool, **fields: Any) -> None:
    peer, resync = resyncing_peer(**fields)
    share = progress.percent(resync)
    assert 0 <= share < 100
    text = progress.line(peer, resync, unicode)
    assert "100.0 %" not in text
    assert not any(part.startswith("-") and part[1:2].isdigit() for part in text.split())
    assert "nan" not in text and "inf" not in text


@given(done_bytes=st.integers(0, 2**63), remaining_bytes=st.integers(1, 2**63))
def test_unfinished_bar_always_has_room_left(done_bytes: int, remaining_bytes: int) -> None:
    _, resync = resyncing_peer(done_bytes=done_bytes, remaining_bytes=remaining_bytes)
    for unicode in (True, False):
        drawn = progress.bar(progress.percent(resync), unicode)
        assert drawn != progress.bar(100.0, unicode)
        assert len(drawn) == progress.BAR_CELLS + (0 if unicode else 2)
        assert unicode or drawn.isascii()


@given(st.lists(st.integers(0, 2**50), min_size=2, max_size=20))
def test_more_done_never_shows_less(done: list[int]) -> None:
    shares = [
        progress.percent(resyncing_peer(done_bytes=d, remaining_bytes=2**50 - d)[1])
        for d in sorted(done)
    ]
    assert shares == sorted(shares)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "62.1 %   6.1 GiB left   212 MB/s   about 33 s left"),
        ({"eta_s": None}, "62.1 %   6.1 GiB left   212 MB/s   time left not known yet"),
        ({"rate_bytes_per_s": 0}, "62.1 %   6.1 GiB left   nothing moves at the moment"),
        ({"stalled": "waiting for beta"}, "62.1 %   6.1 GiB left   stalled: waiting for beta"),
        ({"remaining_bytes": 0, "done_bytes": 5}, "99.9 %   0 B left   212 MB/s   about 33 s left"),
        ({"remaining_bytes": 1, "done_bytes": 10**15}, "99.9 %   1 B left"),
        ({"remaining_bytes": 0, "done_bytes": 0}, " 0.0 %   0 B left"),
    ],
)
def test_words_of_progress(fields: dict[str, Any], words: str) -> None:
    assert progress.describe(*resyncing_peer(**fields)).startswith(words)


def test_paused_resync_says_so() -> None:
    fields = recorded.resyncing()
    fields["peers"][0]["replication_state"] = "paused"
    peer = read_volume(fields).peers[0]
    assert peer.resync is not None
    assert progress.describe(peer, peer.resync).endswith("left   paused")

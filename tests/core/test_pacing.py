"""Copies are held back by either side's order, within its limit, and no write ever is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl.core import pacing
from repl.core.pacing import BURST_S, RATE_BYTES_PER_S_MAX, Pacing, Wish, wish_from, wish_to_json
from repl.core.snapshot import volume_snapshot
from repl.core.states import Phase
from repl.core.wire import Fields, PeerError, Type
from tests.core.every_phase import at, behind_pair
from tests.core.pair_of_cores import EXTENT, SIZE, Node, Pair, data, established_pair

CHUNK = 256 << 10


@given(
    rate=st.integers(1, 1 << 40),
    steps=st.lists(st.floats(0, 100), min_size=1, max_size=200),
    chunk=st.integers(1, CHUNK),
)
def test_no_sequence_of_reads_exceeds_the_limit(rate: int, steps: list[float], chunk: int) -> None:
    held = Pacing(Wish(rate_bytes_per_s=rate), 0.0)
    now_s, spent = 0.0, 0
    for step_s in steps:
        now_s += step_s
        reads = 0
        while held.may_read(Wish(), now_s) and reads < 50:
            held.spent(chunk)
            spent += chunk
            reads += 1
        # One chunk may go into debt; what was not used is lost but for the burst.
        assert spent <= rate * (now_s + BURST_S) * (1 + 1e-9) + chunk


def test_a_limited_copy_gets_its_rate() -> None:
    held, read = Pacing(Wish(rate_bytes_per_s=1_000_000), 0.0), 0
    for tick in range(1, 301):
        while held.may_read(Wish(), tick / 5):
            held.spent(CHUNK)
            read += CHUNK
    assert abs(read - 60_000_000) < 2 * CHUNK


def test_the_stricter_of_both_limits_counts() -> None:
    held = Pacing(Wish(rate_bytes_per_s=500), 0.0)
    assert held.limit(Wish()) == 500
    assert held.limit(Wish(rate_bytes_per_s=400)) == 400
    assert held.limit(Wish(rate_bytes_per_s=600)) == 500
    assert Pacing(Wish(), 0.0).limit(Wish(rate_bytes_per_s=7)) == 7
    assert Pacing(Wish(), 0.0).limit(Wish()) == 0


def test_what_an_unlimited_copy_used_is_no_debt_of_a_later_limit() -> None:
    held = Pacing(Wish(), 0.0)
    for _ in range(1000):
        assert held.may_read(Wish(), 1.0)
        held.spent(CHUNK)
    held.own = Wish(rate_bytes_per_s=CHUNK)
    assert held.may_read(Wish(), 3.0)


def test_a_hole_costs_nothing_of_the_limit() -> None:
    held = Pacing(Wish(rate_bytes_per_s=1000), 0.0)
    assert held.may_read(Wish(), 1.0)
    held.spent(CHUNK)
    held.spent(-CHUNK)
    assert held.may_read(Wish(), 1.0)


@given(
    st.builds(
        Wish, st.booleans(), st.integers(0, RATE_BYTES_PER_S_MAX), st.just("uid 0"),
        st.integers(0, 1 << 40),
    )
)  # fmt: skip
def test_a_wish_reaches_the_peer_as_it_is(wish: Wish) -> None:
    assert wish_from(Fields("STATUS", wish_to_json(wish))) == wish


def test_a_peer_of_an_older_version_wishes_nothing() -> None:
    assert wish_from(Fields("STATUS", {"role": "primary", "disk_state": "up-to-date"})) == Wish()


@pytest.mark.parametrize(
    "odd",
    [
        {"paused": 1},
        {"paused": True},
        {"paused": False, "rate_bytes_per_s": -1, "paused_by": "", "paused_since_s": 0},
        {"paused": False, "rate_bytes_per_s": 1 << 62, "paused_by": "", "paused_since_s": 0},
        {"paused": False, "rate_bytes_per_s": 1, "paused_by": "x" * 201, "paused_since_s": 0},
    ],
)
def test_a_wish_of_no_meaning_is_the_peers_error(odd: dict[str, object]) -> None:
    with pytest.raises(PeerError):
        wish_from(Fields("STATUS", odd))


# In a pair.


def order(node: Node, wish: Wish) -> str:
    number = node.ask(lambda n: pacing.order(node.volume, n, wish))
    node.pair.run()
    assert node.answers[number].ok
    return node.answers[number].reason


def copying_pair() -> Pair:
    """alpha has a whole volume of data that beta lacks; not connected."""
    pair = behind_pair()
    for start in range(0, SIZE, EXTENT):
        pair.alpha.write(start, data(1 + start // EXTENT, min(EXTENT, SIZE - start)))
    pair.advance(2.0)
    return pair


@pytest.mark.parametrize("side", ["alpha", "beta"])
def test_a_pause_on_either_side_holds_the_copy_back_over_reconnects(side: str) -> None:
    pair = copying_pair()
    node = pair.alpha if side == "alpha" else pair.beta
    order(node, Wish(True, by="uid 7", since_s=1234))
    for _ in range(2):
        pair.connect()
        pair.advance(3.0)
        assert pair.alpha.session.phase is Phase.SOURCE
        assert Type.RESYNC_WRITE not in [header.type for header in pair.alpha.sent]
        for each in pair.nodes:
            shown = volume_snapshot(each.volume)
            assert shown["peers"][0]["replication_state"] == "paused"
            stalled = shown["peers"][0]["resync"]["stalled"]
            assert stalled == f"paused by an operator (uid 7) on {side}"
            assert f"on {side}: replctl resync r0 resume" in shown["next"]
        pair.cut()
    pair.connect()
    pair.run()
    order(node, Wish())
    pair.advance(2.0)
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert pair.equal()
    assert [c for c in node.codes if c in ("RESYNC_PAUSED", "RESYNC_RESUMED")] == [
        "RESYNC_PAUSED",
        "RESYNC_RESUMED",
    ]


def test_writes_flow_on_while_a_copy_is_paused() -> None:
    pair = copying_pair()
    order(pair.alpha, Wish(True))
    pair.connect()
    pair.run()
    op = pair.alpha.write(0, data(99))
    pair.run()
    assert op in pair.alpha.replies
    assert pair.beta.disk[0] == 99, "it was mirrored"
    order(pair.alpha, Wish())
    pair.advance(2.0)
    assert pair.equal() and pair.alpha.session.phase is Phase.ESTABLISHED


def test_a_settle_is_never_held_back() -> None:
    node = at("settle-target")
    pair = node.pair
    order(pair.alpha, Wish(True, 1))
    order(pair.beta, Wish(True, 1))
    pair.alpha.hold_copies = False
    pair.advance(1.0)
    assert pair.alpha.session.phase is Phase.ESTABLISHED
    assert volume_snapshot(pair.alpha.volume)["resync_order"]["paused"], "it says so all the same"


def test_a_limit_slows_a_copy_down_and_is_shown() -> None:
    pair = copying_pair()
    order(pair.beta, Wish(rate_bytes_per_s=64 << 10))
    pair.connect()
    pair.advance(5.0)
    assert pair.alpha.session.phase is Phase.SOURCE
    sent = sum(h.length for h in pair.alpha.sent if h.type is Type.RESYNC_WRITE)
    assert 0 < sent <= (64 << 10) * 6 + CHUNK
    [peer] = volume_snapshot(pair.alpha.volume)["peers"]
    assert peer["resync"]["rate_limit_bytes_per_s"] == 64 << 10
    assert peer["resync"]["stalled"] == ""
    reason = order(pair.alpha, Wish(rate_bytes_per_s=1 << 30))
    assert f"beta limits them to {64 << 10} bytes/s" in reason
    order(pair.beta, Wish())
    pair.advance(3.0)
    assert pair.beta.session.phase is Phase.ESTABLISHED


def test_an_order_that_changes_nothing_says_so() -> None:
    pair = established_pair()
    assert "nothing changes" in order(pair.alpha, Wish())
    assert "no limit" not in order(pair.alpha, Wish(rate_bytes_per_s=5))
    assert "no limit" in order(pair.alpha, Wish())
    order(pair.beta, Wish(True))
    assert order(pair.alpha, Wish()).endswith("beta still pauses them")

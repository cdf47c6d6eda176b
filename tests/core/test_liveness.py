"""What a peer owes, for how long, and when that is worth showing or too long."""

from __future__ import annotations

import pytest

from repl.core.liveness import PROMPT_S, SYNC_PATIENCE, Liveness
from repl.core.snapshot import volume_snapshot
from repl.core.states import Phase
from repl.core.timeouts import Timeouts
from repl.core.wire import PeerError
from tests.core.pair_of_cores import Pair, data, established_pair

TIMEOUTS = Timeouts(peer_timeout_s=5.0, ping_interval_s=1.0)


def test_silence_of_an_idle_peer_is_nothing_to_show() -> None:
    live = Liveness(100.0)
    assert live.slow_s(101.3, TIMEOUTS) is None
    assert live.slow_s(104.0, TIMEOUTS) == 4.0
    assert live.used_up(105.1, TIMEOUTS)[1] > 1


def test_syncs_and_generations_get_more_time_than_an_ordinary_answer() -> None:
    live = Liveness(100.0)
    live.unsynced_since_s = live.unconfirmed_since_s = 100.0
    live.received_s = 110.0
    debt_s, used_up = live.used_up(110.0, TIMEOUTS)
    assert (debt_s, used_up) == (10.0, 10.0 / (SYNC_PATIENCE * 5.0))


def test_time_in_which_this_node_was_away_is_not_the_peers() -> None:
    live = Liveness(100.0)
    live.unapplied_since_s = live.unsynced_since_s = live.unconfirmed_since_s = 100.0
    live.excuse(50.0)
    assert live.slow_s(151.0, TIMEOUTS) is None


def test_pongs_are_counted_in_the_order_of_the_pings() -> None:
    live = Liveness(0.0)
    assert (live.pinged(), live.pinged()) == (1, 2)
    assert (live.ponged(), live.ponged()) == (1, 2)
    with pytest.raises(PeerError):
        live.ponged()


def test_slow_peer_is_shown_and_said_once_before_it_is_dropped() -> None:
    pair = established_pair()
    pair.beta.hold_incoming = True
    pair.alpha.write(0, data(1))
    pair.run()
    pair.advance(3.0)
    shown = volume_snapshot(pair.alpha.volume)
    assert shown["peers"][0]["slow_s"] >= 2
    assert "beta is slow" in shown["why"]
    assert len([note for note in pair.alpha.notes if "beta is slow" in note]) == 1
    assert pair.alpha.session.connected
    pair.advance(4.0)
    assert not pair.alpha.session.connected


def test_what_used_up_most_of_its_time_is_named() -> None:
    live = Liveness(100.0)
    live.received_s = 103.0
    live.unapplied_since_s = 101.0
    live.unsynced_since_s = 100.0
    debt = live.worst(104.0, TIMEOUTS)
    assert (debt.what, debt.for_s, debt.limit_s) == ("a write waits to be applied there", 3.0, 5.0)
    live.unapplied_since_s, live.received_s = None, 131.0
    debt = live.worst(131.0, TIMEOUTS)
    assert debt.what == "its disk has not finished a sync" and debt.part > 1
    live.unsynced_since_s, live.unconfirmed_since_s = None, 125.0
    assert live.worst(131.0, TIMEOUTS).what == "it has not stored a new generation"
    live.unconfirmed_since_s = None
    assert live.worst(135.0, TIMEOUTS).what == "it has said nothing"


def changed(live: Liveness, now_s: float) -> bool:
    return live.slowness_changed(now_s, live.worst(now_s, TIMEOUTS))


def test_a_slow_peer_is_prompt_only_after_a_while() -> None:
    live = Liveness(0.0)
    assert changed(live, 4.0) and live.said_slow
    live.received_s = 4.1
    assert not changed(live, 4.2), "one answer is not yet promptness"
    live.received_s = 4.0 + PROMPT_S
    assert changed(live, 4.0 + PROMPT_S) and not live.said_slow


def test_a_round_trip_is_from_ping_to_pong_and_none_over_an_absence() -> None:
    live = Liveness(0.0)
    live.pong_came(1.0)
    assert live.round_trip_s is None, "nothing was asked"
    live.ping_sent(1.0)
    live.ping_sent(2.0)
    live.pong_came(2.5)
    assert live.round_trip_s == 1.5, "of the oldest ping without an answer"
    live.excuse(3600.0)
    live.pong_came(3700.0)
    assert live.round_trip_s == 1.5


def test_syncs_that_each_end_in_time_never_drop_a_busy_peer() -> None:
    """Under load a newer sync is always asked for before the last one ends."""
    pair = established_pair()
    pair.alpha.write(0, data(1))
    pair.run()
    for round_no in range(4 * SYNC_PATIENCE):
        pair.beta.hold_syncs = True
        pair.alpha.write(0, data(round_no % 250 + 1))
        pair.alpha.flush()
        pair.advance(1.0)
        pair.alpha.write(0, data(round_no % 250 + 2))
        pair.alpha.flush()
        pair.beta.hold_syncs = False
        pair.beta.step()
        pair.beta.hold_syncs = True
        pair.alpha.step()
        pair.advance(1.0)
    assert pair.alpha.session.phase is Phase.ESTABLISHED, pair.alpha.drops


def slow_pair() -> Pair:
    pair = established_pair()
    pair.beta.hold_incoming = True
    # beta itself has patience: what it cannot read is its own doing here.
    pair.beta.session.live.received_s += 1000
    pair.alpha.write(0, data(3))
    pair.advance(3.0)
    return pair


def test_status_shows_a_slow_peer_and_an_event_tells_it_once() -> None:
    pair = slow_pair()
    [peer] = volume_snapshot(pair.alpha.volume)["peers"]
    assert peer["connection_state"] == "connected"
    assert peer["dropped_after_s"] == 5.0
    assert peer["slow_why"] == "a write waits to be applied there"
    assert 2.0 < peer["slow_s"] <= 3.0
    pair.advance(1.0)
    assert [code for code in pair.alpha.codes if code.startswith("PEER_")][-1] == "PEER_SLOW"
    assert pair.alpha.codes.count("PEER_SLOW") == 1
    pair.beta.hold_incoming = False
    pair.advance(4.0)
    assert pair.alpha.codes[-1] == "PEER_PROMPT"
    [peer] = volume_snapshot(pair.alpha.volume)["peers"]
    assert (peer["slow_s"], peer["slow_why"], peer["dropped_after_s"]) == (None, "", None)


def test_a_dropped_peer_is_told_with_what_it_owed() -> None:
    pair = slow_pair()
    pair.advance(4.0)
    assert pair.alpha.session.phase is Phase.DOWN
    assert "a write waits to be applied there" in pair.alpha.drops[-1]
    disconnected = pair.alpha.event("PEER_DISCONNECTED")
    assert "a write waits" in disconnected.fields["reason"]

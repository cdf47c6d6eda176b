"""What a peer owes, for how long, and when that is worth showing or too long."""

from __future__ import annotations

import pytest

from repl.core.liveness import SYNC_PATIENCE, Liveness
from repl.core.snapshot import volume_snapshot
from repl.core.timeouts import Timeouts
from repl.core.wire import PeerError
from tests.core.pair_of_cores import data, established_pair

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

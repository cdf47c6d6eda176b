"""When contact was lost: remembered over restarts as far as it is known, and never made up."""

from __future__ import annotations

from typing import Any

from repl.core.snapshot import volume_snapshot
from repl.core.states import Phase
from repl.core.upkeep import CHECKPOINT_INTERVAL_S
from tests.core.every_phase import at
from tests.core.pair_of_cores import BLOCK, EXTENT, SIZE, Node, Pair, established_pair

#: The wall clock of `pair_of_cores` is 1000 s ahead of its monotonic one.
WALL_S = 1000


def shown(node: Node) -> dict[str, Any]:
    [peer] = volume_snapshot(node.volume)["peers"]
    assert isinstance(peer, dict)
    return peer


def lost(node: Node) -> tuple[int | None, int | None]:
    peer = shown(node)
    return peer["contact_lost_time_s"], peer["contact_lost_before_s"]


def wall(pair: Pair) -> int:
    return WALL_S + int(pair.now_s)


def test_contact_that_was_never_had_was_never_lost() -> None:
    assert lost(Pair().alpha) == (None, None)


def test_a_connected_peer_has_no_time_of_loss() -> None:
    pair = established_pair()
    assert lost(pair.alpha) == lost(pair.beta) == (None, None)


def test_the_time_of_loss_is_that_of_the_last_contact_not_of_a_later_attempt() -> None:
    pair = established_pair()
    pair.advance(10.0)
    at_s = wall(pair)
    pair.cut()
    pair.run()
    assert lost(pair.beta) == (at_s, None)
    pair.advance(30.0)
    pair.alpha.hold_incoming = pair.beta.hold_incoming = True
    pair.connect()
    pair.run()
    assert pair.beta.session.phase is Phase.GREETING
    assert lost(pair.beta) == (at_s, None), "a connection without a word is no contact"
    pair.cut()
    pair.run()
    assert lost(pair.beta) == (at_s, None), "no word was exchanged: nothing is newer"


def test_the_time_of_loss_survives_a_restart() -> None:
    pair = established_pair()
    pair.advance(10.0)
    at_s = wall(pair)
    pair.cut()
    pair.run()
    pair.advance(50.0)
    pair.restart(pair.beta, power_loss=True)
    pair.run()
    assert lost(pair.beta) == (at_s, None)


def test_a_node_that_went_down_in_contact_says_that_it_does_not_know() -> None:
    pair = established_pair()
    pair.advance(10.0)
    pair.restart(pair.beta, power_loss=True)
    pair.run()
    opened_s = pair.beta.volume.opened_wall_s
    assert lost(pair.beta) == (None, opened_s)


def test_a_peer_that_came_back_is_shown_with_the_time_it_was_away() -> None:
    pair = established_pair()
    pair.advance(10.0)
    from_s = wall(pair)
    pair.cut()
    pair.advance(20.0)
    to_s = wall(pair)
    pair.connect()
    pair.run()
    for node in pair.nodes:
        assert shown(node)["last_away"] == {"from_s": from_s, "to_s": to_s}
        assert lost(node) == (None, None)
        assert node.metadata.facts.peer(node.peer_name).contact_lost_s == 0


def test_a_refused_connection_is_no_contact() -> None:
    node = at("refused")
    node.pair.cut()
    node.pair.run()
    assert node.metadata.facts.peer(node.peer_name).contact_lost_s == 0


def test_a_peer_that_was_not_configured_for_a_while_is_compared_as_a_whole() -> None:
    pair = established_pair()
    alpha = pair.alpha
    pair.cut()
    alone = alpha.write(0, b"a" * BLOCK)
    pair.advance(alpha.volume.timeouts.reconnect_grace_s + 1.0)
    assert alone in alpha.replies
    alpha.boot(alpha.boot_id, peers=())
    pair.run()
    unknown = alpha.write(2 * EXTENT, b"b" * BLOCK)
    pair.run()
    assert unknown in alpha.replies
    for _ in range(4):
        pair.advance(CHECKPOINT_INTERVAL_S)
    assert not alpha.metadata.maps(()).intents.any_in(0, SIZE)
    alpha.boot(alpha.boot_id)
    pair.connect()
    pair.run()
    assert pair.beta.session.decision is not None
    assert pair.beta.session.decision.rule == "ancestor-without-base"
    assert pair.equal()

"""The peers' connection is cut at any byte or damaged in any bit: nothing of it reaches a copy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

from repl.node.event_ring import BURST_MAX
from tests.daemon import Node, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair
from tests.wire import CountingProxy, Way

#: How far ahead a fault may lie. What goes back are acknowledgements: far less.
AHEAD_BYTES = {Way.FROM_DIALER: 300_000, Way.TO_DIALER: 3_000}
PREAMBLE_BYTES = 256
#: In few extents, since whatever was written lately is compared after each break.
LOAD: dict[str, Any] = {"region": range(1024), "flush_every": 20, "zero_every": 11}


@pytest.fixture
def wired() -> Iterator[tuple[Pair, CountingProxy]]:
    """A pair in sync, alpha primary, whose connection leads through a proxy."""
    with Pair.make(counted=True) as pair:
        pair.start_in_sync(primary=pair.alpha)
        assert pair.wire is not None
        yield pair, pair.wire


def broken_connections(node: Node) -> int:
    return int(node.peer_of()["broken_connections_total"])


def warnings_of_broken(node: Node) -> int:
    lines = node.log_text().splitlines()
    return sum("warning" in line and "broken frame" in line for line in lines)


@pytest.mark.parametrize("cuts", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_connection_cut_at_any_byte_costs_no_client_anything(
    wired: tuple[Pair, CountingProxy], ledger: Ledger, cuts: int
) -> None:
    pair, wire = wired
    choice = random.Random(cuts)
    with LedgerClient(ledger, pair.alpha.uri(), **LOAD) as client:
        for number in range(cuts):
            way = (Way.FROM_DIALER, Way.TO_DIALER)[number % 2]
            before = wire.connections
            wire.cut_after(way, choice.randrange(AHEAD_BYTES[way]))
            wire.wait_fault()
            wait_for(lambda before=before: wire.connections > before, what="a new connection")  # type: ignore[misc]
            client.wait_acknowledged(20)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert [broken_connections(node) for node in pair.nodes] == [0, 0]
    assert_promises_kept(pair, pair.alpha, ledger)


def damage_the_next_greeting(pair: Pair, wire: CountingProxy) -> None:
    """Turn over a bit of the preamble: that connection is refused, the next one is taken."""
    wire.part()
    pair.alpha.wait_alone()
    wire.flip_after(Way.FROM_DIALER, PREAMBLE_BYTES // 3, 5)
    wire.heal()
    wire.wait_fault()
    pair.wait_in_sync()
    assert "preamble" in pair.beta.log_text()


@pytest.mark.parametrize("flips", [2, pytest.param(60, marks=pytest.mark.slow)])
def test_flipped_bit_is_never_applied_but_counted_and_said_once(
    wired: tuple[Pair, CountingProxy], ledger: Ledger, flips: int
) -> None:
    pair, wire = wired
    choice = random.Random(flips)
    with LedgerClient(ledger, pair.alpha.uri(), **LOAD) as client:
        for number in range(flips):
            way = (Way.FROM_DIALER, Way.TO_DIALER)[number % 2]
            victim = pair.beta if way is Way.FROM_DIALER else pair.alpha
            broken = broken_connections(victim)
            wire.flip_after(way, choice.randrange(AHEAD_BYTES[way]), choice.randrange(8))
            wire.wait_fault()
            wait_for(
                lambda victim=victim, broken=broken: broken_connections(victim) > broken,  # type: ignore[misc]
                what="the damage is noticed",
            )
            client.wait_acknowledged(20)
            pair.wait_in_sync()
        damage_the_next_greeting(pair, wire)
        client.wait_acknowledged(20)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert sum(map(broken_connections, pair.nodes)) == flips
    for node in pair.nodes:
        # Of a long series only the first are said one by one.
        assert min(broken_connections(node), BURST_MAX) <= warnings_of_broken(node)
    assert sum(map(warnings_of_broken, pair.nodes)) <= flips
    assert_promises_kept(pair, pair.alpha, ledger)

"""The primary moves from node to node while clients write: graceful, refused, or asked for twice.

The client has the addresses of both nodes and follows the volume; its ledger judges every move.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.daemon import Node
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair

Done = subprocess.CompletedProcess[str]


def everywhere(pair: Pair) -> list[str]:
    return [node.uri() for node in pair.nodes]


def switch(pair: Pair, old: Node) -> Node:
    """Move the primary to the other node with plain commands; return that node."""
    new = pair.other(old)
    old.ctl_ok("demote", "r0", "--drop-clients")
    assert old.volume()["clients"] == 0
    new.promote()
    return new


@pytest.mark.parametrize("moves", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_primary_moves_under_load_and_loses_nothing(pair: Pair, ledger: Ledger, moves: int) -> None:
    pair.start_in_sync(primary=pair.alpha)
    primary = pair.alpha
    with LedgerClient(
        ledger, everywhere(pair), reconnect=True, flush_every=25, fua_every=7, zero_every=19
    ) as client:
        for _ in range(moves):
            client.wait_acknowledged(60)
            primary = switch(pair, primary)
        client.wait_acknowledged(60)
    assert client.connections > moves
    assert_no_error_reached(client)
    assert_promises_kept(pair, primary, ledger)


def test_client_between_two_primaries_is_closed_or_refused_never_answered_an_error(
    pair: Pair, ledger: Ledger
) -> None:
    pair.start_in_sync(primary=pair.alpha)
    client = LedgerClient(ledger, pair.alpha.uri()).start()
    client.wait_acknowledged(100)
    named = pair.alpha.ctl("demote", "r0")
    assert named.returncode == 5
    (name,) = pair.alpha.volume()["client_names"]
    assert name in named.stderr, named.stderr
    assert "replctl demote r0 --drop-clients" in named.stderr
    switch(pair, pair.alpha)
    client.join()
    assert_no_error_reached(client)
    assert len(client.connection_losses) == 1
    late = LedgerClient(ledger, pair.alpha.uri()).start()
    late.join()
    assert late.connections == 0
    assert_promises_kept(pair, pair.beta, ledger)


def ask_both(pair: Pair, *arguments: str) -> dict[str, Done]:
    """Give both nodes the same command at the same time."""
    with ThreadPoolExecutor(2) as pool:
        asked = {node.name: pool.submit(node.ctl, "--json", *arguments) for node in pair.nodes}
        return {name: future.result() for name, future in asked.items()}


def assert_refused_beside(primary: Node, other: Node) -> None:
    """Beside a living primary nobody is promoted, whatever an operator says of it."""
    for options in ((), ("--peer-dead", primary.name)):
        refused = other.ctl("promote", "r0", *options)
        assert refused.returncode == 5, refused.stderr
        assert primary.name in refused.stderr
    assert other.volume()["role"] == "secondary"


@pytest.mark.parametrize("rounds", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_promotion_on_both_nodes_at_once_has_one_winner(
    pair: Pair, ledger: Ledger, rounds: int
) -> None:
    pair.start_in_sync()
    for seed in range(rounds):
        done = ask_both(pair, "promote", "r0")
        statuses = sorted(one.returncode for one in done.values())
        assert statuses == [0, 5], done
        for name, one in done.items():
            node = pair.alpha if name == "alpha" else pair.beta
            if one.returncode == 0:
                winner = node
                assert node.volume()["role"] == "primary"
            else:
                assert pair.other(node).name in json.loads(one.stdout)["error"]["why"]
                assert node.volume()["role"] == "secondary"
        with LedgerClient(ledger, winner.uri(), seed=seed) as client:
            client.wait_acknowledged(30)
            assert_refused_beside(winner, pair.other(winner))
            client.wait_acknowledged(30)
        assert client.connection_losses == []
        winner.ctl_ok("demote", "r0")
    winner.promote()
    assert_promises_kept(pair, winner, ledger)


@pytest.mark.slow
def test_held_client_is_served_once_its_node_is_primary(pair: Pair, ledger: Ledger) -> None:
    pair.beta.nbd_options = ('when_secondary = "hold"',)
    pair.beta.write_config()
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.beta.uri()) as client:
        switch(pair, pair.alpha)
        client.wait_acknowledged(50)
    assert (client.connections, client.connection_losses) == (1, [])
    assert_no_error_reached(client)
    assert_promises_kept(pair, pair.beta, ledger)

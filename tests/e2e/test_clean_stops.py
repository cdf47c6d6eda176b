"""Clean stops of either node or both, and starts in any order, cost at most a plain `promote`."""

from __future__ import annotations

import itertools

import pytest

from tests.daemon import Node, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient, judge_over_nbd
from tests.pair import Pair

STOP_ORDERS = ("alpha, beta", "beta, alpha", "together")
START_ORDERS = ("alpha, beta", "beta, alpha")
#: One of each kind runs always, the whole product in `make test-all`.
ALWAYS = {("alpha, beta", "beta, alpha"), ("together", "alpha, beta")}


def orders() -> list[object]:
    return [
        pytest.param(*both, marks=[] if both in ALWAYS else [pytest.mark.slow])
        for both in itertools.product(STOP_ORDERS, START_ORDERS)
    ]


def in_order(pair: Pair, order: str) -> list[Node]:
    return list(pair.nodes) if order == "alpha, beta" else [pair.beta, pair.alpha]


def stop(pair: Pair, order: str) -> None:
    if order == "together":
        for node in pair.nodes:
            node.begin_stop()
        statuses = [node.await_exit() for node in pair.nodes]
    else:
        statuses = [node.stop() for node in in_order(pair, order)]
    assert statuses == [0, 0]


def promote_plainly(node: Node) -> None:
    """Promote without any option, as soon as the volume may be; a resumed primary is left alone."""

    def primary() -> bool:
        if node.volume()["role"] == "primary":
            return True
        return node.ctl("promote", "r0").returncode == 0

    wait_for(primary, what=f"{node.name} is promoted by a plain command")
    node.wait_primary()


@pytest.mark.parametrize(("stop_order", "start_order"), orders())
@pytest.mark.parametrize("next_primary", ["alpha", pytest.param("beta", marks=pytest.mark.slow)])
def test_stopping_both_costs_at_most_a_plain_promote(
    pair: Pair, ledger: Ledger, stop_order: str, start_order: str, next_primary: str
) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri()) as client:
        client.wait_acknowledged(300)
    assert_no_error_reached(client)
    stop(pair, stop_order)
    for node in in_order(pair, start_order):
        node.start()
    primary = pair.alpha if next_primary == "alpha" else pair.beta
    pair.wait_in_sync()
    if pair.other(primary).volume()["role"] == "primary":
        pair.other(primary).ctl_ok("demote", "r0")
    promote_plainly(primary)
    assert_promises_kept(pair, primary, ledger)


def test_stopped_primary_hands_over_without_vouching(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    client = LedgerClient(ledger, pair.alpha.uri()).start()
    client.wait_acknowledged(300)
    assert pair.alpha.stop() == 0
    client.join()
    assert_no_error_reached(client)
    promote_plainly(pair.beta)
    judge_over_nbd(ledger, pair.beta.uri())
    with LedgerClient(ledger, pair.beta.uri(), seed=1) as successor:
        successor.wait_acknowledged(200)
    pair.alpha.start()
    assert_promises_kept(pair, pair.beta, ledger)


def test_stopped_secondary_is_missed_for_what_changed_only(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri()) as client:
        client.wait_acknowledged(300)
        assert pair.beta.stop() == 0
        client.wait_acknowledged(300)
        pair.beta.start()
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)

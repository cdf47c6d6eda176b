"""Nodes die under load and come back: nothing acknowledged is lost, only what changed is copied.

Every scenario keeps a ledger and ends with both copies in sync, judged and byte-equal.
"""

from __future__ import annotations

import pytest

from tests.daemon import Node, wait_for
from tests.e2e.judging import (
    assert_no_error_reached,
    assert_promises_kept,
    sent_in_resyncs,
)
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient, judge_over_nbd
from tests.pair import Pair


def wait_copying(source: Node, sent_before: int) -> None:
    wait_for(lambda: sent_in_resyncs(source) > sent_before, what="some of it is copied")


def test_resync_goes_on_while_a_client_writes(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri(), run_blocks=16, zero_every=20) as client:
        client.wait_acknowledged(300)
        pair.beta.kill()
        client.wait_acknowledged(500)
        pair.beta.start()
        client.wait_acknowledged(500)
        pair.wait_in_sync()
        client.wait_acknowledged(300)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)


def test_secondary_killed_during_its_resync_continues_it(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    pair.beta.kill()
    with LedgerClient(ledger, pair.alpha.uri(), run_blocks=64) as client:
        client.wait_acknowledged(800)
        for _ in range(3):
            before = sent_in_resyncs(pair.alpha)
            pair.beta.start()
            wait_copying(pair.alpha, before)
            pair.beta.kill()
            client.wait_acknowledged(50)
        pair.beta.start()
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert_promises_kept(pair, pair.alpha, ledger)


def test_primary_killed_and_the_other_promoted_loses_nothing(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    client = LedgerClient(ledger, pair.alpha.uri(), flush_every=40, fua_every=9).start()
    client.wait_acknowledged(800)
    pair.alpha.kill()
    client.join()
    assert_no_error_reached(client)

    pair.beta.wait_volume(
        lambda v: v["peers"][0]["connection_state"] != "connected", "has noticed the loss"
    )
    refused = pair.beta.ctl("promote", "r0")
    assert refused.returncode == 5, refused.stderr
    assert "--peer-dead" in refused.stderr
    pair.beta.promote("r0", "--peer-dead", "alpha")
    pair.beta.wait_primary()
    judge_over_nbd(ledger, pair.beta.uri())
    with LedgerClient(ledger, pair.beta.uri(), seed=1) as successor:
        successor.wait_acknowledged(300)
        pair.alpha.start()
        successor.wait_acknowledged(100)
    assert_no_error_reached(successor)
    assert_promises_kept(pair, pair.beta, ledger)
    assert pair.alpha.volume()["role"] == "secondary"


def test_primary_killed_and_back_resumes_by_itself(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri(), reconnect=True) as client:
        client.wait_acknowledged(500)
        pair.alpha.kill()
        pair.alpha.start()
        client.wait_acknowledged(500)
    assert client.connections >= 2
    assert_no_error_reached(client)
    assert_promises_kept(pair, pair.alpha, ledger)


@pytest.mark.parametrize("first_back", ["alpha", "beta"])
@pytest.mark.parametrize("first_dead", ["alpha", "beta"])
def test_both_killed_and_back_need_no_operator(
    pair: Pair, ledger: Ledger, first_dead: str, first_back: str
) -> None:
    by_name = {node.name: node for node in pair.nodes}
    pair.start_in_sync(primary=pair.alpha)
    client = LedgerClient(ledger, pair.alpha.uri(), flush_every=60).start()
    client.wait_acknowledged(500)
    first = by_name[first_dead]
    first.kill()
    pair.other(first).kill()
    client.join()
    assert_no_error_reached(client)

    by_name[first_back].start()
    pair.other(by_name[first_back]).start()
    pair.alpha.wait_primary()
    assert_promises_kept(pair, pair.alpha, ledger)
    with LedgerClient(ledger, pair.alpha.uri(), seed=1) as successor:
        successor.wait_acknowledged(200)
    assert_promises_kept(pair, pair.alpha, ledger)


def test_survivor_that_went_on_alone_resumes_alone_after_its_own_crash(
    pair: Pair, ledger: Ledger
) -> None:
    pair.start_in_sync(primary=pair.alpha)
    pair.beta.kill()
    with LedgerClient(ledger, pair.alpha.uri()) as client:
        client.wait_acknowledged(300)
    assert_no_error_reached(client)
    pair.alpha.kill()
    pair.alpha.start()
    pair.alpha.wait_primary()
    judge_over_nbd(ledger, pair.alpha.uri())
    pair.beta.start()
    assert_promises_kept(pair, pair.alpha, ledger)


def test_copy_left_behind_is_not_promoted_by_a_plain_command(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    pair.beta.kill()
    with LedgerClient(ledger, pair.alpha.uri()) as client:
        client.wait_acknowledged(200)
    pair.alpha.kill()
    pair.beta.start()
    refused = pair.beta.ctl("promote", "r0")
    assert refused.returncode == 5, refused.stderr
    assert pair.beta.volume()["role"] == "secondary"
    pair.alpha.start()
    pair.alpha.wait_primary()
    assert_promises_kept(pair, pair.alpha, ledger)


@pytest.mark.slow
def test_ten_failovers_in_a_row_lose_nothing(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    primary = pair.alpha
    for turn in range(10):
        client = LedgerClient(
            ledger, primary.uri(), seed=turn, flush_every=30, zero_every=17, run_blocks=16
        ).start()
        client.wait_acknowledged(200 + 37 * turn)
        primary.kill()
        client.join()
        assert_no_error_reached(client)
        dead, primary = primary, pair.other(primary)
        primary.wait_volume(
            lambda v: v["peers"][0]["connection_state"] != "connected", "has noticed the loss"
        )
        primary.promote("r0", "--peer-dead", dead.name)
        primary.wait_primary()
        judge_over_nbd(ledger, primary.uri())
        dead.start()
        assert_promises_kept(pair, primary, ledger)

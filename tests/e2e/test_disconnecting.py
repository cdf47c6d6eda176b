"""`replctl disconnect` and `connect`, at any moment and on either side, lose nothing."""

from __future__ import annotations

import signal

from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair


def test_disconnecting_and_connecting_in_any_state_loses_nothing(
    pair: Pair, ledger: Ledger
) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri(), run_blocks=16) as client:
        for node in pair.nodes:
            # Connected already: nothing changes.
            node.ctl_ok("connect", "r0", pair.other(node).name)
            node.ctl_ok("disconnect", "r0")
            node.ctl_ok("disconnect", "r0")
            client.wait_acknowledged(200)
            # Twice while it connects, and taken back in the middle.
            node.ctl_ok("connect", "r0")
            node.ctl_ok("disconnect", "r0")
            node.ctl_ok("connect", "r0")
            node.ctl_ok("connect", "r0")
            pair.wait_in_sync()
        pair.beta.kill()
        pair.alpha.ctl_ok("disconnect", "r0")
        pair.beta.start()
        client.wait_acknowledged(200)
        assert pair.alpha.peer_of()["connection_state"] == "disconnected"
        pair.alpha.ctl_ok("connect", "r0")
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)


def test_what_an_operator_disconnected_stays_so_without_its_worker_and_says_so(pair: Pair) -> None:
    beta = pair.beta
    pair.start_in_sync(primary=pair.alpha)
    beta.ctl_ok("disconnect", "r0")
    before = beta.volume()["worker_pid"]
    beta.signal_worker(signal.SIGKILL)
    shown = beta.wait_volume(
        lambda v: v["problem"] is None and v["worker_pid"] not in (None, before),
        "has a worker again",
    )
    assert "disconnected r0 from alpha" in shown["why"]
    assert shown["next"].startswith("replctl connect r0")
    refused = beta.ctl("wait", "r0", "--for", "connected", "--timeout", "0")
    assert refused.returncode == 6 and "Next  replctl connect r0" in refused.stderr
    connect = "Next    replctl connect r0, then: replctl status r0"
    assert connect in beta.ctl_ok("splitbrain", "show", "r0")
    resolved = beta.ctl("splitbrain", "resolve", "r0", "--keep", "beta", "--confirm", "r0")
    assert resolved.returncode == 5 and "Next  replctl connect r0, then" in resolved.stderr
    beta.ctl_ok("connect", "r0")
    pair.wait_in_sync()

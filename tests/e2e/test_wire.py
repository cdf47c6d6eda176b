"""What crosses the wire between two nodes, counted by a proxy that belongs to neither of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from repl.core.facts import extent_shift_for
from tests import libnbd
from tests.daemon import Json, Node, wait_for
from tests.e2e.judging import (
    WIRE_OVERHEAD,
    assert_no_error_reached,
    assert_promises_kept,
    sent_in_resyncs,
)
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair
from tests.wire import CountingProxy

#: Greetings, pings and status between two nodes while a test waits for them.
CHATTER_BYTES = 64 << 10
#: What the digest of one block may take on the wire.
DIGEST_BYTES_MAX = 32
#: One way: half of a round trip between continents.
FAR_S = 0.1


@pytest.fixture
def counted() -> Iterator[tuple[Pair, CountingProxy]]:
    """A pair whose connection leads through a counting proxy."""
    with Pair.make(counted=True) as pair:
        assert pair.wire is not None
        yield pair, pair.wire


def flush(node: Node) -> None:
    """Send one FLUSH, so that everything acknowledged is durable on both nodes."""
    handle = libnbd.load().NBD()
    handle.connect_uri(node.uri())
    handle.flush()
    handle.shutdown()


def intent_bytes(volume: Json) -> int:
    """Bytes under the write intents that are hot in a volume's status."""
    return int(volume["hot_extents"]) << extent_shift_for(int(volume["size_bytes"]))


def cut_and_back(wire: CountingProxy) -> None:
    """Cut the connection and wait until there is a new one."""
    before = wire.connections
    wire.cut()
    wait_for(lambda: wire.connections > before, what="the two are connected again")


def test_secondary_killed_and_back_gets_only_what_changed(
    counted: tuple[Pair, CountingProxy], ledger: Ledger
) -> None:
    pair, wire = counted
    pair.start_in_sync(primary=pair.alpha)
    # Known to both, and durable: none of it may be copied again.
    with LedgerClient(ledger, pair.alpha.uri(), run_blocks=32, region=range(8192)) as client:
        client.wait_acknowledged(600)
    flush(pair.alpha)
    intents = intent_bytes(pair.beta.volume())
    mark = ledger.last_version
    pair.beta.kill()
    changed = range(9000, 10000)
    with LedgerClient(ledger, pair.alpha.uri(), seed=1, region=changed) as client:
        client.wait_acknowledged(300)
    assert_no_error_reached(client)
    alone = pair.alpha.wait_volume(
        lambda v: v["peers"][0]["connection_state"] != "connected", "has noticed the loss"
    )
    intents += intent_bytes(alone)
    changed_bytes = len(ledger.blocks_written_since(mark)) * ledger.block_bytes
    dirty_bytes = alone["peers"][0]["out_of_sync_bytes"]
    assert dirty_bytes >= changed_bytes

    sent_before, crossed_before = sent_in_resyncs(pair.alpha), wire.sent_bytes
    pair.beta.start()
    pair.wait_in_sync()
    sent_bytes = sent_in_resyncs(pair.alpha) - sent_before
    crossed_bytes = wire.sent_bytes - crossed_before
    # Of what the intents cover only digests travel, since both copies agree there.
    digests_bytes = (dirty_bytes + intents) // ledger.block_bytes * DIGEST_BYTES_MAX
    assert changed_bytes <= sent_bytes <= WIRE_OVERHEAD * dirty_bytes + digests_bytes
    assert sent_bytes <= crossed_bytes
    assert crossed_bytes <= WIRE_OVERHEAD * (dirty_bytes + intents) + CHATTER_BYTES
    assert_promises_kept(pair, pair.alpha, ledger)


def test_returned_primary_gets_only_what_changed(
    counted: tuple[Pair, CountingProxy], ledger: Ledger
) -> None:
    pair, wire = counted
    pair.start_in_sync(primary=pair.alpha)
    client = LedgerClient(ledger, pair.alpha.uri(), flush_every=40, region=range(2048)).start()
    client.wait_acknowledged(400)
    pair.alpha.kill()
    client.join()
    pair.beta.wait_volume(
        lambda v: v["peers"][0]["connection_state"] != "connected", "has noticed the loss"
    )
    pair.beta.promote("r0", "--peer-dead", "alpha")
    with LedgerClient(ledger, pair.beta.uri(), seed=1, region=range(4096, 5120)) as successor:
        successor.wait_acknowledged(200)
    alone = pair.beta.volume()
    dirty_bytes = alone["peers"][0]["out_of_sync_bytes"]
    crossed_before = wire.received_bytes
    pair.alpha.start()
    pair.wait_in_sync()
    crossed_bytes = wire.received_bytes - crossed_before
    # What alpha had open when it died is its own to name: at most what the first client touched.
    intents = intent_bytes(alone) + 2048 * ledger.block_bytes
    assert crossed_bytes <= WIRE_OVERHEAD * (dirty_bytes + intents) + CHATTER_BYTES
    assert_promises_kept(pair, pair.beta, ledger)


def test_short_cuts_of_the_wire_reach_no_client(
    counted: tuple[Pair, CountingProxy], ledger: Ledger
) -> None:
    pair, wire = counted
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri()) as client:
        for _ in range(5):
            client.wait_acknowledged(150)
            cut_and_back(wire)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)


def test_distance_slows_writes_down_and_loses_none(
    counted: tuple[Pair, CountingProxy], ledger: Ledger
) -> None:
    pair, wire = counted
    pair.start_in_sync(primary=pair.alpha)
    wire.delay_s = FAR_S
    with LedgerClient(ledger, pair.alpha.uri(), region=range(1024), flush_every=30) as client:
        client.wait_acknowledged(100)
        cut_and_back(wire)
        client.wait_acknowledged(100)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)


def test_idle_cut_starts_no_new_generation(
    counted: tuple[Pair, CountingProxy], ledger: Ledger
) -> None:
    pair, wire = counted
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri()) as client:
        client.wait_acknowledged(100)
    before = pair.alpha.volume()["generation"]
    cut_and_back(wire)
    assert_promises_kept(pair, pair.alpha, ledger)
    assert pair.alpha.volume()["generation"] == before


def test_parted_nodes_go_on_on_one_side_only(
    counted: tuple[Pair, CountingProxy], ledger: Ledger
) -> None:
    pair, wire = counted
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri()) as client:
        client.wait_acknowledged(200)
        wire.part()
        client.wait_acknowledged(200)
        refused = pair.beta.ctl("promote", "r0")
        assert refused.returncode == 5, refused.stderr
        wire.heal()
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)

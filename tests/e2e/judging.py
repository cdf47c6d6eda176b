"""How a scenario is judged: promises kept, both copies byte-equal, what a resync cost."""

from __future__ import annotations

from tests.daemon import Node
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient, judge_over_nbd
from tests.pair import Pair

#: A resync may put this many bytes on the wire for each byte of dirty blocks and intents.
WIRE_OVERHEAD = 1.05


def sent_in_resyncs(node: Node) -> int:
    """Bytes that this node's worker put on the wire for resyncs and settles since it started."""
    return int(node.peer_of()["resync_sent_bytes_total"])


def assert_no_error_reached(client: LedgerClient) -> None:
    """Freeze, don't fail: a client may lose its connection, but never get an error for a write."""
    assert client.error_replies == []


def assert_promises_kept(pair: Pair, primary: Node, ledger: Ledger, volume: str = "r0") -> None:
    """Wait until in sync; judge what the export shows and what both backing files hold."""
    pair.wait_in_sync(volume)
    judge_over_nbd(ledger, primary.uri(volume))
    for node in pair.nodes:
        ledger.judge_file(node.backing(volume))
    pair.assert_copies_equal(volume)

"""How two copies come together the first time: known zeroes, and an image that is adopted."""

from __future__ import annotations

import random
from pathlib import Path

from tests.daemon import DEFAULT_SIZE_BYTES, MIB, Node
from tests.e2e.judging import WIRE_OVERHEAD, assert_promises_kept, sent_in_resyncs
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient, judge_over_nbd
from tests.pair import Pair

#: Room for metadata blocks of the file systems that hold the backing files.
ALLOCATION_SLACK_BYTES = 2 * MIB
BLOCK_BYTES = 4096


def allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def make_image_with_holes(path: Path, regions: list[tuple[int, int]]) -> None:
    """Write random data to the given (offset, length) regions of an otherwise sparse image."""
    generator = random.Random(5)
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as image:
        image.truncate(DEFAULT_SIZE_BYTES)
        for offset, length in regions:
            image.seek(offset)
            image.write(generator.randbytes(length))


def test_two_fresh_volumes_are_in_sync_without_a_copy(pair: Pair) -> None:
    pair.start()
    pair.wait_in_sync()
    for node in pair.nodes:
        assert allocated_bytes(node.backing()) <= ALLOCATION_SLACK_BYTES
        assert node.volume()["role"] == "secondary"
        assert not node.volume()["serving"]
    assert sum(sent_in_resyncs(node) for node in pair.nodes) == 0


def test_fresh_pair_mirrors_every_acknowledged_write(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(
        ledger, pair.alpha.uri(), flush_every=50, fua_every=11, zero_every=13
    ) as client:
        client.wait_acknowledged(1500)
    assert client.error_replies == []
    assert client.connection_losses == []
    # No waiting here: what was acknowledged is in both copies already.
    for node in pair.nodes:
        ledger.judge_file(node.backing())
    pair.assert_copies_equal()


def test_writes_smaller_than_a_block_and_overlapping_leave_equal_copies(pair: Pair) -> None:
    pair.start_in_sync(primary=pair.alpha)
    ledger = Ledger(DEFAULT_SIZE_BYTES // 512, seed=21, block_bytes=512)
    with LedgerClient(
        ledger, pair.alpha.uri(), region=range(4096), run_blocks=40, overlapping=True, zero_every=5
    ) as client:
        client.wait_acknowledged(2000)
    assert client.error_replies == []
    judge_over_nbd(ledger, pair.alpha.uri())
    for node in pair.nodes:
        ledger.judge_file(node.backing())
    pair.assert_copies_equal()


def test_image_of_unknown_origin_is_refused_until_adopted(pair: Pair) -> None:
    make_image_with_holes(pair.alpha.backing(), [(0, MIB)])
    before = pair.alpha.backing().read_bytes()
    pair.start()
    volume = pair.alpha.wait_closed()
    assert volume["problem"]["code"] == "BACKING_UNKNOWN"
    assert "volume adopt" in volume["problem"]["next"]
    refused = pair.alpha.ctl("promote", "r0")
    assert refused.returncode == 5, refused.stderr
    assert "volume adopt" in refused.stderr
    assert pair.alpha.backing().read_bytes() == before


def test_adopted_image_is_copied_and_its_holes_stay_holes(pair: Pair) -> None:
    regions = [(0, MIB), (20 * MIB + 8192, 2 * MIB), (DEFAULT_SIZE_BYTES - 65536, 65536)]
    make_image_with_holes(pair.alpha.backing(), regions)
    pair.start()
    pair.alpha.ctl_ok("volume", "adopt", "r0")
    pair.wait_in_sync()
    pair.assert_copies_equal()
    data_bytes = sum(length for _, length in regions)
    assert allocated_bytes(pair.beta.backing()) <= data_bytes + ALLOCATION_SLACK_BYTES
    # Digests and holes are small: nothing near the size of the volume crosses the wire.
    assert sent_in_resyncs(pair.alpha) <= WIRE_OVERHEAD * data_bytes + MIB
    pair.alpha.promote()
    assert pair.alpha.wait_primary()["disk_state"] == "up-to-date"


def test_discarded_copy_is_overwritten_by_the_adopted_one(pair: Pair) -> None:
    make_image_with_holes(pair.alpha.backing(), [(0, MIB)])
    make_image_with_holes(pair.beta.backing(), [(30 * MIB, 3 * MIB)])
    pair.start()
    for node in pair.nodes:
        node.wait_closed()
    pair.alpha.ctl_ok("volume", "adopt", "r0")
    pair.beta.ctl_ok("volume", "adopt", "r0", "--discard", "--confirm", "r0")
    pair.wait_in_sync()
    pair.assert_copies_equal()
    assert_holds_data_at(pair.beta, 0)


def assert_holds_data_at(node: Node, offset: int) -> None:
    with node.backing().open("rb") as image:
        image.seek(offset)
        assert image.read(BLOCK_BYTES) != bytes(BLOCK_BYTES)


def test_replaced_disk_gets_the_data_once(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri(), region=range(2048)) as client:
        client.wait_acknowledged(300)
    pair.beta.stop()
    pair.beta.backing().unlink()
    pair.beta.start()
    closed = pair.beta.wait_closed()
    assert closed["problem"]["code"] == "BACKING_MISSING"
    assert not pair.beta.backing().exists()
    before = sent_in_resyncs(pair.alpha)
    with pair.beta.backing().open("wb") as image:
        image.truncate(pair.beta.volumes[0].size_bytes)
    pair.beta.ctl_ok("volume", "adopt", "r0", "--discard", "--confirm", "r0")
    assert_promises_kept(pair, pair.alpha, ledger)
    data_bytes = len(ledger.blocks_written_since(0)) * ledger.block_bytes
    assert sent_in_resyncs(pair.alpha) - before <= WIRE_OVERHEAD * data_bytes + MIB

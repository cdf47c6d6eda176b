"""A disk says EIO under either node: frozen or left behind, never two copies that differ unmarked.

The primary's copy fails: its clients are closed without an error, and its peer needs no vouching to
take over. The secondary's copy fails: it leaves the set, and the primary's clients notice nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import libnbd
from tests.daemon import Json, Node, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.failing_disk import FailingDisk
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient, judge_over_nbd
from tests.pair import Pair

Faulty = tuple[Pair, FailingDisk]
LOAD: dict[str, Any] = {"region": range(2048), "flush_every": 30, "zero_every": 17}


@pytest.fixture
def faulty(small_pair: Pair) -> Iterator[Faulty]:
    """A pair in sync; the disk of alpha is one that can be told to fail."""
    pair = small_pair
    with FailingDisk.make(pair.folder / "disk") as disk:
        pair.alpha.disk_folder = disk.mount
        pair.alpha.write_config()
        try:
            pair.start_in_sync()
            yield pair, disk
        finally:
            # Before the disk goes, so that no process waits for it.
            pair.alpha.clean_up()


def has_failed(volume: Json) -> bool:
    return bool(volume["disk_state"] == "failed")


def restart_healed(node: Node, disk: FailingDisk) -> None:
    """What the status says to do: mend the disk, restart repld."""
    disk.heal()
    assert node.stop() == 0
    node.start()


def read_somewhere(node: Node) -> str:
    """Send one read; return what became of it: "data", "closed" or the error."""
    nbd = libnbd.load()
    handle = nbd.NBD()
    handle.connect_uri(node.uri())
    try:
        handle.pread(4096, 0)
    except nbd.Error as error:
        return "closed" if handle.aio_is_dead() or handle.aio_is_closed() else str(error)
    return "data"


@pytest.mark.parametrize("kind", ["write", pytest.param("sync", marks=pytest.mark.slow), "read"])
def test_primary_whose_disk_fails_hands_over_without_vouching(
    faulty: Faulty, small_ledger: Ledger, kind: str
) -> None:
    pair, disk = faulty
    pair.alpha.promote()
    client = LedgerClient(small_ledger, pair.alpha.uri(), **LOAD).start()
    client.wait_acknowledged(200)
    disk.fail(kind)
    if kind == "read":
        assert read_somewhere(pair.alpha) == "closed"
    failed = pair.alpha.wait_volume(has_failed, "says that its disk failed")
    client.join()
    assert_no_error_reached(client)
    assert not failed["serving"]
    assert "the local copy failed" in failed["why"] and failed["next"]
    assert pair.alpha.ctl("promote", "r0").returncode == 5

    pair.beta.promote()
    with LedgerClient(small_ledger, pair.beta.uri(), seed=1, **LOAD) as successor:
        successor.wait_acknowledged(100)
        restart_healed(pair.alpha, disk)
        pair.wait_in_sync()
        successor.wait_acknowledged(50)
    assert_no_error_reached(successor)
    assert_promises_kept(pair, pair.beta, small_ledger)


@pytest.mark.parametrize("kind", [pytest.param("write", marks=pytest.mark.slow), "sync"])
def test_secondary_whose_disk_fails_leaves_and_the_primary_goes_on(
    faulty: Faulty, small_ledger: Ledger, kind: str
) -> None:
    pair, disk = faulty
    pair.beta.promote()
    with LedgerClient(small_ledger, pair.beta.uri(), **LOAD) as client:
        client.wait_acknowledged(100)
        disk.fail(kind)
        pair.alpha.wait_volume(has_failed, "says that its disk failed")
        client.wait_acknowledged(100)
        assert not pair.beta.peer_of()["member"]
        refused = pair.alpha.ctl("promote", "r0", "--peer-dead", "beta")
        assert refused.returncode == 5, refused.stderr
        restart_healed(pair.alpha, disk)
        pair.wait_in_sync()
        client.wait_acknowledged(50)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.beta, small_ledger)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_failed_copy_stays_marked_when_both_nodes_are_killed(
    faulty: Faulty, small_ledger: Ledger, role: str
) -> None:
    pair, disk = faulty
    primary = pair.alpha if role == "primary" else pair.beta
    primary.promote()
    client = LedgerClient(small_ledger, primary.uri(), **LOAD).start()
    client.wait_acknowledged(200)
    disk.fail("write")
    pair.alpha.wait_volume(has_failed, "says that its disk failed")
    for node in pair.nodes:
        node.kill()
    client.join()
    disk.heal()
    pair.start()
    # Whoever was primary: only the whole copy may be served, and it needs no vouching for it.
    pair.wait_in_sync()
    wait_for(lambda: pair.beta.ctl("promote", "r0").returncode == 0, what="beta is promoted")
    judge_over_nbd(small_ledger, pair.beta.uri())
    assert_no_error_reached(client)
    assert_promises_kept(pair, pair.beta, small_ledger)


@pytest.mark.slow
def test_hanging_disk_of_the_secondary_costs_the_primary_a_pause(
    faulty: Faulty, small_ledger: Ledger
) -> None:
    pair, disk = faulty
    pair.beta.promote()
    with LedgerClient(small_ledger, pair.beta.uri(), **LOAD) as client:
        client.wait_acknowledged(100)
        disk.hang()
        client.wait_acknowledged(100)
        assert not pair.beta.peer_of()["member"]
        disk.resume()
        pair.wait_in_sync()
        client.wait_acknowledged(50)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.beta, small_ledger)


@pytest.mark.slow
def test_hanging_disk_of_the_primary_is_taken_over_and_released(
    faulty: Faulty, small_ledger: Ledger
) -> None:
    pair, disk = faulty
    pair.alpha.promote()
    client = LedgerClient(small_ledger, pair.alpha.uri(), **LOAD).start()
    client.wait_acknowledged(100)
    disk.hang()
    pair.beta.wait_alone()
    pair.beta.promote("r0", "--peer-dead", "alpha")
    with LedgerClient(small_ledger, pair.beta.uri(), seed=1, **LOAD) as successor:
        successor.wait_acknowledged(100)
        disk.resume()
        client.join()
        pair.wait_in_sync()
        successor.wait_acknowledged(50)
    for one in (client, successor):
        assert_no_error_reached(one)
    assert_promises_kept(pair, pair.beta, small_ledger)


@pytest.mark.slow
@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_metadata_that_cannot_be_synced_stops_that_copy_and_loses_nothing(
    small_pair: Pair, small_ledger: Ledger, role: str
) -> None:
    pair = small_pair
    primary = pair.alpha if role == "primary" else pair.beta
    with FailingDisk.make(pair.folder / "disk") as disk:
        (disk.mount / "state").mkdir()
        pair.alpha.state_dir.symlink_to(disk.mount / "state")
        try:
            pair.start_in_sync(primary=primary)
            with LedgerClient(small_ledger, primary.uri(), reconnect=True, **LOAD) as client:
                client.wait_acknowledged(100)
                disk.fail("sync")
                problem = pair.alpha.wait_closed()["problem"]
                assert "Input/output error" in problem["what"], problem
                if role == "secondary":
                    client.wait_acknowledged(100)
                restart_healed(pair.alpha, disk)
                client.wait_acknowledged(100)
                pair.wait_in_sync()
            assert_no_error_reached(client)
            assert_promises_kept(pair, primary, small_ledger)
        finally:
            pair.alpha.clean_up()

"""A full filesystem fails nothing and forgets nothing: what needs room waits (design §7).

The backing files lie on small tmpfs of their own, filled up by a file beside them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.daemon import MIB, Json, Node, VolumeSpec, wait_for
from tests.e2e.conftest import BLOCK_BYTES
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient, judge_over_nbd
from tests.pair import Pair
from tests.small_disk import DISK_BYTES, fill, make_room, small_disk

SIZE_BYTES = 16 * MIB


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two nodes with their backing files on small disks of their own."""
    with contextlib.ExitStack() as disks, Pair.make((VolumeSpec(size_bytes=SIZE_BYTES),)) as pair:
        for node in pair.nodes:
            node.disk_folder = disks.enter_context(small_disk(node.folder / "disk"))
            node.write_config()
        yield pair


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(SIZE_BYTES // BLOCK_BYTES, seed=21, block_bytes=BLOCK_BYTES)


def is_full(volume: Json) -> bool:
    # A volume that is still being opened shows less.
    return bool(volume.get("disk_full"))


def refuses(node: Node, code: str) -> bool:
    (peer,) = node.volume()["peers"]
    return bool(peer["connection_state"] == "refused" and peer["refusal_code"] == code)


def test_full_primary_freezes_and_goes_on_when_there_is_room(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    fill(pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri(), flush_every=50) as client:
        frozen = pair.alpha.wait_volume(is_full, "is full")
        assert frozen["role"] == "primary" and frozen["frozen"], frozen
        assert "room" in frozen["next"], frozen
        # It is well otherwise: the peer is in sync, and nothing was failed.
        pair.wait_in_sync()
        make_room(pair.alpha)
        client.wait_acknowledged(2000)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert not is_full(pair.alpha.volume())
    assert_promises_kept(pair, pair.alpha, ledger)


def test_full_primary_is_demoted_and_the_peer_promoted_without_vouching(
    pair: Pair, ledger: Ledger
) -> None:
    pair.start_in_sync(primary=pair.alpha)
    fill(pair.alpha)
    client = LedgerClient(ledger, pair.alpha.uri(), flush_every=50).start()
    pair.alpha.wait_volume(is_full, "is full")
    refused = pair.alpha.ctl("demote", "r0")
    assert refused.returncode == 5 and "DEMOTE_CLIENTS" in refused.stderr
    pair.alpha.ctl_ok("demote", "r0", "--drop-clients")
    client.join()
    assert_no_error_reached(client)
    pair.wait_in_sync()
    pair.beta.promote()
    judge_over_nbd(ledger, pair.beta.uri())
    make_room(pair.alpha)
    with LedgerClient(ledger, pair.beta.uri(), seed=1) as second:
        second.wait_acknowledged(1500)
    assert_no_error_reached(second)
    assert_promises_kept(pair, pair.beta, ledger)


def test_full_secondary_is_left_behind_and_comes_back_by_itself(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    fill(pair.beta)
    with LedgerClient(ledger, pair.alpha.uri(), flush_every=50) as client:
        pair.beta.wait_volume(is_full, "is full")
        wait_for(lambda: refuses(pair.alpha, "DISK_FULL"), what="alpha says that beta is full")
        before = client.acknowledged
        client.wait_acknowledged(before + 500)
        why = pair.alpha.volume()
        assert "no space left" in why["why"] and "beta" in why["next"], why
        make_room(pair.beta)
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)


def test_reserved_backing_never_runs_out_of_room(pair: Pair, ledger: Ledger) -> None:
    for node in pair.nodes:
        node.write_config(node.config_text() + "preallocate = true\n")
    pair.start_in_sync(primary=pair.alpha)
    assert pair.alpha.volume()["space"]["needed_bytes"] == 0
    fill(pair.alpha, DISK_BYTES - 64 * 1024)
    with LedgerClient(ledger, pair.alpha.uri(), zero_every=7) as client:
        client.wait_acknowledged(3000)
        assert not is_full(pair.alpha.volume())
    assert_promises_kept(pair, pair.alpha, ledger)


def test_little_space_is_said_before_it_is_gone(pair: Pair) -> None:
    pair.start_in_sync(primary=pair.alpha)
    assert pair.alpha.ctl("status", "--check").returncode == 0
    fill(pair.alpha, DISK_BYTES - MIB)
    checked = pair.alpha.ctl("status", "--check")
    assert checked.returncode == 10 and "little space" in checked.stdout, checked


@pytest.mark.slow
def test_both_disks_full_at_once_lose_nothing(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    for node in pair.nodes:
        fill(node)
    with LedgerClient(ledger, pair.alpha.uri(), flush_every=50) as client:
        for node in pair.nodes:
            node.wait_volume(is_full, "is full")
        make_room(pair.alpha)
        client.wait_acknowledged(client.acknowledged + 500)
        make_room(pair.beta)
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert_promises_kept(pair, pair.alpha, ledger)


@pytest.mark.slow
def test_full_primary_killed_with_writes_waiting_settles_on_return(
    pair: Pair, ledger: Ledger
) -> None:
    pair.start_in_sync(primary=pair.alpha)
    fill(pair.alpha)
    client = LedgerClient(ledger, pair.alpha.uri(), flush_every=50).start()
    pair.alpha.wait_volume(is_full, "is full")
    pair.alpha.kill()
    client.join()
    pair.alpha.start()
    # What beta has of the writes in flight finds no room here either.
    volume = pair.alpha.wait_volume(is_full, "is full")
    assert "make room" in volume["next"]
    make_room(pair.alpha)
    pair.alpha.wait_primary()
    with LedgerClient(ledger, pair.alpha.uri(), seed=2) as second:
        second.wait_acknowledged(500)
    assert_no_error_reached(second)
    assert_promises_kept(pair, pair.alpha, ledger)


@pytest.mark.slow
def test_full_primary_can_be_stopped_and_resumes(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    fill(pair.alpha)
    client = LedgerClient(ledger, pair.alpha.uri()).start()
    pair.alpha.wait_volume(is_full, "is full")
    assert pair.alpha.stop() == 0
    client.join()
    assert_no_error_reached(client)
    make_room(pair.alpha)
    pair.alpha.start()
    pair.alpha.wait_primary()
    assert_promises_kept(pair, pair.alpha, ledger)

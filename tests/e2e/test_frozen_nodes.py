"""A node whose processes are stopped and later run on: silent meanwhile, and no danger afterwards.

SIGSTOP is the worst kind of absence: the sockets stay open, nothing is refused, and when it ends
the process goes on in the middle of what it did, with requests of the past in its buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests import libnbd
from tests.daemon import Node, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair

#: So that a test need not wait for the default of 5 s.
PEER_TIMEOUT_S = 2.0
#: Regions of blocks: for the client of the frozen primary, for its successor's, and one that both
#: know, which the successor overwrites.
OF_THE_PAST = range(4096)
OF_THE_PRESENT = range(4096, 8192)
KNOWN_BLOCK = 9000
BLOCK = 4096


@pytest.fixture
def hasty() -> Iterator[Pair]:
    """A pair that gives a silent peer up soon."""
    with Pair.make(timeouts={"peer_timeout_s": PEER_TIMEOUT_S}) as pair:
        yield pair


def test_frozen_secondary_is_dropped_and_catches_up_when_it_runs_again(
    hasty: Pair, ledger: Ledger
) -> None:
    pair = hasty
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri(), flush_every=50) as client:
        client.wait_acknowledged(200)
        pair.beta.freeze()
        client.wait_acknowledged(300)
        pair.alpha.wait_alone()
        pair.beta.thaw()
        pair.wait_in_sync()
        client.wait_acknowledged(100)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)


class LateReader:
    """A client that sends one read to a node that cannot answer it now."""

    def __init__(self, node: Node) -> None:
        self._handle = libnbd.load().NBD()
        self._handle.connect_uri(node.uri())
        self._buffer: Any = None
        self._cookie = 0

    def ask(self) -> None:
        """Send the read and return at once."""
        self._buffer = libnbd.load().Buffer(BLOCK)
        self._cookie = self._handle.aio_pread(self._buffer, KNOWN_BLOCK * BLOCK)
        wait_for(lambda: self._handle.poll(0) or not self._handle.aio_get_direction() & 2)

    def answer(self) -> bytes:
        """Return what the read brought, or nothing if the connection was closed instead."""
        nbd = libnbd.load()
        try:
            while not self._handle.aio_command_completed(self._cookie):
                if self._handle.poll(30_000) == 0:
                    raise AssertionError("neither an answer nor an end of the connection")
        except nbd.Error:
            return b""
        return bytes(self._buffer.to_bytearray())


def overwrite(node: Node, fill: int) -> None:
    handle = libnbd.load().NBD()
    handle.connect_uri(node.uri())
    handle.pwrite(bytes([fill]) * BLOCK, KNOWN_BLOCK * BLOCK)
    handle.shutdown()


@pytest.mark.parametrize("rounds", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_frozen_primary_acknowledges_nothing_that_its_successor_lacks(
    hasty: Pair, ledger: Ledger, rounds: int
) -> None:
    pair = hasty
    pair.start_in_sync(primary=pair.alpha)
    zombie = pair.alpha
    for turn in range(rounds):
        heir = pair.other(zombie)
        past = LedgerClient(
            ledger, zombie.uri(), seed=2 * turn, region=OF_THE_PAST, flush_every=20
        ).start()
        past.wait_acknowledged(200)
        reader = LateReader(zombie)
        zombie.freeze()
        reader.ask()
        heir.wait_alone()
        heir.promote("r0", "--peer-dead", zombie.name)
        overwrite(heir, turn + 1)
        with LedgerClient(ledger, heir.uri(), seed=2 * turn + 1, region=OF_THE_PRESENT) as present:
            present.wait_acknowledged(200)
            zombie.thaw()
            assert reader.answer() in (b"", bytes([turn + 1]) * BLOCK), "it served stale data"
            past.join()
            zombie.wait_volume(lambda v: v["role"] == "secondary", "is secondary")
            present.wait_acknowledged(50)
        for client in (past, present):
            assert_no_error_reached(client)
        overwrite(heir, 0)
        assert_promises_kept(pair, heir, ledger)
        zombie = heir


@pytest.mark.slow
def test_zombie_that_cannot_reach_its_successor_is_found_out_later(ledger: Ledger) -> None:
    """Nobody can tell it in time that it was replaced: then the next contact says split-brain."""
    with Pair.make(counted=True, timeouts={"peer_timeout_s": PEER_TIMEOUT_S}) as pair:
        assert pair.wire is not None
        pair.start_in_sync(primary=pair.alpha)
        theirs = Ledger(ledger.block_count, seed=1)
        with LedgerClient(ledger, pair.alpha.uri(), region=OF_THE_PAST) as past:
            past.wait_acknowledged(100)
            pair.alpha.freeze()
            pair.beta.wait_alone()
            pair.wire.part()
            pair.beta.promote("r0", "--peer-dead", "alpha")
            with LedgerClient(theirs, pair.beta.uri(), region=OF_THE_PRESENT) as present:
                present.wait_acknowledged(50)
                pair.alpha.thaw()
                # It waits for its peer, then goes on like any primary that is cut off.
                past.wait_acknowledged(50)
                pair.wire.heal()
                for node in pair.nodes:
                    node.wait_volume(
                        lambda v: v["peers"][0]["connection_state"] == "split-brain",
                        "says split-brain",
                    )
        for client in (past, present):
            assert_no_error_reached(client)
        pair.beta.ctl_ok("demote", "r0", "--drop-clients")
        pair.beta.ctl_ok("volume", "adopt", "r0", "--discard", "--confirm", "r0")
        assert_promises_kept(pair, pair.alpha, ledger)

"""A network that loses one direction or is slow: nothing is lost, and slow comes before dropped.

Each node is a machine of its own (`machines.py`), so that the kernel loses and shapes packets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.daemon import Place, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.e2e.machines import ADDRESSES, Machine, two_machines
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair
from tests.probes import no_network_faults

PEER_TIMEOUT_S = 2.0
PATIENT_S = 20.0
#: A block of 4 KiB takes a sixtieth of a second.
SLOW_KBIT_PER_S = 2000

Networked = tuple[Pair, dict[str, Machine]]


@contextmanager
def networked_pair(peer_timeout_s: float) -> Iterator[Networked]:
    """A pair in sync, alpha primary, each node on a machine of its own."""
    if no_network_faults():
        pytest.skip("this machine cannot drop or shape packets in a namespace")
    with two_machines() as machines:
        places = {name: Place(ADDRESSES[name], machine.pid) for name, machine in machines.items()}
        timeouts = {"peer_timeout_s": peer_timeout_s}
        with Pair.make(timeouts=timeouts, places=places) as pair:
            pair.start_in_sync(primary=pair.alpha)
            yield pair, machines


@pytest.fixture
def networked() -> Iterator[Networked]:
    """A pair that gives a silent peer up soon."""
    with networked_pair(PEER_TIMEOUT_S) as both:
        yield both


@pytest.fixture
def patient() -> Iterator[Networked]:
    """A pair that gives nobody up because this machine is busy."""
    with networked_pair(PATIENT_S) as both:
        yield both


def assert_said_slow_first(log: str) -> None:
    """The log names the peer as slow, and only later as dropped."""
    slow, dropped = log.find("beta is slow: "), log.find("going on without beta")
    assert 0 <= slow < dropped, log


@pytest.mark.parametrize("deaf", ["beta", pytest.param("alpha", marks=pytest.mark.slow)])
def test_one_way_loss_ends_in_a_timeout_and_a_resync(
    networked: Networked, ledger: Ledger, deaf: str
) -> None:
    pair, machines = networked
    with LedgerClient(ledger, pair.alpha.uri(), flush_every=30, region=range(4096)) as client:
        client.wait_acknowledged(100)
        machines[deaf].drop_what_arrives()
        client.wait_acknowledged(200)
        pair.alpha.wait_alone()
        assert_said_slow_first(pair.alpha.log_text())
        refused = pair.beta.ctl("promote", "r0")
        assert refused.returncode == 5, refused.stderr
        machines[deaf].take_what_arrives()
        pair.wait_in_sync()
        client.wait_acknowledged(50)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)


def test_slow_link_slows_writes_down_and_drops_nobody(patient: Networked, ledger: Ledger) -> None:
    pair, machines = patient
    before = pair.alpha.volume()["generation"]
    with LedgerClient(ledger, pair.alpha.uri(), run_blocks=2) as client:
        client.wait_acknowledged(100)
        machines["alpha"].limit_what_leaves(SLOW_KBIT_PER_S)
        client.wait_acknowledged(100)
        assert pair.alpha.peer_of()["in_sync"]
        machines["alpha"].unlimit_what_leaves()
        client.wait_acknowledged(100)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert pair.alpha.volume()["generation"] == before
    assert_promises_kept(pair, pair.alpha, ledger)


@pytest.mark.slow
def test_resync_over_a_slow_link_comes_to_its_end_under_load(
    patient: Networked, ledger: Ledger
) -> None:
    pair, machines = patient
    with LedgerClient(ledger, pair.alpha.uri(), region=range(256)) as client:
        pair.beta.kill()
        client.wait_acknowledged(200)
        machines["alpha"].limit_what_leaves(4 * SLOW_KBIT_PER_S)
        pair.beta.start()
        pair.wait_in_sync(deadline_s=120)
        client.wait_acknowledged(50)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)


@pytest.mark.slow
def test_direction_that_is_lost_again_and_again_loses_no_write(
    networked: Networked, ledger: Ledger
) -> None:
    pair, machines = networked
    with LedgerClient(ledger, pair.alpha.uri(), flush_every=30, region=range(4096)) as client:
        for turn in range(10):
            deaf = machines["beta" if turn % 3 else "alpha"]
            client.wait_acknowledged(60)
            deaf.drop_what_arrives()
            client.wait_acknowledged(10 if turn % 2 else 60)
            deaf.take_what_arrives()
            wait_for(lambda: pair.alpha.peer_of()["connection_state"] == "connected")
        pair.wait_in_sync()
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)

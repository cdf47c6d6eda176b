"""One worker dies or hangs: its own volume recovers by itself, the other volumes notice nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.daemon import DEFAULT_SIZE_BYTES, VolumeSpec, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair

#: Short, so that a stopped worker is replaced soon; the configuration takes 2 at least.
WORKER_TIMEOUT_S = 3.0


@pytest.fixture
def two_volumes() -> Iterator[Pair]:
    volumes = (VolumeSpec("r0"), VolumeSpec("r1"))
    with Pair.make(volumes, {"worker_timeout_s": WORKER_TIMEOUT_S}) as pair:
        yield pair


def book(seed: int) -> Ledger:
    return Ledger(DEFAULT_SIZE_BYTES // 4096, seed=seed)


def test_worker_killed_under_a_client_resumes_by_itself(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri(), reconnect=True, flush_every=50) as client:
        for _ in range(3):
            client.wait_acknowledged(300)
            dead = pair.alpha.signal_worker(signal.SIGKILL)
            client.wait_acknowledged(100)
            assert pair.alpha.wait_primary()["worker_pid"] != dead
    assert client.connections >= 4
    assert_no_error_reached(client)
    assert_promises_kept(pair, pair.alpha, ledger)


def test_secondary_worker_killed_costs_the_client_no_connection(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri()) as client:
        client.wait_acknowledged(300)
        pair.beta.signal_worker(signal.SIGKILL)
        client.wait_acknowledged(300)
        pair.wait_in_sync()
        client.wait_acknowledged(300)
    assert_no_error_reached(client)
    assert client.connection_losses == []
    assert_promises_kept(pair, pair.alpha, ledger)


def test_killed_worker_of_one_volume_leaves_the_other_undisturbed(two_volumes: Pair) -> None:
    pair = two_volumes
    pair.start_in_sync(primary=pair.alpha, volumes=("r0", "r1"))
    books = {"r0": book(30), "r1": book(31)}
    with (
        LedgerClient(books["r0"], pair.alpha.uri("r0"), reconnect=True) as disturbed,
        LedgerClient(books["r1"], pair.alpha.uri("r1")) as other,
    ):
        disturbed.wait_acknowledged(200)
        other.wait_acknowledged(200)
        pair.alpha.signal_worker(signal.SIGKILL, "r0")
        disturbed.wait_acknowledged(200)
        other.wait_acknowledged(200)
    assert disturbed.connections >= 2
    assert other.connections == 1
    assert other.connection_losses == []
    for client in (disturbed, other):
        assert_no_error_reached(client)
    for name, ledger in books.items():
        assert_promises_kept(pair, pair.alpha, ledger, name)


@pytest.mark.parametrize("role", ["primary", "secondary"])
def test_stopped_worker_of_one_volume_leaves_the_other_undisturbed(
    two_volumes: Pair, role: str
) -> None:
    pair = two_volumes
    pair.start_in_sync(primary=pair.alpha, volumes=("r0", "r1"))
    books = {"r0": book(32), "r1": book(33)}
    victim = pair.alpha if role == "primary" else pair.beta
    with (
        LedgerClient(books["r0"], pair.alpha.uri("r0"), reconnect=True) as disturbed,
        LedgerClient(books["r1"], pair.alpha.uri("r1")) as other,
    ):
        disturbed.wait_acknowledged(200)
        other.wait_acknowledged(200)
        stopped_s, acknowledged = time.monotonic(), other.acknowledged
        stopped = victim.signal_worker(signal.SIGSTOP, "r0")
        wait_for(lambda: not is_alive(stopped), what="the stopped worker is replaced")
        outage_s = time.monotonic() - stopped_s
        meanwhile = other.acknowledged - acknowledged
        other.wait_acknowledged(200)
        disturbed.wait_acknowledged(200)
    assert outage_s >= 1
    # One that waited for the outage's end would have had no more than what was in flight.
    assert meanwhile > 2 * other.depth
    assert other.connection_losses == []
    for client in (disturbed, other):
        assert_no_error_reached(client)
    for name, ledger in books.items():
        assert_promises_kept(pair, pair.alpha, ledger, name)


def test_control_commands_are_answered_while_a_worker_hangs(two_volumes: Pair) -> None:
    pair = two_volumes
    pair.start_in_sync(primary=pair.alpha, volumes=("r0", "r1"))
    stopped = pair.alpha.signal_worker(signal.SIGSTOP, "r0")
    try:
        assert pair.alpha.volume("r1")["role"] == "primary"
        pair.alpha.ctl_ok("demote", "r1")
        pair.beta.promote("r1")
        pair.beta.wait_primary("r1")
        wait_for(lambda: not is_alive(stopped), what="the stopped worker is replaced")
        pair.alpha.wait_primary("r0")
    finally:
        if is_alive(stopped):
            os.kill(stopped, signal.SIGCONT)


def test_workers_die_with_their_supervisor(pair: Pair) -> None:
    pair.start_in_sync()
    worker = pair.alpha.worker_pid()
    process = pair.alpha.process
    assert process is not None
    # The supervisor alone, not its group: the worker must notice by itself.
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(worker), what="the worker ends with its supervisor")
    process.wait(30)
    pair.alpha.process = None
    pair.alpha.start()
    pair.wait_in_sync()


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False

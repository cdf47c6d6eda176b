"""`[nbd.limits]` of a running `repld`: kept by the front and the worker, counted in the metrics."""

from __future__ import annotations

import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdserver.protocol import Reply
from tests.daemon import MIB, PORTS, Node, wait_for
from tests.nbdserver.wire import RawClient, go, option, read

LIMITS = ("[nbd.limits]", "clients = 1", "options = 8", "handshakes = 2", "unsent_bytes = 1")


@pytest.fixture
def metrics_port() -> int:
    return PORTS.take()


@pytest.fixture
def lone(metrics_port: int) -> Iterator[Node]:
    """A node without a peer that serves r0, with limits that are soon met."""
    folder = Path(tempfile.mkdtemp(prefix="repl-limits-"))
    node = Node("alpha", folder / "alpha", nbd_options=LIMITS)
    metrics = f'metrics = "127.0.0.1:{metrics_port}"\n\n[nbd]\n'
    node.write_config(node.config_text().replace("[nbd]\n", metrics, 1))
    node.start()
    node.wait_volume(lambda v: v["disk_state"] == "up-to-date", "is the one copy there is")
    node.promote()
    node.wait_primary()
    yield node
    survivors = node.clean_up()
    shutil.rmtree(folder)
    assert not survivors


def met(port: int) -> set[str]:
    """The limits that were met, by the metrics of the front and of r0."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    found = set()
    for line in lines:
        name, _, value = line.rpartition(" ")
        if "_limits_met_total{" in name and float(value):
            found.add(name.split('limit="')[1].split('"')[0])
    return found


def test_limits_of_the_configuration_are_kept_by_front_and_worker_and_counted(
    lone: Node, metrics_port: int
) -> None:
    with RawClient.to_unix(lone.nbd_socket) as chatty:
        chatty.greet().send(option(3) * 9)
        assert chatty.is_closed_by_server()
    with RawClient.to_unix(lone.nbd_socket) as client, RawClient.to_unix(lone.nbd_socket) as more:
        client.go(b"r0")
        wait_for(lambda: lone.volume()["clients"] == 1, what="the first client is there")
        more.greet().send(go(b"r0"))
        assert more.option_reply().type == Reply.ERR_POLICY
        with (
            RawClient.to_unix(lone.nbd_socket) as other,
            RawClient.to_unix(lone.nbd_socket) as beyond,
        ):
            other.greet()
            assert beyond.is_closed_by_server()
        client.send(read(0, 16 * MIB) * 4)
        expected = {"options", "clients", "handshakes", "unsent_bytes"}
        # A slow machine may meet two more: the reads pile up while they wait for a thread, and the
        # client that is left in its handshake comes to its deadline.
        slow = {"in_flight_bytes", "handshake_deadline_s"}
        wait_for(lambda: expected <= met(metrics_port), what="all of them are counted")
        assert met(metrics_port) <= expected | slow

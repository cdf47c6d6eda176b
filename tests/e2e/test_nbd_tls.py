"""NBD clients of a node over TLS: who gets in, to which volume, and what a lost process costs."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import libnbd
from tests.certificates import make_certificates, make_client
from tests.daemon import MIB, Node, VolumeSpec, wait_for
from tests.interop.targets import uri_with


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_certificates(tmp_path_factory.mktemp("tls"), "alpha")
    for name in ("ann", "bob"):
        make_client(folder, name)
    return folder


@pytest.fixture(scope="module")
def node(certificates: Path) -> Iterator[Node]:
    """A node alone with two volumes that it serves: r0 for everybody with a certificate, r1 for
    ann. Clear text is to be had on the Unix socket only."""
    with tempfile.TemporaryDirectory(prefix="repl-") as name:
        volumes = (
            VolumeSpec("r0", 16 * MIB),
            VolumeSpec("r1", 16 * MIB, ('clients = ["ann"]',)),
        )
        node = Node("alpha", Path(name) / "alpha", volumes, tls_folder=certificates)
        node.nbd_options = ('tls = "required"',)
        try:
            node.start()
            for volume in ("r0", "r1"):
                node.wait_volume(lambda v: v["promotable"]["ok"], "may be promoted", volume)
                node.promote(volume)
            yield node
        finally:
            print(node.log_tail())
            assert node.clean_up() == []


def connected(node: Node, client: Path, volume: str = "r0", *, over: str = "tcp") -> Any:
    handle = libnbd.load().NBD()
    handle.set_uri_allow_local_file(True)
    uri = node.tcp_uri(volume) if over == "tcp" else node.uri(volume)
    handle.connect_uri(uri_with(client, uri))
    assert handle.get_tls_negotiated()
    return handle


def test_volume_is_for_the_clients_that_it_names(node: Node, certificates: Path) -> None:
    ann, bob = certificates / "ann", certificates / "bob"
    for client, listed in ((ann, ["r0", "r1"]), (bob, ["r0"])):
        handle = libnbd.load().NBD()
        handle.set_uri_allow_local_file(True)
        handle.set_opt_mode(True)
        handle.connect_uri(uri_with(client, node.tcp_uri("")))
        found: list[str] = []

        def seen(name: str, _description: str, found: list[str] = found) -> int:
            found.append(name)
            return 0

        handle.opt_list(seen)
        handle.opt_abort()
        assert found == listed
    connected(node, ann, "r1").pwrite(b"hers", 0)
    with pytest.raises(libnbd.load().Error, match="policy prevents"):
        connected(node, bob, "r1")
    handle = connected(node, bob)
    assert handle.get_size() == 16 * MIB
    # The names that clients showed are told beside their addresses.
    wait_for(lambda: any("(bob)" in name for name in node.volume("r0")["client_names"]))


def test_unix_socket_needs_neither_tls_nor_a_certificate(node: Node, certificates: Path) -> None:
    plain = libnbd.load().NBD()
    plain.connect_uri(node.uri("r1"))
    plain.pwrite(b"local", 0)
    encrypted = connected(node, certificates / "bob", "r1", over="unix")
    assert bytes(encrypted.pread(5, 0)) == b"local"
    assert node.status()["nbd"]["tls"] == "required"


def test_dead_tls_process_costs_connections_and_nothing_else(
    node: Node, certificates: Path
) -> None:
    first, second = (connected(node, certificates / "ann") for _ in range(2))
    for handle in (first, second):
        handle.pwrite(b"kept", 0)
    assert node.process is not None
    worker = node.worker_pid()
    killed = tls_processes(node)[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: sum(lives(handle) for handle in (first, second)) == 1, what="one is gone")
    wait_for(lambda: node.volume("r0")["clients"] == 1, what="and forgotten")
    for _ in range(2):
        assert bytes(connected(node, certificates / "bob").pread(4, 0)) == b"kept"
    counted = node.status()["nbd"]
    assert (counted["tls_proxies_lost"], counted["tls_proxies"]) == (1, 2)
    assert counted["encrypted"] >= 4
    assert f"TLS proxy process {killed} ended" in node.log_text()
    assert "TLS_PROXY_ENDED" in node.ctl_ok("--json", "events")
    assert node.worker_pid() == worker


def test_stopped_node_leaves_no_tls_process_and_comes_back_with_everything(
    node: Node, certificates: Path
) -> None:
    handle = connected(node, certificates / "ann", "r1")
    handle.pwrite(b"stored" * 1000, 4096)
    assert len(tls_processes(node)) == 2
    # That every process of its group ends is asserted by `stop`.
    assert node.stop() == 0
    wait_for(lambda: not lives(handle), what="the client is told")
    node.start()
    node.wait_volume(lambda v: v["promotable"]["ok"], "may be promoted", "r1")
    node.promote("r1")
    assert bytes(connected(node, certificates / "ann", "r1").pread(6000, 4096)) == b"stored" * 1000


def tls_processes(node: Node) -> list[int]:
    assert node.process is not None
    found = []
    for entry in (
        Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split()
    ):
        if b"nbdserver.tls_proxy" in Path(f"/proc/{entry}/cmdline").read_bytes():
            found.append(int(entry))
    return found


def lives(handle: Any) -> bool:
    try:
        handle.pread(1, 0)
    except libnbd.load().Error:
        return False
    return True

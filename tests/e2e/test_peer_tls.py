"""Encrypted peers: the same promises, nothing readable on the wire, nobody else let in."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from repl.cli.main import main
from repl.link.preamble import Preamble, encode
from tests.daemon import Node, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Two nodes with certificates of one authority, and a proxy between them."""
    folder = tmp_path / "tls"
    assert main(["tls", "init", str(folder), "alpha", "beta"]) == 0
    with Pair.make(counted=True) as pair:
        for node in pair.nodes:
            node.tls_folder = folder
            node.write_config()
        yield pair


def failure_seen(node: Node, words: str) -> bool:
    return words in str(node.peer_of().get("last_failure")) or words in node.log_text()


def test_encrypted_pair_fails_over_and_resyncs(pair: Pair, ledger: Ledger) -> None:
    pair.start_in_sync(primary=pair.alpha)
    with LedgerClient(ledger, pair.alpha.uri(), flush_every=50, run_blocks=40) as client:
        client.wait_acknowledged(600)
        pair.beta.kill()
        client.wait_acknowledged(900)
        pair.beta.start()
        pair.wait_in_sync()
        client.wait_acknowledged(1200)
    assert_no_error_reached(client)
    assert_promises_kept(pair, pair.alpha, ledger)


def test_node_without_tls_is_refused_with_the_reason(pair: Pair) -> None:
    pair.start_in_sync()
    pair.alpha.kill()
    pair.alpha.tls_folder = None
    pair.alpha.write_config()
    pair.alpha.start()
    wait_for(lambda: failure_seen(pair.beta, "takes encrypted connections only"), what="refused")
    pair.alpha.kill()
    pair.alpha.tls_folder = pair.beta.tls_folder
    pair.alpha.write_config()
    pair.alpha.start()
    pair.wait_in_sync()


def test_certificate_of_another_authority_is_refused(pair: Pair, tmp_path: Path) -> None:
    pair.start_in_sync()
    assert main(["tls", "init", str(tmp_path / "other"), "alpha", "beta"]) == 0
    pair.alpha.kill()
    pair.alpha.tls_folder = tmp_path / "other"
    pair.alpha.write_config()
    pair.alpha.start()
    wait_for(lambda: failure_seen(pair.alpha, "not accepted"), what="alpha refuses beta")


def test_stranger_who_knows_the_names_changes_nothing(pair: Pair) -> None:
    """He reaches the port, says a true preamble, and then no TLS: the true peer never notices."""
    pair.start_in_sync(primary=pair.alpha)
    calls = []
    for _ in range(20):
        sock = socket.create_connection(("127.0.0.1", pair.beta.peer_port))
        sock.sendall(encode(Preamble("r0", "alpha", "beta", True)) + b"not a ClientHello")
        calls.append(sock)
    wait_for(lambda: failure_seen(pair.beta, "refused"), what="the stranger is refused")
    pair.wait_in_sync()
    connection = pair.alpha.peer_of()
    assert connection["connection_state"] == "connected"
    for sock in calls:
        with contextlib.suppress(OSError):
            sock.close()

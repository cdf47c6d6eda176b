"""Malformed bytes on either port end that connection only, and one line in the log says why."""

from __future__ import annotations

import random
import socket
import struct

import pytest

from tests.daemon import Node, wait_for
from tests.e2e.judging import assert_no_error_reached, assert_promises_kept
from tests.ledger import Ledger
from tests.ledger_client import LedgerClient
from tests.pair import Pair

CLOSE_DEADLINE_S = 30.0
#: NBD: the client's flags after the greeting (fixed newstyle, no zeroes), and an option's magic.
CLIENT_FLAGS = struct.pack(">I", 3)
OPTION_MAGIC = 0x49484156454F5054
OPTION_GO = 7


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=CLOSE_DEADLINE_S)


def assert_closed(sock: socket.socket) -> bytes:
    """Read until the other side closes (a reset counts); return what it said before."""
    said = b""
    try:
        while chunk := sock.recv(65536):
            said += chunk
    except ConnectionResetError:
        pass
    return said


def random_bytes(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


NBD_NONSENSE = {
    "random": random_bytes(1, 4096),
    "zeroes": bytes(4096),
    "a web request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "unknown client flags": struct.pack(">I", 0xFFFFFFFF),
    "another option magic": CLIENT_FLAGS + struct.pack(">QII", 0x1234, OPTION_GO, 0),
    "an option of four gigabytes": CLIENT_FLAGS
    + struct.pack(">QII", OPTION_MAGIC, OPTION_GO, 0xFFFFFFFF)
    + bytes(1024),
}


@pytest.fixture
def serving(pair: Pair) -> Node:
    pair.start_in_sync(primary=pair.alpha)
    return pair.alpha


def test_garbage_on_the_nbd_port_disturbs_no_other_client(
    pair: Pair, serving: Node, ledger: Ledger
) -> None:
    with LedgerClient(ledger, serving.uri()) as client:
        client.wait_acknowledged(100)
        for nonsense in NBD_NONSENSE.values():
            with connect(serving.nbd_port) as sock:
                sock.sendall(nonsense)
                sock.shutdown(socket.SHUT_WR)
                assert assert_closed(sock).startswith(b"NBDMAGIC")
            client.wait_acknowledged(20)
    assert client.connection_losses == []
    assert_no_error_reached(client)
    assert_promises_kept(pair, serving, ledger)


def test_garbage_after_the_handshake_ends_that_client_only(
    pair: Pair, serving: Node, ledger: Ledger
) -> None:
    with LedgerClient(ledger, serving.uri()) as client:
        client.wait_acknowledged(100)
        with connect(serving.nbd_port) as sock:
            negotiate(sock, b"r0")
            sock.sendall(random_bytes(2, 4096))
            assert_closed(sock)
        client.wait_acknowledged(100)
    assert client.connection_losses == []
    assert_promises_kept(pair, serving, ledger)


def test_garbage_on_the_peer_port_leaves_the_pair_in_sync(
    pair: Pair, serving: Node, ledger: Ledger
) -> None:
    with LedgerClient(ledger, serving.uri()) as client:
        client.wait_acknowledged(100)
        for node in pair.nodes:
            for seed, length in ((3, 1), (4, 256), (5, 100_000)):
                with connect(node.peer_port) as sock:
                    try:
                        sock.sendall(random_bytes(seed, length))
                        sock.shutdown(socket.SHUT_WR)
                    except OSError:
                        # Closed before everything was sent: that is the point.
                        continue
                    assert_closed(sock)
        client.wait_acknowledged(100)
        for node in pair.nodes:
            assert node.peer_of()["connection_state"] == "connected"
    assert client.connection_losses == []
    assert_promises_kept(pair, serving, ledger)


def test_garbage_leaves_its_reason_in_the_log_without_a_traceback(serving: Node) -> None:
    before = len(serving.log_text())
    with connect(serving.nbd_port) as sock:
        sock.sendall(NBD_NONSENSE["a web request"])
        assert_closed(sock)
    with connect(serving.peer_port) as sock:
        sock.sendall(random_bytes(6, 256))
        assert_closed(sock)

    def new_lines() -> list[str]:
        return serving.log_text()[before:].splitlines()

    wait_for(lambda: len(new_lines()) >= 2, what="both refusals are in the log")
    assert not [line for line in new_lines() if "Traceback" in line]


def test_export_of_a_secondary_is_refused_with_the_name_of_its_primary(
    pair: Pair, serving: Node
) -> None:
    pair.beta.wait_volume(lambda v: v["peers"][0]["role"] == "primary", "knows its primary")
    with connect(pair.beta.nbd_port) as sock:
        said = refusal_of_go(sock, b"r0")
    assert b"r0 is secondary on beta" in said
    assert b"alpha" in said


def test_unknown_export_is_refused_by_name(serving: Node) -> None:
    with connect(serving.nbd_port) as sock:
        assert b"r9" in refusal_of_go(sock, b"r9")


# -- just enough of an NBD client to say the wrong thing --------------------------------------


def receive_exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        chunk = sock.recv(length - len(data))
        assert chunk, f"closed after {len(data)} of {length} bytes"
        data += chunk
    return data


def ask_go(sock: socket.socket, export: bytes) -> tuple[int, bytes]:
    """Send GO and return the type and the payload of the last reply to it."""
    receive_exactly(sock, 18)
    name = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
    sock.sendall(CLIENT_FLAGS + struct.pack(">QII", OPTION_MAGIC, OPTION_GO, len(name)) + name)
    while True:
        _, _, kind, length = struct.unpack(">QIII", receive_exactly(sock, 20))
        payload = receive_exactly(sock, length)
        if kind != 3:  # NBD_REP_INFO: more to come
            return kind, payload


def negotiate(sock: socket.socket, export: bytes) -> None:
    kind, payload = ask_go(sock, export)
    assert kind == 1, payload  # NBD_REP_ACK


def refusal_of_go(sock: socket.socket, export: bytes) -> bytes:
    kind, payload = ask_go(sock, export)
    assert kind & 0x80000000, "the export was granted"
    return payload

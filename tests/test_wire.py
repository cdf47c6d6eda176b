"""The counting proxy: passes on everything, counts it, and cuts when told."""

from __future__ import annotations

import socket

from tests.daemon import PORTS, wait_for
from tests.wire import CountingProxy


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def receive(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length and (chunk := sock.recv(length - len(data))):
        data += chunk
    return data


def test_proxy_passes_on_and_counts_both_directions() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = PORTS.take()
        with CountingProxy(port, target.getsockname()[1]) as proxy, connect(port) as dialer:
            accepted, _ = target.accept()
            with accepted:
                dialer.sendall(b"x" * 300_000)
                assert receive(accepted, 300_000) == b"x" * 300_000
                accepted.sendall(b"answer")
                assert receive(dialer, 6) == b"answer"
                wait_for(lambda: proxy.received_bytes == 6, what="the answer is counted")
                assert proxy.sent_bytes == 300_000


def test_cut_closes_what_is_open_and_accepts_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = PORTS.take()
        with CountingProxy(port, target.getsockname()[1]) as proxy:
            with connect(port) as dialer:
                wait_for(lambda: proxy.connections == 1, what="it is connected")
                proxy.cut()
                assert dialer.recv(1) == b""
            proxy.part()
            with connect(port) as dialer:
                assert dialer.recv(1) == b""
            proxy.heal()
            with connect(port) as dialer:
                wait_for(lambda: proxy.connections == 2, what="it is connected again")
                dialer.sendall(b"y")
                wait_for(lambda: proxy.sent_bytes == 1, what="the byte is counted")

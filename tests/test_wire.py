"""The counting proxy: passes on everything, counts it; cuts, damages and delays when told."""

from __future__ import annotations

import contextlib
import socket

from tests.daemon import PORTS, wait_for
from tests.wire import CountingProxy, Way


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


def test_nothing_sent_after_a_part_crosses() -> None:
    """Else a peer has writes that a test believes to be on one side only."""
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = PORTS.take()
        with CountingProxy(port, target.getsockname()[1]) as proxy, connect(port) as dialer:
            accepted, _ = target.accept()
            with accepted:
                wait_for(lambda: proxy.connections == 1, what="it is connected")
                proxy.part()
                with contextlib.suppress(OSError):
                    dialer.sendall(b"late")
                assert receive(accepted, 4) == b""


def test_planned_faults_hit_exactly_the_byte_that_was_meant() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = PORTS.take()
        with CountingProxy(port, target.getsockname()[1]) as proxy, connect(port) as dialer:
            accepted, _ = target.accept()
            with accepted:
                proxy.flip_after(Way.FROM_DIALER, 2, 0)
                dialer.sendall(b"aaaa")
                assert receive(accepted, 4) == b"aa`a"
                proxy.wait_fault()
                accepted.sendall(b"bbbb")
                assert receive(dialer, 4) == b"bbbb"
                proxy.cut_after(Way.TO_DIALER, 3)
                accepted.sendall(b"cccc")
                assert receive(dialer, 4) == b"ccc"


def test_delayed_bytes_arrive_in_order_and_before_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as target:
        port = PORTS.take()
        with CountingProxy(port, target.getsockname()[1]) as proxy:
            proxy.delay_s = 0.05
            with connect(port) as dialer:
                accepted, _ = target.accept()
                with accepted:
                    dialer.sendall(b"first")
                    assert receive(accepted, 5) == b"first"
                    dialer.sendall(b"second")
                    dialer.shutdown(socket.SHUT_WR)
                    assert receive(accepted, 100) == b"second"

"""What a socket shows of what the kernel does with it, on real connections over loopback."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from repl.attach.kernel_socket import KernelSocket
from tests.attach.fake_kernel import fill
from tests.daemon import wait_for


@pytest.fixture
def ends() -> Iterator[tuple[KernelSocket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    link = KernelSocket(near, "there")
    yield link, far
    link.close()
    far.close()


def test_fresh_connection_is_neither_adopted_nor_dead(
    ends: tuple[KernelSocket, socket.socket],
) -> None:
    link, _ = ends
    assert not link.adopted
    assert not link.dead
    assert not link.buried


def test_send_timeout_of_the_dialling_is_not_taken_for_the_drivers() -> None:
    near, far = socket.socketpair()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 5, 0))
        link = KernelSocket(near, "there")
        assert not link.adopted
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", 5, 0))
        assert link.adopted


def test_shut_down_connection_is_dead_and_soon_buried(
    ends: tuple[KernelSocket, socket.socket],
) -> None:
    link, _ = ends
    link.sock.shutdown(socket.SHUT_RDWR)
    assert link.dead
    wait_for(lambda: link.buried, what="the end of the stream is acknowledged")


def test_connection_whose_server_closed_waits_for_the_driver(
    ends: tuple[KernelSocket, socket.socket],
) -> None:
    link, far = ends
    far.close()
    # Only one direction is closed: the driver will see that and shut down the other.
    assert not link.dead
    link.sock.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: link.dead and link.buried, what="both directions are closed")


def test_connection_with_unread_requests_is_not_buried_until_it_is_reset(
    ends: tuple[KernelSocket, socket.socket],
) -> None:
    link, far = ends
    fill(link.sock)
    link.sock.shutdown(socket.SHUT_RDWR)
    assert link.dead
    # The end of the stream stands behind what a frozen server does not read.
    assert not link.buried
    link.reset()
    assert link.buried
    wait_for(
        lambda: far.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET,
        what="the server's machine is told",
    )


def test_unix_socket_is_buried_with_its_shutdown() -> None:
    near, far = socket.socketpair()
    with near, far:
        link = KernelSocket(near, "/there")
        assert not link.dead
        near.shutdown(socket.SHUT_RDWR)
        assert link.dead
        assert link.buried

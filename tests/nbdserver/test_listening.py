"""Addresses: what is in use is said, what is stale is replaced, nothing else is touched."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from nbdserver.errors import ListenError
from nbdserver.limits import Limits
from nbdserver.listening import (
    client_address,
    listen_on_tcp,
    listen_on_unix,
    prepare_client_socket,
)


def test_socket_file_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen_on_unix(path, 0o600):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_stale_socket_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listen_on_unix(path).close()
    assert path.exists()
    with listen_on_unix(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_socket_that_somebody_serves_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listen_on_unix(path) as first:
        with pytest.raises(ListenError, match="another program") as raised:
            listen_on_unix(path)
        assert raised.value.address == str(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            # The probe of the second server comes first.
            first.accept()
            first.accept()


def test_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ListenError, match="not a socket"):
        listen_on_unix(path)
    assert path.read_text() == "data"


@pytest.mark.parametrize("path", [Path("/nonexistent/folder/s"), Path("/tmp") / ("x" * 120)])
def test_impossible_path_is_a_clear_error(path: Path) -> None:
    with pytest.raises(ListenError, match=r"cannot listen on /.*: "):
        listen_on_unix(path)


def test_busy_port_is_a_clear_error() -> None:
    (first,) = listen_on_tcp("127.0.0.1", 0)
    with first:
        port = first.getsockname()[1]
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{port}: another program"):
            listen_on_tcp("127.0.0.1", port)


def test_unknown_host_is_a_clear_error() -> None:
    with pytest.raises(ListenError, match=r"no\.such\.host\.invalid"):
        listen_on_tcp("no.such.host.invalid", 0)


def test_host_with_two_families_listens_on_both_with_one_port() -> None:
    sockets = listen_on_tcp("localhost", 0)
    ports = {each.getsockname()[1] for each in sockets}
    for each in sockets:
        each.close()
    assert len(ports) == 1


def test_client_socket_is_prepared_for_large_replies_without_delay() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
        with theirs, ours:
            prepare_client_socket(ours)
            assert not ours.getblocking()
            assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            port = theirs.getsockname()[1]
            assert client_address(ours) == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("half_open_s", "options"), [(60.0, (30, 10, 3, 60_000)), (1.0, (1, 1, 3, 1000))]
)
def test_kernel_is_told_when_a_silent_client_is_gone(
    half_open_s: float, options: tuple[int, int, int, int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
        with theirs, ours:
            prepare_client_socket(ours, Limits(half_open_s=half_open_s))
            names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            found = [ours.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names]
            assert tuple(found) == options
            prepare_client_socket(theirs, Limits(half_open_s=0))
            assert not theirs.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_unix_client_is_named_by_its_process(tmp_path: Path) -> None:
    with listen_on_unix(tmp_path / "s") as listening, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        ours, _ = listening.accept()
        with ours:
            prepare_client_socket(ours)
            assert client_address(ours) == f"unix pid {os.getpid()}"

"""Listening sockets: what is taken over, what is refused and how, what is removed at the end."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from repl.errors import ConfigInvalid, PermissionRefused, Refused
from repl.node.listeners import listen_tcp, listen_unix
from repl.node.state_dir import LOCK_NAME, StateDirLock
from tests.daemon import PORTS

SETTING = "[node] control"


def test_unix_listener_accepts_has_its_mode_and_is_removed_on_close(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "s"
    listener = listen_unix(str(path), 0o600, SETTING)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()
    listener.close()
    assert not path.exists()


def test_path_that_somebody_else_bound_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = listen_unix(str(path), 0o600, SETTING)
    path.rename(tmp_path / "elsewhere")
    second = listen_unix(str(path), 0o600, SETTING)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_listener_with_a_full_backlog_counts_as_alive(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as owner:
        owner.bind(path)
        owner.listen(0)
        waiting = []
        while True:
            client = socket.socket(socket.AF_UNIX)
            waiting.append(client)
            client.setblocking(False)
            try:
                client.connect(path)
            except BlockingIOError:
                break
        with pytest.raises(Refused) as failure:
            listen_unix(path, 0o600, SETTING)
        assert failure.value.code == "ADDRESS_IN_USE"
        for client in waiting:
            client.close()
    assert os.path.exists(path)


def test_link_to_a_socket_is_not_followed(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "real"))
    (tmp_path / "s").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigInvalid):
        listen_unix(str(tmp_path / "s"), 0o600, SETTING)
    assert (tmp_path / "real").exists()


def test_tcp_port_is_free_again_at_once_after_close() -> None:
    port = PORTS.take()
    for _ in range(3):
        listener = listen_tcp("127.0.0.1", port, "[nbd] listen")
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = listener.sock.accept()
            listener.close()
            accepted.close()


def test_ipv6_address_is_listened_on_and_written_in_brackets() -> None:
    port = PORTS.take()
    listener = listen_tcp("::1", port, "[node] listen")
    assert listener.text == f"[::1]:{port}"
    with socket.create_connection(("::1", port)):
        pass
    listener.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_address_that_is_not_of_this_machine_is_a_configuration_error(host: str) -> None:
    with pytest.raises(ConfigInvalid) as failure:
        listen_tcp(host, 10809, "[nbd] listen")
    assert host in failure.value.what
    assert "[nbd] listen" in failure.value.why


def test_folder_that_cannot_be_written_is_a_permission_error() -> None:
    with pytest.raises(PermissionRefused):
        listen_unix("/sys/repld-test/s", 0o600, SETTING)


def test_state_dir_is_free_again_after_close_and_the_lock_names_its_holder(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "state")
    for _ in range(2):
        lock = StateDirLock(path)
        assert (tmp_path / "state" / LOCK_NAME).read_text() == f"{os.getpid()}\n"
        with pytest.raises(Refused):
            StateDirLock(path)
        lock.close()

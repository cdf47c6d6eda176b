"""Readiness and watchdog messages reach the socket that systemd names, or nobody."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from repl.node.systemd import notify, watchdog_interval_s


@pytest.mark.parametrize("abstract", [False, True])
def test_message_reaches_the_named_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    address = f"@repl-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if abstract else address)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        assert notify("READY=1\nSTATUS=up")
        assert listener.recv(100) == b"READY=1\nSTATUS=up"


def test_absent_or_deaf_socket_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("READY=1")


@pytest.mark.parametrize(
    ("allowed_us", "pid", "expected_s"),
    [
        ("20000000", None, 10.0),
        ("20000000", "1", None),
        ("", None, None),
        ("soon", None, None),
        ("0", None, None),
    ],
)
def test_watchdog_is_fed_at_half_its_time_and_only_if_it_is_ours(
    monkeypatch: pytest.MonkeyPatch, allowed_us: str, pid: str | None, expected_s: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", allowed_us)
    monkeypatch.setenv("WATCHDOG_PID", pid or str(os.getpid()))
    assert watchdog_interval_s() == expected_s

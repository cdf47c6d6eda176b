"""`[nbd.limits]`: the names and bounds of `nbdserver.limits`, in a node's configuration."""

from __future__ import annotations

from pathlib import Path

from nbdserver.limits import Limits
from tests.test_config import NBD, load, problems


def test_limits_of_nbd_clients_are_named_and_bounded(tmp_path: Path) -> None:
    text = '[node]\nname = "alpha"\n' + NBD
    limits = """
[nbd.limits]
clients = 16
total_bytes = "64MiB"
handshake_deadline_s = 2.5
idle_s = 0
"""
    found = load(tmp_path, text + limits).nbd.limits
    assert (found.clients, found.total_bytes) == (16, 64 << 20)
    assert (found.handshake_deadline_s, found.idle_s) == (2.5, 0)
    assert load(tmp_path, text).nbd.limits == Limits()
    wrong = """
[nbd.limits]
clients = 0
total_bytes = "64 MB"
idle_s = true
handshakes = 2.5
option = 3
"""
    assert problems(tmp_path, text + wrong) == [
        "nbd.limits.option: unknown key; did you mean 'options'?",
        "nbd.limits.clients: clients must be 1 to 65536",
        "nbd.limits.total_bytes: total_bytes must be bytes, like \"64MiB\", not '64 MB'",
        'nbd.limits.idle_s: must be a number, or text like "64MiB"',
        "nbd.limits.handshakes: handshakes must be a whole number, not '2.5'",
    ]

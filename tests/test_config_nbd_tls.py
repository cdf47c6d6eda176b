"""`[nbd] tls` and the clients of volumes: what fits together, and what a public address needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbdserver.admission import TlsMode
from repl.cli.main import main
from tests.test_config import load, problems

NODE = '[node]\nname = "alpha"\n'
TLS = """
[tls]
certificate = "alpha.crt"
key = "alpha.key"
authority = "ca.crt"
"""
VOLUME = """
[volumes.r0]
size = "1GiB"
backing = "/srv/r0.img"
peers = []
"""


@pytest.fixture
def certified(tmp_path: Path) -> Path:
    assert main(["tls", "init", str(tmp_path), "alpha"]) == 0
    return tmp_path


def nbd(*lines: str) -> str:
    return "\n".join(["[nbd]", 'socket = "/run/repl/nbd.sock"', *lines, ""])


def test_clients_are_not_encrypted_unless_asked_for(certified: Path) -> None:
    found = load(certified, NODE + nbd() + TLS + VOLUME)
    assert found.nbd.tls is TlsMode.OFF
    assert found.volumes["r0"].clients == ()


@pytest.mark.parametrize("mode", ["allowed", "required"])
def test_tls_towards_clients_uses_the_node_certificates(certified: Path, mode: str) -> None:
    clients = 'clients = ["ann", "bob"]\n'
    found = load(certified, NODE + nbd(f'tls = "{mode}"') + TLS + VOLUME + clients)
    assert found.nbd.tls is TlsMode(mode)
    assert found.nbd.tls_verify_clients
    assert found.volumes["r0"].clients == ("ann", "bob")


def test_only_required_tls_opens_the_listener_beyond_loopback(certified: Path) -> None:
    public = 'listen = "0.0.0.0:10809"'
    assert load(certified, NODE + nbd(public, 'tls = "required"') + TLS)
    for mode in ("off", "allowed"):
        [line] = problems(certified, NODE + nbd(public, f'tls = "{mode}"') + TLS)
        assert line.startswith("nbd.listen: ")
        assert '[nbd] tls = "required"' in line
        assert load(certified, NODE + "insecure = true\n" + nbd(public, f'tls = "{mode}"') + TLS)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (NODE + nbd('tls = "required"'), "nbd.tls", "needs the certificates of a [tls] table"),
        (NODE + nbd('tls = "on"') + TLS, "nbd.tls", "must be 'off', 'allowed' or 'required'"),
        (
            NODE + nbd() + TLS + VOLUME + 'clients = ["ann"]',
            "volumes.r0.clients",
            'needs [nbd] tls = "required"',
        ),
        (
            NODE
            + nbd('tls = "required"', "tls_verify_clients = false")
            + TLS
            + VOLUME
            + 'clients = ["ann"]',
            "volumes.r0.clients",
            "needs [nbd] tls_verify_clients = true",
        ),
        (
            NODE + nbd('tls = "required"') + TLS + VOLUME + 'clients = [""]',
            "volumes.r0.clients",
            "is not empty",
        ),
        (
            NODE + nbd('tls = "required"') + TLS + VOLUME + 'clients = "ann"',
            "volumes.r0.clients",
            "must be a list",
        ),
    ],
)
def test_what_would_not_be_what_is_meant_is_refused(
    certified: Path, text: str, key: str, words: str
) -> None:
    [line] = problems(certified, text)
    assert line.startswith(f"{key}: ")
    assert words in line

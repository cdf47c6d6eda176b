"""Certificates for tests, made as an operator makes them, and bad ones."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

from repl.authority import Authority
from repl.cli.main import main


def make_certificates(folder: Path, *nodes: str) -> Path:
    """Put an authority and NAME.crt, NAME.key for each node, on loopback, into `folder`."""
    hosts = [
        part
        for node in nodes
        for part in ("--host", f"{node}=127.0.0.1", "--host", f"{node}=localhost")
    ]
    assert main(["tls", "init", str(folder), *nodes, *hosts]) == 0
    return folder


def make_client(folder: Path, name: str) -> Path:
    """A client's folder, of the authority in `folder`, as libnbd and qemu take it."""
    assert main(["tls", "client", str(folder), name]) == 0
    return folder / name


def expire(folder: Path, client: Path) -> None:
    """Replace a client's certificate by one whose time is over."""
    authority = Authority.load((folder / "ca.crt").read_bytes(), (folder / "ca.key").read_bytes())
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3)
    certificate, key = authority.certify_client(client.name, then, 1)
    (client / "client-cert.pem").write_bytes(certificate)
    (client / "client-key.pem").write_bytes(key)


def server_folder(folder: Path, node: str) -> Path:
    """A node's certificate under the names that qemu, nbdkit and `--tls-certificates` know."""
    made = folder / f"{node}-server"
    made.mkdir()
    shutil.copy(folder / f"{node}.crt", made / "server-cert.pem")
    shutil.copy(folder / f"{node}.key", made / "server-key.pem")
    shutil.copy(folder / "ca.crt", made / "ca-cert.pem")
    return made

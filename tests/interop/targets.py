"""What other projects' clients are run against: a file served by itself, and a live pair.

Both are one export named `r0` of the same size, over a Unix socket and over TCP, and both can
crash and come back at the same Unix socket while clients are attached. Either may require TLS and
a client's certificate; the folder with that, as libnbd and qemu take it, is its `client` then.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Protocol

from tests.daemon import DEFAULT_SIZE_BYTES, Node
from tests.nbdserver.serving import ServerProcess
from tests.pair import Pair

SIZE_BYTES = DEFAULT_SIZE_BYTES
NAME = "r0"


def listens(path: Path) -> bool:
    """Whether somebody accepts on the Unix socket at `path`; its file alone says nothing."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def uri_with(client: Path | None, uri: str) -> str:
    """The URI for a client that shows a certificate, or the same for one that does not."""
    if client is None:
        return uri
    return f"nbds{uri.removeprefix('nbd')}{'&' if '?' in uri else '?'}tls-certificates={client}"


class Target(Protocol):
    """One export. URIs without a name address the server."""

    #: Contexts that can be selected.
    contexts: tuple[str, ...]
    #: The certificate that clients show, over TLS.
    client: Path | None

    @property
    def path(self) -> Path:
        """The Unix socket."""

    @property
    def port(self) -> int:
        """On loopback."""

    def uri(self, name: str = NAME) -> str: ...

    def tcp_uri(self, name: str = NAME) -> str: ...

    def backing(self) -> Path:
        """The file behind it, byte for byte what clients see."""

    def crash_and_restart(self) -> None:
        """SIGKILL, and the same again, serving."""

    def settle(self) -> None:
        """After a test: whatever must hold when all is quiet."""


def qemu_objects(export: Target) -> tuple[str, ...]:
    """What a qemu tool needs before it can use `qemu_name` of this export."""
    if export.client is None:
        return ()
    return ("--object", f"tls-creds-x509,id=tls0,dir={export.client},endpoint=client")


def qemu_name(export: Target, over: str) -> str:
    """The export as a filename for qemu, "unix" or "tcp": its URIs know nothing of TLS."""
    if export.client is None:
        return export.uri() if over == "unix" else export.tcp_uri()
    server = {"type": "unix", "path": str(export.path)}
    if over == "tcp":
        server = {"type": "inet", "host": "127.0.0.1", "port": str(export.port)}
    node = {"driver": "nbd", "server": server, "export": NAME, "tls-creds": "tls0"}
    # Whatever the way, it is alpha's certificate.
    node["tls-hostname"] = "alpha"
    return "json:" + json.dumps({"file": node})


def nbdkit_plugin(export: Target) -> tuple[str, ...]:
    """nbdkit's nbd plugin as a client of this export."""
    if export.client is None:
        return ("nbd", f"uri={export.uri()}")
    tls = ("tls=require", f"tls-certificates={export.client}")
    return ("nbd", f"socket={export.path}", f"export={NAME}", *tls)


class FileTarget:
    """`python -m nbdserver FILE`."""

    contexts: tuple[str, ...] = ("base:allocation",)

    def __init__(
        self, folder: Path, server: Path | None = None, client: Path | None = None
    ) -> None:
        """Over TLS with folders of certificates, of the `server` and of its clients."""
        self.client = client
        self._tls = ["--tls=required", f"--tls-certificates={server}", "--tls-verify-clients"]
        if client is None:
            self._tls = []
        self._folder = folder
        self._file = folder / "disk.img"
        self._file.touch()
        os.truncate(self._file, SIZE_BYTES)
        self._server = self._started()

    def _started(self) -> ServerProcess:
        what = (f"--name={NAME}", "--description=a file")
        return ServerProcess(self._file, self._folder, *what, *self._tls)

    @property
    def path(self) -> Path:
        return self._server.socket

    @property
    def port(self) -> int:
        return self._server.port

    def uri(self, name: str = NAME) -> str:
        return uri_with(self.client, f"nbd+unix:///{name}?socket={self.path}")

    def tcp_uri(self, name: str = NAME) -> str:
        return uri_with(self.client, f"nbd://127.0.0.1:{self.port}/{name}")

    def backing(self) -> Path:
        return self._file

    def crash_and_restart(self) -> None:
        self._server.stop(signal.SIGKILL)
        self._server = self._started()

    def tls_pids(self) -> list[int]:
        """The processes that decrypt for it."""
        return self._server.proxy_pids()

    def settle(self) -> None:
        assert self._server.process.poll() is None, "the server has ended"
        assert not [line for line in self._server.log if "Traceback" in line], self._server.log

    def close(self) -> None:
        assert self._server.stop() == 0


class PairTarget:
    """The primary of two nodes."""

    contexts: tuple[str, ...] = ("base:allocation", "x-repl:out-of-sync:beta")

    def __init__(self, pair: Pair, client: Path | None = None) -> None:
        self.pair = pair
        self.client = client
        self.node: Node = pair.alpha

    @property
    def path(self) -> Path:
        return self.node.nbd_socket

    @property
    def port(self) -> int:
        return self.node.nbd_port

    def uri(self, name: str = NAME) -> str:
        return uri_with(self.client, self.node.uri(name))

    def tcp_uri(self, name: str = NAME) -> str:
        return uri_with(self.client, self.node.tcp_uri(name))

    def backing(self) -> Path:
        return self.node.backing()

    def crash_and_restart(self) -> None:
        self.node.kill()
        self.node.start()
        # It resumes by itself, as soon as its peer agrees.
        self.node.wait_primary()

    def settle(self) -> None:
        """Both copies are equal and still in sync."""
        self.pair.wait_in_sync()
        self.pair.assert_copies_equal()

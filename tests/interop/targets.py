"""What other projects' clients are run against: a file served by itself, and a live pair.

Both are one export named `r0` of the same size, over a Unix socket and over TCP, and both can
crash and come back at the same Unix socket while clients are attached.
"""

from __future__ import annotations

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


class Target(Protocol):
    """One export. URIs without a name address the server."""

    #: Contexts that can be selected.
    contexts: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The Unix socket."""

    def uri(self, name: str = NAME) -> str: ...

    def tcp_uri(self, name: str = NAME) -> str: ...

    def backing(self) -> Path:
        """The file behind it, byte for byte what clients see."""

    def crash_and_restart(self) -> None:
        """SIGKILL, and the same again, serving."""

    def settle(self) -> None:
        """After a test: whatever must hold when all is quiet."""


class FileTarget:
    """`python -m nbdserver FILE`."""

    contexts: tuple[str, ...] = ("base:allocation",)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "disk.img"
        self._file.touch()
        os.truncate(self._file, SIZE_BYTES)
        self._server = self._started()

    def _started(self) -> ServerProcess:
        return ServerProcess(self._file, self._folder, f"--name={NAME}", "--description=a file")

    @property
    def path(self) -> Path:
        return self._server.socket

    def uri(self, name: str = NAME) -> str:
        return f"nbd+unix:///{name}?socket={self.path}"

    def tcp_uri(self, name: str = NAME) -> str:
        return f"nbd://127.0.0.1:{self._server.port}/{name}"

    def backing(self) -> Path:
        return self._file

    def crash_and_restart(self) -> None:
        self._server.stop(signal.SIGKILL)
        self._server = self._started()

    def settle(self) -> None:
        assert self._server.process.poll() is None, "the server has ended"
        assert not [line for line in self._server.log if "Traceback" in line], self._server.log

    def close(self) -> None:
        assert self._server.stop() == 0


class PairTarget:
    """The primary of two nodes."""

    contexts: tuple[str, ...] = ("base:allocation", "x-repl:out-of-sync:beta")

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.node: Node = pair.alpha

    @property
    def path(self) -> Path:
        return self.node.nbd_socket

    def uri(self, name: str = NAME) -> str:
        return self.node.uri(name)

    def tcp_uri(self, name: str = NAME) -> str:
        return self.node.tcp_uri(name)

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

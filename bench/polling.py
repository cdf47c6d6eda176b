"""A busy control plane: somebody asks for status and metrics many times a second."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.contender import Served

RATE_PER_S = 100
REQUEST_DEADLINE_S = 10.0


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=REQUEST_DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Poller:
    """Asks in turn for status and metrics of the primary inside a `with` block.

    `answers` counts what was answered; a slow daemon lowers the rate, nothing piles up.
    """

    def __init__(self, served: Served) -> None:
        control = UnixConnection(served.nodes[0].control)
        metrics = http.client.HTTPConnection(
            "127.0.0.1", served.metrics_port, timeout=REQUEST_DEADLINE_S
        )
        self._asks: list[Callable[[], None]] = [
            lambda: _get(control, "/v1/status"),
            lambda: _get(metrics, "/metrics"),
        ]
        self.answers = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="poller", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._ended.wait(max(0.0, due_s - time.monotonic())):
            due_s = max(due_s + 1 / RATE_PER_S, time.monotonic() - 1.0)
            self._asks[self.answers % 2]()
            self.answers += 1


def _get(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    if response.status != http.client.OK:
        raise OSError(f"{path} was answered with {response.status}")

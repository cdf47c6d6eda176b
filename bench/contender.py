"""What is measured: something that serves a volume over NBD, alone or with a copy elsewhere.

A `Contender` describes it and can bring it up; `Served` is what is up. The runner knows nothing
else about them, so that all of them are measured in the same way.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.processes import running
from tests.daemon import PORTS, Node


class Kind(enum.Enum):
    """What a contender's figure is compared as."""

    OURS = "ours"
    LIMIT = "limit"
    PEER = "peer"


@dataclass(frozen=True)
class Place:
    """Where a contender runs: an empty folder of its own, the volume's size, the link's delay."""

    folder: Path
    size_bytes: int
    #: Of the link between the two nodes, each way.
    delay_ms: float = 0.0

    def backing(self, name: str) -> Path:
        """Make an empty sparse file of the volume's size."""
        path = self.folder / f"{name}.img"
        with path.open("wb") as file:
            file.truncate(self.size_bytes)
        return path

    @contextlib.contextmanager
    def link(self, port: int) -> Iterator[int]:
        """Yield the port at which a primary reaches the secondary that listens on `port`."""
        if not self.delay_ms:
            yield port
            return
        outer = PORTS.take()
        command = [
            *(sys.executable, "-m", "bench.delay", "--listen", str(outer)),
            *("--target", str(port), "--one-way-ms", str(self.delay_ms)),
        ]
        log = self.folder / "delay.log"
        with running(command, log, lambda: "ready" in log.read_text()):
            yield outer


@dataclass(frozen=True)
class Served:
    """A contender that is up."""

    uri: str
    #: Process groups of the node that clients talk to, and of the one with the other copy.
    primary: tuple[int, ...]
    secondary: tuple[int, ...] = ()
    #: The backing files: the primary's, and the secondary's if there is one.
    copies: tuple[Path, ...] = ()
    #: Our own nodes, for cells that ask more of them than to serve.
    nodes: tuple[Node, ...] = ()
    metrics_port: int = 0

    @property
    def groups(self) -> tuple[int, ...]:
        return self.primary + self.secondary


class Contender(abc.ABC):
    """One line of a table. `key` names it in results, `title` to people."""

    key: str
    title: str
    kind: Kind
    #: Whether every write is in two copies before it is answered.
    replicated: bool

    @abc.abstractmethod
    def missing(self) -> str:
        """Return why it cannot run here, or nothing."""

    @abc.abstractmethod
    def version(self) -> str:
        """Return what exactly is measured."""

    @abc.abstractmethod
    def serve(self, place: Place) -> contextlib.AbstractContextManager[Served]:
        """Bring it up for the time of a `with` block. Raises ContenderBroke."""

"""The ways to make a block device of an NBD export, best first, behind one shape.

A way attaches, detaches, and cuts off. `attach` returns the device once it can be used; `detach`
ends in order and is called only for a device that nothing uses; `cut_off` makes every pending and
future request fail at once, whoever uses the device, and never waits for the daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from repl.attach.processes import ProcessId
from repl.errors import Refused

#: The names of all ways, best first.
NAMES = ("kernel-nbd", "nbdfuse")


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether this machine has what a way needs; if not, the clause that says what it lacks."""

    ok: bool
    why: str = ""


def permitted() -> str:
    """Permit every connection."""
    return ""


class Way(Protocol):
    """One way to attach one volume. `attach`, `detach` and `cut_off` may block."""

    #: What it is called in the record and in messages.
    name: str
    #: Whether it needs the relay, since it never connects again by itself.
    relayed: bool
    #: Asked by a way that connects by itself before a new connection carries anything: why it must
    #: not, or "". It may block.
    permit: Callable[[], str]
    #: By which `owns` knows the device again, also in a later process; "" before it is attached.
    mark: str
    #: Whether a device works on, for a while, when its guardian has been killed.
    outlives_guardian: bool
    #: The program that serves the device, once attached, if there is one.
    program: ProcessId | None

    def available(self) -> Availability: ...

    def attach(self, address: str, export: str) -> Path:
        """Return the block device. Raises ReplError, with nothing left behind.

        address: the path of a Unix socket, or `HOST:PORT`.
        """
        ...

    def detach(self, device: Path) -> None:
        """Give the device back. Raises ReplError if that takes too long."""
        ...

    def cut_off(self, device: Path | None) -> None:
        """Fail all requests and take down what can be; None: whatever an attach has left."""
        ...

    def owns(self, device: Path) -> bool:
        """Whether the device is (still) this attachment's, and not another one of that name."""
        ...


def choose(ways: Sequence[Way], wanted: str = "") -> Way:
    """Return the first way that this machine has, or the one that is wanted.

    Raises Refused (ATTACH_IMPOSSIBLE).
    """
    lacks = []
    for way in ways:
        if wanted in ("", way.name):
            found = way.available()
            if found.ok:
                return way
            lacks.append(f"{way.name}: {found.why}")
    raise Refused(
        "This machine has no way to make a block device of an NBD export.",
        "; ".join(lacks),
        "leave out --way, and the best that there is is taken"
        if wanted
        else "install one:  apt-get install libnbd-bin fuse3",
        code="ATTACH_IMPOSSIBLE",
    )

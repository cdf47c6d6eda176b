"""Stands in for the kernel's nbd driver: adopts sockets as it does, and sees them die."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from repl.attach.nbd_netlink import DeviceSettings


@dataclass
class FakeKernel:
    """`slots` are the driver's own descriptors of a device's connections."""

    settings: DeviceSettings | None = None
    slots: list[socket.socket] = field(default_factory=list)
    dead: set[int] = field(default_factory=set)
    size_bytes: int = 0
    connected: bool = False
    #: Whether adopted sockets get the driver's send timeout.
    shows_adoption: bool = True
    #: How many RECONFIGUREs find the driver unaware of a death.
    unaware: int = 0
    #: What the next RECONFIGUREs are refused with.
    refusals: list[OSError] = field(default_factory=list)
    offered: int = 0

    def __post_init__(self) -> None:
        self._event_in, self._event_out = os.pipe2(os.O_NONBLOCK)

    def close(self) -> None:
        for slot in self.slots:
            slot.close()
        os.close(self._event_in)
        os.close(self._event_out)

    # What a keeper asks.

    def connect(self, settings: DeviceSettings, descriptors: Sequence[int]) -> int:
        self.settings = settings
        self.size_bytes = settings.size_bytes
        self.slots = [self._adopted(descriptor) for descriptor in descriptors]
        self.connected = True
        return 4

    def reconfigure(
        self, index: int, backend: str, descriptors: Sequence[int], size_bytes: int | None = None
    ) -> None:
        assert index == 4
        assert self.settings is not None
        assert backend == self.settings.backend
        self.offered += 1
        if self.refusals:
            raise self.refusals.pop()
        if size_bytes is not None:
            self.size_bytes = size_bytes
        if self.unaware:
            self.unaware -= 1
            return
        for descriptor in descriptors:
            if self.dead:
                slot = min(self.dead)
                self.dead.discard(slot)
                self.slots[slot].close()
                self.slots[slot] = self._adopted(descriptor)

    def disconnect(self, index: int) -> None:
        assert index == 4
        self.connected = False
        for slot in range(len(self.slots)):
            self._shut_down(slot)

    def listen(self) -> int:
        return self._event_in

    def dead_links(self) -> list[int]:
        try:
            return list(os.read(self._event_in, 100))
        except BlockingIOError:
            return []

    def is_connected(self, index: int) -> bool:
        assert index == 4
        return self.connected

    # What a test does.

    def lose(self, slot: int) -> None:
        """Give a connection up, as after a timeout of one of its requests."""
        self.dead.add(slot)
        self._shut_down(slot)
        os.write(self._event_out, b"\x04")

    def addresses(self) -> list[int]:
        """Return the port that each living connection leads to."""
        return [slot.getpeername()[1] for at, slot in enumerate(self.slots) if at not in self.dead]

    def _adopted(self, descriptor: int) -> socket.socket:
        held = socket.socket(fileno=os.dup(descriptor))
        if self.shows_adoption:
            assert self.settings is not None
            timeout = struct.pack("@ll", self.settings.request_timeout_s, 0)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        return held

    def _shut_down(self, slot: int) -> None:
        # The other side may have been quicker.
        with contextlib.suppress(OSError):
            self.slots[slot].shutdown(socket.SHUT_RDWR)


def fill(sock: socket.socket) -> None:
    """Send until neither side's buffer takes any more."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 20))
    sock.setblocking(True)

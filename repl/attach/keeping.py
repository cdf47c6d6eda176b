"""Keeping one kernel block device supplied with connections: when to dial, whom, what to refuse.

When a connection of the device dies, `Keeper` negotiates a new one with whichever of the addresses
serves the volume and gives it to the kernel, which sends again what had no answer. Nobody above the
device sees an error; they wait. The kernel and the dialling come from outside, so that a test can
stand in for both.

Invariants:

- The kernel gets no connection before the ones that died are buried (`kernel_socket.py`).
- All living connections of a device lead to one address: two servers are never asked in turn.
- A device never shrinks, and never loses a promise that it was made with.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from nbdserver.protocol import (
    NBD_FLAG_CAN_MULTI_CONN,
    NBD_FLAG_READ_ONLY,
    NBD_FLAG_SEND_FLUSH,
    NBD_FLAG_SEND_FUA,
    NBD_FLAG_SEND_TRIM,
    NBD_FLAG_SEND_WRITE_ZEROES,
)
from repl.attach.dialing import NoConnection
from repl.attach.kernel_socket import KernelSocket
from repl.attach.nbd_netlink import DeviceSettings
from repl.attach.negotiation import Offer

#: For one address to answer and agree. A server may hold the answer back; then the next is asked.
DIAL_DEADLINE_S: Final = 5.0
#: Between two rounds of dialling that found nobody.
BACKOFF_S_MIN: Final = 0.1
BACKOFF_S_MAX: Final = 2.0
#: For the server's machine to acknowledge the end of a dead connection, before it is reset.
BURIAL_S: Final = 2.0
POLL_S: Final = 0.05
#: For the driver to see that a connection is dead which is so already.
ADOPTION_S: Final = 5.0
#: The smallest block that the driver takes; what a client may assume of a server that says nothing.
BLOCK_BYTES_MIN: Final = 512
BLOCK_BYTES_MAX: Final = os.sysconf("SC_PAGESIZE")

#: What the driver relies on, once it was promised.
_PROMISES: Final = {
    NBD_FLAG_SEND_FLUSH: "flushes",
    NBD_FLAG_SEND_FUA: "FUA",
    NBD_FLAG_SEND_TRIM: "trimming",
    NBD_FLAG_SEND_WRITE_ZEROES: "zeroing",
}

log = logging.getLogger("repl.attach")

Dial = Callable[[str, str, float], tuple[socket.socket, Offer]]


class Kernel(Protocol):
    """What `nbd_control.NbdControl` does for a keeper."""

    def connect(self, settings: DeviceSettings, descriptors: Sequence[int]) -> int: ...

    def reconfigure(
        self, index: int, backend: str, descriptors: Sequence[int], size_bytes: int | None = None
    ) -> None: ...

    def disconnect(self, index: int) -> None: ...

    def listen(self) -> int: ...

    def dead_links(self) -> list[int]: ...

    def is_connected(self, index: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be attached, and how. Of `addresses` one serves; timeouts are whole seconds."""

    addresses: tuple[str, ...]
    export: str
    connections: int
    request_timeout_s: int
    dead_conn_timeout_s: int

    @property
    def backend(self) -> str:
        """The name under which the kernel knows the device's origin (/sys/block/nbdN/backend)."""
        return f"{self.export} at {', '.join(self.addresses)}"


class DeviceGone(Exception):
    """The device was taken down: there is nothing to keep any more."""


class Keeper:
    """One device and its connections. `attach` or `resume` first, then `keep`."""

    def __init__(self, plan: Plan, kernel: Kernel, dial: Dial) -> None:
        self.plan = plan
        self.index = -1
        self.offer = Offer(0, 0)
        #: Where the connections lead, or led last; `on_move` is called when that changes.
        self.address = plan.addresses[0]
        self.on_move: Callable[[], None] = lambda: None
        self._kernel = kernel
        self._dial = dial
        self._events = kernel.listen()
        #: None for a connection that an earlier keeper dialled.
        self._links: list[KernelSocket | None] = []
        #: Those of them that may be dead.
        self._suspects: set[int] = set()
        #: Whether this kernel shows which sockets it has adopted.
        self._adoption_shows = True
        self._backoff_s = BACKOFF_S_MIN
        self._said = ""

    # Beginnings.

    def attach(self) -> int:
        """Make the device; return its number.

        Raises NoConnection if no address serves the export, OSError for what the kernel refuses.
        """
        first = self._dial_first(self.plan.addresses)
        self._links = [first]
        try:
            wanted = self.plan.connections if self.offer.flags & NBD_FLAG_CAN_MULTI_CONN else 1
            for _ in range(wanted - 1):
                sock, offer = self._dial(first.address, self.plan.export, DIAL_DEADLINE_S)
                self._links.append(KernelSocket(sock, first.address))
                self._check(offer)
            settings = DeviceSettings(
                self.offer.size_bytes,
                self._block_bytes(),
                self.offer.flags,
                self.plan.request_timeout_s,
                self.plan.dead_conn_timeout_s,
                self.plan.backend,
            )
            descriptors = [link.fileno() for link in self._links if link is not None]
            self.index = self._kernel.connect(settings, descriptors)
        except BaseException:
            self.close()
            raise
        self._adoption_shows = all(link.adopted for link in self._links if link is not None)
        log.info(
            "/dev/nbd%d is %s, %d bytes, over %d connection(s) to %s",
            self.index,
            self.plan.export,
            self.offer.size_bytes,
            len(self._links),
            first.address,
        )
        return self.index

    def _dial_first(self, addresses: Sequence[str]) -> KernelSocket:
        reasons = []
        for address in addresses:
            try:
                sock, self.offer = self._dial(address, self.plan.export, DIAL_DEADLINE_S)
                self.address = address
                return KernelSocket(sock, address)
            except NoConnection as failure:
                reasons.append(f"{address}: {failure}")
        raise NoConnection("; ".join(reasons))

    def _block_bytes(self) -> int:
        if self.offer.minimum_block_bytes > BLOCK_BYTES_MAX:
            raise NoConnection(
                f"the server wants blocks of {self.offer.minimum_block_bytes} bytes at least, "
                f"the kernel takes {BLOCK_BYTES_MAX} at most"
            )
        return max(BLOCK_BYTES_MIN, self.offer.minimum_block_bytes)

    def resume(self, index: int, connections: int, offer: Offer, address: str) -> None:
        """Go on with a device that another keeper made and left.

        `offer` is what the device was promised, `address` where its connections led.
        """
        self.index, self.offer, self.address = index, offer, address
        self._links = [None] * connections
        self._suspects = set(range(connections))

    @property
    def connections(self) -> int:
        """How many connections the device has, living or dead."""
        return len(self._links)

    # Keeping.

    def keep(self) -> None:
        """Replace what dies, until the device is gone."""
        try:
            while True:
                self.step()
        except DeviceGone:
            log.info("/dev/nbd%d was taken down", self.index)
        finally:
            self.close()

    def step(self, pause_s: float | None = None) -> None:
        """Replace a dead connection, or wait for a death, `pause_s` at most. Raises DeviceGone."""
        if not self._kernel.is_connected(self.index):
            raise DeviceGone
        slot = next((at for at in range(len(self._links)) if self._needs_replacement(at)), None)
        if slot is None:
            self._said = ""
            self._pause(pause_s)
            return
        for link in self._links:
            if link is not None and link.dead:
                self._bury(link)
        if self._replace(slot):
            self._backoff_s = BACKOFF_S_MIN
        else:
            self._pause(self._backoff_s)
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_S_MAX)

    def close(self) -> None:
        """Let go of the connections; those that the kernel uses live on."""
        for link in self._links:
            if link is not None:
                link.close()

    def _needs_replacement(self, slot: int) -> bool:
        link = self._links[slot]
        return slot in self._suspects if link is None else link.dead

    def _pause(self, longest_s: float | None) -> None:
        """Wait for news of a connection that is not known to be dead."""
        poll = select.poll()
        poll.register(self._events, select.POLLIN)
        for link in self._links:
            if link is None:
                continue
            if not link.dead:
                poll.register(link.fileno(), 0)
            elif longest_s is None:
                # It died since it was looked at, and its death may be announced to nobody.
                return
        poll.poll(None if longest_s is None else longest_s * 1000)
        if self.index in self._kernel.dead_links():
            self._suspects = {at for at, link in enumerate(self._links) if link is None}

    def _bury(self, link: KernelSocket) -> None:
        ends = time.monotonic() + BURIAL_S
        while not link.buried:
            if time.monotonic() >= ends:
                # The machine does not answer, or its server does not read: in either case the
                # reset is the last that it hears of the connection.
                link.reset()
                return
            time.sleep(POLL_S)

    def _replace(self, slot: int) -> bool:
        """Give the kernel a new connection for this one; return whether that is dealt with."""
        # Asked at every attempt, because what lived at the last one may be dead now.
        living = [link.address for link in self._links if link is not None and not link.dead]
        for address in living[:1] or self._in_turn():
            try:
                self._replace_from(slot, address)
            except NoConnection as failure:
                self._say(f"{address}: {failure}")
                continue
            return True
        return False

    def _in_turn(self) -> list[str]:
        """Return all addresses, the last good one first."""
        others = [address for address in self.plan.addresses if address != self.address]
        return [self.address, *others]

    def _replace_from(self, slot: int, address: str) -> None:
        """Raises NoConnection, DeviceGone."""
        sock, offer = self._dial(address, self.plan.export, DIAL_DEADLINE_S)
        fresh, old = KernelSocket(sock, address), self._links[slot]
        taken = False
        try:
            self._check(offer)
            taken = self._give(fresh, offer, patiently=old is not None)
        finally:
            if not taken:
                fresh.close()
        if not taken:
            # The kernel had no dead connection to replace, so none of those unknown is dead.
            self._suspects.clear()
            return
        self._links[slot] = fresh
        self._suspects.discard(slot)
        if old is not None:
            old.close()
        self._leads_to(address)
        log.info("/dev/nbd%d has a new connection to %s", self.index, address)

    def _leads_to(self, address: str) -> None:
        if address != self.address:
            self.address = address
            self.on_move()

    def _check(self, offer: Offer) -> None:
        """Raise NoConnection if the device could not keep its word with this server."""
        if offer.size_bytes < self.offer.size_bytes:
            raise NoConnection(
                f"it offers {offer.size_bytes} bytes, the device has {self.offer.size_bytes}"
            )
        if offer.flags & ~self.offer.flags & NBD_FLAG_READ_ONLY:
            raise NoConnection("it offers the export read-only, the device is writable")
        for flag, words in _PROMISES.items():
            if self.offer.flags & ~offer.flags & flag:
                raise NoConnection(f"it does not offer {words}, which the device was promised")

    def _give(self, fresh: KernelSocket, offer: Offer, *, patiently: bool) -> bool:
        """Offer a connection to the kernel; return whether it took it. Raises DeviceGone.

        patiently: one is known to be dead, the driver may only not have noticed yet.
        """
        size_bytes = offer.size_bytes if offer.size_bytes > self.offer.size_bytes else None
        ends = time.monotonic() + ADOPTION_S
        while True:
            try:
                self._kernel.reconfigure(
                    self.index, self.plan.backend, [fresh.fileno()], size_bytes
                )
            except OSError as error:
                if not self._kernel.is_connected(self.index):
                    raise DeviceGone from error
                raise NoConnection(f"the kernel refuses a new connection: {error}") from error
            if size_bytes is not None:
                log.info("/dev/nbd%d has grown to %d bytes", self.index, size_bytes)
                self.offer = Offer(size_bytes, self.offer.flags, self.offer.minimum_block_bytes)
                size_bytes = None
            if fresh.adopted or not self._adoption_shows:
                return True
            if not patiently:
                return False
            if time.monotonic() >= ends:
                raise NoConnection("the kernel does not take the new connection")
            time.sleep(POLL_S)

    def _say(self, sentence: str) -> None:
        """Log a reason for waiting once, not at every attempt of an endless series."""
        if sentence != self._said:
            self._said = sentence
            log.warning("/dev/nbd%d waits: %s", self.index, sentence)

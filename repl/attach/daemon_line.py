"""The guardian's connection to its volume's daemon: made, checked, kept, and made again.

Owns what a failed or refused connection means for the attachment (`lifeline.py`). A new connection
carries nothing before the volume's history was seen to be this node's own (`history.py`): first the
export is agreed upon, then the history is read, so that no change of role can fall between the two.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Final, Protocol

from repl.attach.carrier import Carrier, negotiate
from repl.attach.dialing import host_and_port
from repl.attach.history import Lineage, taken_over
from repl.attach.lifeline import Lifeline
from repl.attach.negotiation import Cause, NotAgreed, Offer, ask_for
from repl.errors import ReplError

#: Between two attempts to connect.
RETRY_PAUSE_S: Final = 0.2
CONNECT_TIMEOUT_S: Final = 5.0
#: How often the history is looked at while the daemon holds the connection.
HELD_LOOK_S: Final = 1.0
#: A connection that ends before it was this old is followed by a pause, the longer the more often.
YOUNG_S: Final = 2.0
YOUNG_PAUSE_S_MAX: Final = 5.0
#: How often the current generation is looked up while all is well. The lineage keeps 64 of them.
GENERATION_LOOK_S: Final = 30.0

_log = logging.getLogger("repl.attach")


class Daemon(Protocol):
    """What is asked of the daemon's control API. Every call may block and raise ReplError."""

    def lineage(self, volume: str) -> Lineage: ...

    def generation(self, volume: str) -> int:
        """Return the id of the current generation, 0 if there is none."""
        ...


class DaemonLine:
    """One volume's connection; `carrier` takes over each one that is good."""

    def __init__(
        self,
        address: str,
        volume: str,
        daemon: Daemon,
        carrier: Carrier,
        lifeline: Lifeline,
        on_change: Callable[[], None],
    ) -> None:
        self._address = address
        self._volume = volume
        self._daemon = daemon
        self._carrier = carrier
        self.lifeline = lifeline
        self._on_change = on_change
        self._generation = 0
        self._offer: Offer | None = None

    async def open(self) -> Offer:
        """Make the first connection. Raises OSError, NotAgreed, ReplError."""
        sock, offer = await self._connect()
        try:
            lineage = await asyncio.to_thread(self._daemon.lineage, self._volume)
            self._generation, self._offer = lineage.current, offer
        except BaseException:
            sock.close()
            raise
        await self._carrier.take_server(sock)
        self.lifeline.up()
        return offer

    async def keep(self) -> None:
        """Connect again whenever the connection is lost; return when the attachment is dead."""
        pause_s = RETRY_PAUSE_S
        while True:
            made_s = time.monotonic()
            await self._watch_generation()
            # Until the cause is known; an attempt follows at once.
            self.lifeline.waits("the connection to the daemon was lost")
            self._on_change()
            if time.monotonic() - made_s < YOUNG_S:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, YOUNG_PAUSE_S_MAX)
            else:
                pause_s = RETRY_PAUSE_S
            while not await self._reconnected():
                self._on_change()
                if self.lifeline.is_dead(time.monotonic()):
                    return
                await asyncio.sleep(RETRY_PAUSE_S)
            self.lifeline.up()
            self._on_change()

    async def _watch_generation(self) -> None:
        """Wait until the connection is lost, and remember meanwhile how far the history went."""
        gone = self._carrier.server_gone
        while not gone.is_set():
            try:
                async with asyncio.timeout(GENERATION_LOOK_S):
                    await gone.wait()
            except TimeoutError:
                await self._look_up_generation()

    async def _look_up_generation(self) -> None:
        try:
            generation = await asyncio.to_thread(self._daemon.generation, self._volume)
        except ReplError:
            return  # The one known is older and still right.
        # What was read is this node's own only if the connection outlived the reading.
        if not self._carrier.server_gone.is_set():
            self._generation = generation or self._generation

    async def _reconnected(self) -> bool:
        """Try once; on failure the lifeline knows what it means."""
        try:
            connected = await self._connect_watchfully()
        except NotAgreed as refusal:
            if refusal.cause is Cause.REFUSED:
                self.lifeline.waits(refusal.sentence)
                await self._own_history()
            else:
                self.lifeline.gone(time.monotonic(), refusal.sentence)
            return False
        except (ConnectionRefusedError, FileNotFoundError, TimeoutError) as error:
            reason = f"nothing answers on {self._address}"
            self.lifeline.gone(time.monotonic(), f"{reason} ({error.strerror or 'timed out'})")
            return False
        except OSError as error:
            self.lifeline.waits(f"the daemon hung up ({error.strerror or error})")
            return False
        if connected is None:
            return False
        sock, offer = connected
        if not await self._may_go_on(offer):
            sock.close()
            return False
        await self._carrier.take_server(sock)
        return True

    async def _connect_watchfully(self) -> tuple[socket.socket, Offer] | None:
        """Connect; None if the volume is taken over while the daemon holds the connection."""
        connecting = asyncio.create_task(self._connect())
        try:
            while not (await asyncio.wait({connecting}, timeout=HELD_LOOK_S))[0]:
                self.lifeline.waits("the daemon does not serve the volume to anybody yet")
                own = await self._own_history()
                if not own and self.lifeline.is_dead(time.monotonic()):
                    return None
                self._on_change()
            return connecting.result()
        finally:
            if not connecting.done():
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)

    async def _may_go_on(self, offer: Offer) -> bool:
        assert self._offer is not None
        if offer.size_bytes < self._offer.size_bytes or offer.read_only:
            self.lifeline.served_elsewhere("the export is smaller now, or read-only")
            return False
        return await self._own_history()

    def why_not(self) -> str:
        """Return why a new connection may carry nothing; "" if it may. Blocks; for any thread."""
        try:
            lineage = self._daemon.lineage(self._volume)
        except ReplError as error:
            return error.what
        return taken_over(lineage, self._generation)

    async def _own_history(self) -> bool:
        try:
            lineage = await asyncio.to_thread(self._daemon.lineage, self._volume)
        except ReplError as error:
            self.lifeline.waits(error.what)
            return False
        reason = taken_over(lineage, self._generation)
        if reason:
            self.lifeline.served_elsewhere(reason)
            return False
        self._generation = lineage.current
        return True

    async def _connect(self) -> tuple[socket.socket, Offer]:
        """Return a connection on which the export is agreed. May wait as long as it is held."""
        loop = asyncio.get_running_loop()
        family: socket.AddressFamily = socket.AF_UNIX
        where: str | tuple[str, int] = self._address
        if not self._address.startswith("/"):
            where = host_and_port(self._address)
            family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            if family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await loop.sock_connect(sock, where)
            return sock, await negotiate(sock, ask_for(self._volume))
        except BaseException:
            sock.close()
            raise

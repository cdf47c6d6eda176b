"""One process for each attachment: it holds the device, carries its requests, and takes it away.

It lives from `attach` until the device is given back (SIGTERM, once nothing uses it) or cut off
(`cutting.py`): because the attachment is dead (`lifeline.py`), the program that serves the device
ended, or an operator said so (SIGUSR1).

Invariant: whatever it makes is either in its record or goes away by itself when it dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from repl.attach import mounts
from repl.attach.carrier import Carrier
from repl.attach.cutting import cut_off
from repl.attach.daemon_line import Daemon, DaemonLine
from repl.attach.lifeline import Lifeline
from repl.attach.machine import Machine
from repl.attach.negotiation import Cause, NotAgreed, Offer
from repl.attach.processes import ProcessId
from repl.attach.record import Folder, Phase, Record
from repl.attach.ways import Way
from repl.errors import Refused, ReplError

#: How often a guardian that was asked to end looks whether the device is still used.
IN_USE_LOOK_S: Final = 0.1
#: How a guardian ends that took its device away from whoever used it.
CUT_OFF_EXIT_STATUS: Final = 1
OOM_SCORE_ADJUST: Final = "-900"
_PR_SET_IO_FLUSHER: Final = 57

_log = logging.getLogger("repl.attach")


@dataclass(frozen=True, slots=True)
class Order:
    """What a guardian is started with."""

    volume: str
    address: str
    made_by: str
    dead_after_s: float


class Guardian:
    """One attachment, from `run` to its end."""

    def __init__(
        self,
        order: Order,
        folder: Folder,
        way: Way,
        machine: Machine,
        daemon: Daemon,
        announce: Callable[[str], None],
    ) -> None:
        self._order = order
        self._folder = folder
        self._way = way
        self._machine = machine
        self._announce = announce
        self._carrier = Carrier()
        self._lifeline = Lifeline(order.dead_after_s)
        self._line = DaemonLine(
            order.address, order.volume, daemon, self._carrier, self._lifeline, self._changed
        )
        me = ProcessId.of(os.getpid())
        self._record = Record(order.volume, way.name, me, order.made_by, Phase.ATTACHING)
        self._asked_to_end = asyncio.Event()
        self._asked_to_cut = asyncio.Event()
        self._is_cut_off = False

    async def run(self) -> int:
        """Attach, announce the device, and guard it; return the exit status.

        Raises ReplError when the volume could not be attached, with nothing left behind.
        """
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._asked_to_end.set)
        loop.add_signal_handler(signal.SIGUSR1, self._asked_to_cut.set)
        keeping: asyncio.Task[None] | None = None
        try:
            self._save(self._record)
            offer = await self._unless_asked_to_end(self._open_line())
            keeping = asyncio.create_task(self._line.keep())
            self._way.permit = self._line.why_not
            device = await self._attach(offer)
            try:
                self._attached(device)
                return await self._guard(device, keeping)
            except BaseException:
                # A bug, or the end of the process: nothing may stay behind that nobody guards.
                await self._cut_off(device, "its guardian failed")
                raise
        finally:
            if keeping is not None:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
            self._carrier.drop_server()
            self._folder.remove()

    def _attached(self, device: Path) -> None:
        record = replace(self._record, phase=Phase.ATTACHED, device=str(device))
        self._save(replace(record, mark=self._way.mark, program=self._way.program))
        _log.info("%s is attached as %s by %s.", self._order.volume, device, self._way.name)
        try:
            self._announce(str(device))
        except OSError:
            # The command that wanted it has been killed; nobody will ever detach it.
            self._asked_to_end.set()

    async def _unless_asked_to_end(self, opening: Coroutine[None, None, Offer]) -> Offer:
        """Wait for the first connection, which may be held for ever, or for the order to end."""
        task = asyncio.create_task(opening)
        asked = [
            asyncio.create_task(event.wait()) for event in (self._asked_to_end, self._asked_to_cut)
        ]
        try:
            await asyncio.wait([task, *asked], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self._interrupted()
            return task.result()
        finally:
            for waiting in (task, *asked):
                waiting.cancel()
            await asyncio.gather(task, *asked, return_exceptions=True)

    def _interrupted(self) -> ReplError:
        return ReplError(
            f"{self._order.volume} was not attached.",
            "the attaching was interrupted",
            f"replctl attach {self._order.volume}",
            code="ATTACH_FAILED",
        )

    async def _open_line(self) -> Offer:
        volume = self._order.volume
        try:
            offer = await self._line.open()
        except NotAgreed as refusal:
            unknown = refusal.cause is Cause.UNKNOWN
            raise Refused(
                f"{volume} is not served here.",
                refusal.sentence,
                "replctl status" if unknown else f"replctl promote {volume}",
                code="NOT_PRIMARY",
            ) from None
        except OSError as error:
            raise ReplError(
                f"{volume} could not be attached.",
                f"{self._order.address}: {error.strerror or error}",
                "see what the daemon does:  systemctl status repld",
                code="ATTACH_FAILED",
            ) from None
        if offer.read_only:
            raise Refused(
                f"{volume} is not attached: its export is read-only.",
                "nothing could be written to the device",
                f"replctl status {volume}",
                code="ATTACH_IMPOSSIBLE",
            )
        return offer

    async def _attach(self, offer: Offer) -> Path:
        """Have the way make the device, through the relay where it needs one."""
        if not self._way.relayed:
            return await self._make_device(self._order.address)
        relay_socket = self._folder.relay_socket
        relay_socket.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            listener.bind(str(relay_socket))
            listener.listen(1)
            listener.setblocking(False)
            accepting = asyncio.create_task(self._carrier.take_client(listener, offer))
            try:
                return await self._make_device(str(relay_socket))
            finally:
                accepting.cancel()
                await asyncio.gather(accepting, return_exceptions=True)
                relay_socket.unlink(missing_ok=True)

    async def _make_device(self, address: str) -> Path:
        making = asyncio.create_task(
            asyncio.to_thread(self._way.attach, address, self._order.volume)
        )
        cut = asyncio.create_task(self._asked_to_cut.wait())
        try:
            await asyncio.wait([making, cut], return_when=asyncio.FIRST_COMPLETED)
            if not making.done():
                # A thread cannot be stopped, but what it waits for can.
                await asyncio.to_thread(self._way.cut_off, None)
            return await making
        finally:
            cut.cancel()

    async def _guard(self, device: Path, keeping: asyncio.Task[None]) -> int:
        waits = {
            "dead": keeping,
            "end": asyncio.create_task(self._asked_to_end.wait()),
            "cut": asyncio.create_task(self._asked_to_cut.wait()),
            "client": asyncio.create_task(self._carrier.client_gone.wait()),
        }
        try:
            while True:
                await asyncio.wait(waits.values(), return_when=asyncio.FIRST_COMPLETED)
                if keeping.done():
                    keeping.result()
                    return await self._cut_off(device, self._lifeline.reason)
                if self._asked_to_cut.is_set():
                    return await self._cut_off(device, "an operator cut it off")
                if self._way.relayed and self._carrier.client_gone.is_set():
                    return await self._cut_off(device, f"{self._way.name} ended")
                if not self._in_use(device):
                    return await self._give_back(device, keeping)
                # Asked to end while somebody uses it: that one is waited for.
                del waits["end"]
                waits["end"] = asyncio.create_task(asyncio.sleep(IN_USE_LOOK_S, True))
        finally:
            for wait in waits.values():
                wait.cancel()
            await asyncio.gather(*waits.values(), return_exceptions=True)

    def _in_use(self, device: Path) -> bool:
        if mounts.of_device(self._machine.mounts(), str(device)):
            return True
        return self._machine.is_claimed(str(device))

    async def _give_back(self, device: Path, keeping: asyncio.Task[None]) -> int:
        """Give the device back, however often that takes; it is still guarded meanwhile.

        A process that has it open may wait for an answer, and would for ever if the daemon is gone.
        """
        self._save(replace(self._record, phase=Phase.ENDING))
        cut = asyncio.create_task(self._asked_to_cut.wait())
        try:
            while True:
                giving = asyncio.create_task(asyncio.to_thread(self._way.detach, device))
                await asyncio.wait([giving, cut, keeping], return_when=asyncio.FIRST_COMPLETED)
                if not giving.done():
                    return await self._cut_off_giving(device, giving, keeping)
                try:
                    giving.result()
                    break
                except ReplError as error:
                    # Somebody has opened it in the meantime, and is not cut off: it is tried again.
                    _log.warning("%s %s.", error.what, error.why)
        finally:
            cut.cancel()
        _log.info("%s was detached from %s.", self._order.volume, device)
        return 0

    async def _cut_off_giving(
        self, device: Path, giving: asyncio.Task[None], keeping: asyncio.Task[None]
    ) -> int:
        """Cut off a device that waits to be written out: a thread cannot be stopped, but what it
        waits for can."""
        reason = "an operator cut it off"
        if keeping.done():
            keeping.result()
            reason = self._lifeline.reason
        status = await self._cut_off(device, reason)
        try:
            await giving
        except (OSError, ReplError) as error:
            _log.warning("%s was not written out: %s.", device, error)
        return status

    async def _cut_off(self, device: Path, reason: str) -> int:
        volume = self._order.volume
        self._is_cut_off = True
        self._save(replace(self._record, phase=Phase.ENDING, frozen=reason))
        _log.error("%s is cut off from %s: %s.", volume, device, reason)
        self._carrier.drop_client()
        await asyncio.to_thread(cut_off, self._way, self._machine, device)
        return CUT_OFF_EXIT_STATUS

    def _changed(self) -> None:
        """Keep in the record whether requests flow; log each change once."""
        if self._is_cut_off or self._lifeline.reason == self._record.frozen:
            return
        if self._lifeline.connected:
            _log.info("%s goes on: the daemon serves it again.", self._order.volume)
        else:
            _log.warning("%s waits: %s.", self._order.volume, self._lifeline.reason)
        self._save(replace(self._record, frozen=self._lifeline.reason))

    def _save(self, record: Record) -> None:
        self._record = record
        self._folder.save(record)


def protect_process() -> None:
    """Ask the kernel not to make this process wait for its own device, and to kill others first.

    Both are inherited by the program that serves the device, and both are for root; where they are
    not allowed nothing else changes.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OOM_SCORE_ADJUST)

"""The best way where the kernel has its nbd driver: nothing of ours between device and daemon.

The keeper (`keeping.py`) runs as a thread of the guardian here and dials through it: a connection
is agreed upon, then the volume's history is asked for (`permit`), and only then is it the kernel's.
So the kernel never sends anything to a volume that another node has had meanwhile.

A device outlives the guardian, with the connection that it has; when that ends, nobody replaces it,
and its requests wait. The next command finds it by its record and takes it down.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from repl.attach import kernel_nbd
from repl.attach.dialing import NoConnection, dial
from repl.attach.keeper import DEAD_CONN_TIMEOUT_S, REQUEST_TIMEOUT_S, device_index, open_control
from repl.attach.keeping import Keeper, Plan
from repl.attach.nbd_control import NbdControl
from repl.attach.negotiation import Offer
from repl.attach.processes import ProcessId, boot_id
from repl.attach.ways import Availability, permitted
from repl.errors import ReplError

DETACH_TIMEOUT_S: Final = 15.0
POLL_PAUSE_S: Final = 0.02


class KernelWay:
    """`mark` names the device's owner; `control` and `sysfs` are the kernel's, except in tests."""

    name = "kernel-nbd"
    relayed = False
    outlives_guardian = True
    program: ProcessId | None = None

    def __init__(
        self,
        mark: str = "",
        control: Callable[[], NbdControl] = open_control,
        sysfs: Path = Path("/sys/block"),
    ) -> None:
        self.mark = mark
        self.permit = permitted
        self._control = control
        self._sysfs = sysfs
        self._ending = False

    def available(self) -> Availability:
        possible, why = kernel_nbd.available()
        return Availability(possible, why)

    def attach(self, address: str, export: str) -> Path:
        kernel = self._control()
        plan = Plan((address,), export, 1, REQUEST_TIMEOUT_S, DEAD_CONN_TIMEOUT_S)
        keeper = Keeper(plan, kernel, self._dial)
        try:
            index = keeper.attach()
        except (NoConnection, OSError) as error:
            kernel.close()
            raise ReplError(
                f"{export} could not be attached by the kernel's nbd driver.",
                str(error),
                f"look at the volume:  replctl status {export}   (the kernel's words:  dmesg)",
                code="ATTACH_FAILED",
            ) from error
        device = Path(f"/dev/nbd{index}")
        self.mark = self._owner(device)
        threading.Thread(target=_keep, args=(keeper, kernel), daemon=True).start()
        return device

    def detach(self, device: Path) -> None:
        _flush(device)
        self._disconnect(device)
        deadline_s = time.monotonic() + DETACH_TIMEOUT_S
        while self.owns(device):
            if time.monotonic() > deadline_s:
                raise ReplError(
                    f"The device could not be given back within {DETACH_TIMEOUT_S:g} s.",
                    f"{device} is still open somewhere",
                    "end what uses it; the device goes when it is closed",
                    code="ATTACH_FAILED",
                )
            time.sleep(POLL_PAUSE_S)

    def cut_off(self, device: Path | None) -> None:
        self._ending = True
        if device is not None and self.owns(device):
            self._disconnect(device)

    def owns(self, device: Path) -> bool:
        return bool(self.mark) and self._owner(device) == self.mark

    def _owner(self, device: Path) -> str:
        """Return what names this set-up of the device and no other; "" if it is not set up."""
        try:
            return f"{boot_id()}:{(self._sysfs / device.name / 'pid').read_text().strip()}"
        except OSError:
            return ""

    def _disconnect(self, device: Path) -> None:
        self._ending = True
        control = self._control()
        try:
            control.disconnect(device_index(device))
        finally:
            control.close()

    def _dial(self, address: str, export: str, deadline_s: float) -> tuple[socket.socket, Offer]:
        """Connect as `dialing.dial` does, and hand out nothing that is not permitted."""
        sock, offer = dial(address, export, deadline_s)
        reason = "the device is being taken down" if self._ending else self.permit()
        if reason:
            sock.close()
            raise NoConnection(reason)
        return sock, offer


def _flush(device: Path) -> None:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _keep(keeper: Keeper, kernel: NbdControl) -> None:
    try:
        keeper.keep()
    finally:
        kernel.close()

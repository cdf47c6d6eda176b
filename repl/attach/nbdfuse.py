"""The way that needs no kernel module for NBD: nbdfuse shows the export as a file, and a loop
device makes a disk of the file.

What takes what down, so that no kill leaves a thing behind: nbdfuse is killed by the kernel when
its guardian ends; FUSE's own `auto_unmount` removes the mount point when nbdfuse ends, however it
does; the loop device is cleared when the guardian's descriptor and the last mount are gone.

nbdfuse never connects again: once its connection is lost every request fails. It is used through
the relay, whose connection is lost only when the guardian wants it so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from repl.attach import mounts
from repl.attach.loop_device import CONTROL, binding_of, open_loop
from repl.attach.machine import SEARCH_PATH, Machine
from repl.attach.processes import ProcessId
from repl.attach.ways import Availability, permitted
from repl.errors import ReplError

START_TIMEOUT_S = 20.0
DETACH_TIMEOUT_S = 15.0
TOOL_TIMEOUT_S = 5.0
#: For nbdfuse to say goodbye once nothing needs it.
LEAVE_S = 2.0
POLL_PAUSE_S = 0.02
FUSE_DEVICE = "/dev/fuse"
_PR_SET_PDEATHSIG = 1


class NbdfuseWay:
    """`folder` is the attachment's own; `mark` names its loop device's binding."""

    name = "nbdfuse"
    relayed = True
    outlives_guardian = False

    def __init__(
        self, machine: Machine, folder: Path, mark: str = "", program: ProcessId | None = None
    ) -> None:
        self._machine = machine
        self._mount_point = folder / "fuse"
        self._words = folder / "nbdfuse.log"
        self.mark = mark
        self.program = program
        self.permit = permitted
        self._process: subprocess.Popen[bytes] | None = None
        self._loop: int | None = None

    def available(self) -> Availability:
        for path in (FUSE_DEVICE, CONTROL):
            if not Path(path).exists():
                return Availability(False, f"the kernel has no {path}")
        for program in ("nbdfuse", "fusermount3"):
            if not self._machine.has(program):
                return Availability(False, f"{program} is not installed")
        return Availability(True)

    def attach(self, address: str, export: str) -> Path:
        self._mount_point.mkdir(exist_ok=True)
        file = self._mount_point / export
        try:
            self._start(file, _uri(address, export))
            self._wait_for_file(file)
            self._loop, device = open_loop(file)
            self.mark = binding_of(device)
        except OSError as error:
            self.cut_off(None)
            raise _failed(export, f"no loop device: {error.strerror or error}") from error
        except BaseException:
            self.cut_off(None)
            raise
        return Path(device)

    def detach(self, device: Path) -> None:
        # Taken first: the device may be cut off while it is written out.
        loop, self._loop = self._loop, None
        if loop is not None:
            try:
                os.fsync(loop)
            finally:
                os.close(loop)
        _wait(lambda: not self.owns(device), f"{device} is still open somewhere")
        _wait(self._unmounted, f"{self._mount_point} is still in use")
        # It ends by itself, unless a container has a copy of its mount. Nothing is lost with it:
        # the device was synced, and is gone.
        if self._process is not None:
            try:
                self._process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._mount_point.rmdir()

    def cut_off(self, device: Path | None) -> None:
        # With nbdfuse dead the kernel fails every request to its file, those under way included.
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        elif self.program is not None:
            self.program.signal(signal.SIGKILL)
        if self._loop is not None:
            os.close(self._loop)
            self._loop = None
        while mounts.at(self._machine.mounts(), str(self._mount_point)) is not None:
            if self._machine.run(
                "umount", "--lazy", str(self._mount_point), timeout_s=TOOL_TIMEOUT_S
            ).status:
                break
        with contextlib.suppress(OSError):
            self._mount_point.rmdir()

    def owns(self, device: Path) -> bool:
        return bool(self.mark) and binding_of(str(device)) == self.mark

    def _start(self, file: Path, uri: str) -> None:
        # Loaded here, since nothing may be loaded between fork and exec.
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        with self._words.open("wb") as words:
            self._process = subprocess.Popen(
                ["nbdfuse", "-o", "auto_unmount", str(file), uri],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C"},
                start_new_session=True,
                preexec_fn=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )
        self.program = ProcessId.of(self._process.pid)

    def _wait_for_file(self, file: Path) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        assert self._process is not None
        while not file.exists():
            if self._process.poll() is not None:
                words = " ".join(self._words.read_text(errors="replace").split())
                raise _failed(file.name, f"nbdfuse ended: {words or self._process.returncode}")
            if time.monotonic() > deadline_s:
                raise _failed(file.name, f"nbdfuse did not start within {START_TIMEOUT_S:g} s")
            time.sleep(POLL_PAUSE_S)

    def _unmounted(self) -> bool:
        if mounts.at(self._machine.mounts(), str(self._mount_point)) is None:
            return True
        # The loop device lets go of the file a moment after it was cleared; until then it is busy.
        self._machine.run("fusermount3", "-u", str(self._mount_point), timeout_s=TOOL_TIMEOUT_S)
        return False


def _uri(address: str, export: str) -> str:
    if address.startswith("/"):
        return f"nbd+unix:///{quote(export)}?socket={quote(address)}"
    return f"nbd://{address}/{quote(export)}"


def _wait(seen: Callable[[], bool], otherwise: str) -> None:
    deadline_s = time.monotonic() + DETACH_TIMEOUT_S
    while not seen():
        if time.monotonic() > deadline_s:
            raise ReplError(
                f"The device could not be given back within {DETACH_TIMEOUT_S:g} s.",
                otherwise,
                "end what uses it; the device goes when it is closed",
                code="ATTACH_FAILED",
            )
        time.sleep(POLL_PAUSE_S)


def _failed(volume: str, why: str) -> ReplError:
    return ReplError(
        f"{volume} could not be attached by nbdfuse.",
        why,
        f"look at the volume:  replctl status {volume}",
        code="ATTACH_FAILED",
    )

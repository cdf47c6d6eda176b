"""A whole emulated machine with a kernel of its own, for what this machine's kernel may lack.

QEMU without KVM: needs no rights and boots in seconds. The guest reaches this machine's loopback
as 10.0.2.2 and, having no route, nothing else. Its second serial port is the channel to the agent
that does what the test asks (`guest_agent.py`); its kernel's log goes to a file.

    with EmulatedMachine.boot(folder) as guest:
        device = guest.ask("attach", [f"{HOST}:{port}"], "r0", {})
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.e2e import guest_image

HOST = "10.0.2.2"
MEMORY_MIB = 256
BOOT_DEADLINE_S = 120.0
ANSWER_DEADLINE_S = 120.0
LOG_TAIL_LINES = 60


class GuestFailed(AssertionError):
    """The guest could not do what it was asked, or says nothing any more."""


class EmulatedMachine:
    """A running guest."""

    def __init__(self, process: subprocess.Popen[bytes], channel: socket.socket, log: Path) -> None:
        self._process = process
        self._channel = channel
        self._log = log
        self._received = b""

    @classmethod
    @contextmanager
    def boot(cls, folder: Path) -> Iterator[EmulatedMachine]:
        """Boot a guest whose files lie in `folder`, and end it when the block is left."""
        image, log, port = folder / "initramfs", folder / "console.log", folder / "agent.sock"
        kernel = guest_image.kernel()
        guest_image.build(image)
        with (folder / "qemu.log").open("wb") as said:
            process = subprocess.Popen(
                _command(kernel, image, log, port),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
        try:
            guest = cls(process, _connected(process, port, folder / "qemu.log"), log)
            with guest._channel:
                assert guest._answer(BOOT_DEADLINE_S) == "up"
                try:
                    yield guest
                except BaseException:
                    print(guest.log_tail())
                    raise
        finally:
            process.kill()
            process.wait()

    def ask(self, question: str, *arguments: Any, deadline_s: float = ANSWER_DEADLINE_S) -> Any:
        """Have the agent do something and return its answer. Raises GuestFailed."""
        line = json.dumps({"ask": question, "with": arguments})
        self._channel.settimeout(deadline_s)
        self._channel.sendall(line.encode() + b"\n")
        return self._answer(deadline_s)

    def log_tail(self) -> str:
        """Return the end of what the guest's kernel and programs said."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        tail = "\n".join(text.splitlines()[-LOG_TAIL_LINES:])
        return f"--- end of the guest's console\n{tail}\n---"

    def _answer(self, deadline_s: float) -> Any:
        ends = time.monotonic() + deadline_s
        while b"\n" not in self._received:
            try:
                self._channel.settimeout(max(ends - time.monotonic(), 0.001))
                part = self._channel.recv(1 << 16)
            except TimeoutError:
                raise GuestFailed(f"no answer within {deadline_s:g} s\n{self.log_tail()}") from None
            if not part:
                raise GuestFailed(f"the guest is gone\n{self.log_tail()}")
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise GuestFailed(f"{answer['error']}\n{answer['trace']}")
        return answer["answer"]


def _command(kernel: Path, image: Path, log: Path, port: Path) -> list[str]:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise FileNotFoundError("qemu-system-x86_64 is not installed here: make setup")
    # What does not name a module's parameter goes to the first process, `=` into its environment.
    variables = [f"{name}={value}" for name, value in guest_image.environment().items()]
    kernel_line = ["console=ttyS0", "quiet", "panic=-1", "mitigations=off", *variables]
    command = [qemu, "-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", str(MEMORY_MIB)]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-kernel", str(kernel), "-initrd", str(image), "-append", " ".join(kernel_line)]
    command += ["-serial", f"file:{log}", "-serial", f"unix:{port},server=on,wait=off"]
    command += ["-netdev", "user,id=host,ipv6=off"]
    command += ["-device", "virtio-net-pci,netdev=host,romfile="]
    return command


def _connected(process: subprocess.Popen[bytes], port: Path, said: Path) -> socket.socket:
    ends = time.monotonic() + BOOT_DEADLINE_S
    channel = socket.socket(socket.AF_UNIX)
    while True:
        with suppress(FileNotFoundError, ConnectionRefusedError):
            channel.connect(str(port))
            return channel
        if process.poll() is not None or time.monotonic() > ends:
            channel.close()
            raise GuestFailed(f"qemu did not start:\n{said.read_text(errors='replace')}")
        time.sleep(0.02)

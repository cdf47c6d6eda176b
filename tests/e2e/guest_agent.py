"""The first and only program of the emulated machine: boots it, then does what the test asks.

Runs inside the guest (`emulated.py` is the other side) as process 1, from the initramfs that
`guest_image.py` packs. It speaks over the second serial port, one line of JSON a question and one
an answer; the kernel's log goes to the first. Only the standard library and `repl.attach` exist in
there, no shell and no other command than those that the image names.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import json
import os
import socket
import struct
import subprocess
import sys
import termios
import threading
import traceback
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

PORT = "/dev/ttyS1"
ADDRESS, NETMASK = "10.0.2.15", "255.255.255.0"
SYS_FINIT_MODULE = 313
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFADDR, SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
IFF_UP = 1
MNT_READ_ONLY_OF_LOG = 3  # syslog(2): read everything that is in the kernel's log
LOG_BYTES = 1 << 20
POWER_OFF = 0x4321FEDC

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    """Raise OSError for a failed call of the C library."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# Boot.


def boot() -> None:
    for kind, where in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")):
        mount("none", where, kind)
    mount("none", "/run", "tmpfs")
    for module in Path("/modules/order").read_text().split():
        insert_module(f"/modules/{module}.ko")
    for interface in ("lo", "eth0"):
        set_up(interface)


def mount(source: str, where: str, kind: str) -> None:
    os.makedirs(where, exist_ok=True)
    checked(libc.mount(source.encode(), where.encode(), kind.encode(), 0, b""))


def unmount(where: str) -> None:
    checked(libc.umount2(where.encode(), 0))


def insert_module(path: str) -> None:
    with open(path, "rb") as file:
        checked(libc.syscall(SYS_FINIT_MODULE, file.fileno(), b"", 0))


def set_up(interface: str) -> None:
    """Give the network card its address. Without a route, only the host is to be reached."""
    name = interface.encode().ljust(16, b"\0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        if interface != "lo":
            for request, value in ((SIOCSIFADDR, ADDRESS), (SIOCSIFNETMASK, NETMASK)):
                address = struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
                fcntl.ioctl(any_socket, request, name + address)
        (flags,) = struct.unpack_from(
            "=H", fcntl.ioctl(any_socket, SIOCGIFFLAGS, name + bytes(16)), 16
        )
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, name + struct.pack("=H14x", flags | IFF_UP))


# What the test may ask.


class Writer:
    """Writes file after file, each with fsync, and keeps what it was told is safe."""

    def __init__(self, folder: str, file_bytes: int) -> None:
        self._folder = Path(folder)
        self._file_bytes = file_bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.synced = 0
        self.error = ""

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                write_synced(self._folder / f"{self.synced:06d}", self.content(self.synced))
                self.synced += 1
        except OSError as error:
            self.error = f"file {self.synced}: {error}"

    def stop_soon(self) -> None:
        self._stop.set()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def content(self, number: int) -> bytes:
        block = hashlib.sha256(number.to_bytes(8, "big")).digest()
        return block * (self._file_bytes // len(block))


def write_synced(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())


class Agent:
    """The questions by name; each method's answer must fit into JSON."""

    def __init__(self) -> None:
        self._writer: Writer | None = None
        self._way: Any = None

    def run(self, *command: str) -> str:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise OSError(f"{command} exited with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def available(self) -> list[Any]:
        from repl.attach import kernel_nbd

        return list(kernel_nbd.available())

    def attach(self, addresses: list[str], export: str, options: dict[str, int]) -> str:
        from repl.attach import kernel_nbd

        return str(kernel_nbd.attach(addresses, export, **options))

    def detach(self, device: str, force: bool = False) -> None:
        from repl.attach import kernel_nbd

        kernel_nbd.detach(Path(device), force=force)

    def resume(self, device: str) -> None:
        from repl.attach import kernel_nbd

        kernel_nbd.resume(Path(device))

    def attach_guarded(self, address: str, export: str) -> str:
        from repl.attach.kernel_way import KernelWay

        self._way = KernelWay()
        return str(self._way.attach(address, export))

    def permit(self, reason: str) -> None:
        """Permit new connections of the guarded device, or say why not."""
        self._way.permit = lambda: reason

    def cut_off_guarded(self, device: str) -> None:
        self._way.cut_off(Path(device))

    def owns_guarded(self, device: str) -> bool:
        owns: bool = self._way.owns(Path(device))
        return owns

    def detach_guarded(self, device: str) -> None:
        self._way.detach(Path(device))

    def kill(self, pid: int, number: int) -> None:
        os.kill(pid, number)

    def read(self, path: str) -> str:
        return Path(path).read_text(errors="replace")

    def exists(self, path: str) -> bool:
        return Path(path).exists()

    def mount(self, device: str, where: str, kind: str) -> None:
        mount(device, where, kind)

    def unmount(self, where: str) -> None:
        unmount(where)

    def start_writing(self, folder: str, file_bytes: int) -> None:
        self._writer = Writer(folder, file_bytes)
        self._writer.start()

    def written(self) -> list[Any]:
        """How many files are synced, and the writer's error if it has one."""
        assert self._writer is not None
        return [self._writer.synced, self._writer.error]

    def stop_writing_soon(self) -> None:
        """Have the writer stop after this file, which may be waiting for the server."""
        assert self._writer is not None
        self._writer.stop_soon()

    def stop_writing(self) -> list[Any]:
        assert self._writer is not None
        self._writer.stop()
        return self.written()

    def damaged(self, folder: str) -> list[str]:
        """Compare every synced file with what was written; return those that differ."""
        assert self._writer is not None
        wrong = []
        for number in range(self._writer.synced):
            path = Path(folder) / f"{number:06d}"
            if not path.exists():
                wrong.append(f"{path} is missing")
            elif path.read_bytes() != self._writer.content(number):
                wrong.append(f"{path} differs")
        return wrong

    def kernel_log(self) -> str:
        buffer = ctypes.create_string_buffer(LOG_BYTES)
        length = checked(libc.klogctl(MNT_READ_ONLY_OF_LOG, buffer, LOG_BYTES))
        return buffer.raw[:length].decode(errors="replace")


def answer(agent: Agent, line: bytes) -> dict[str, Any]:
    try:
        question = json.loads(line)
        method: Callable[..., Any] = getattr(agent, question["ask"])
        return {"answer": method(*question["with"])}
    except Exception as error:  # the test decides what a failure means
        words = f"{type(error).__name__}: {error} {getattr(error, 'why', '')}"
        return {"error": words, "trace": traceback.format_exc()}


def main() -> None:
    boot()
    descriptor = os.open(PORT, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(descriptor, termios.TCSANOW)
    agent = Agent()
    with open(descriptor, "rb+", buffering=0) as port:
        port.write(b'{"answer": "up"}\n')
        line = b""
        while True:
            part = port.read(4096)
            line += part
            while b"\n" in line:
                question, _, line = line.partition(b"\n")
                port.write(json.dumps(answer(agent, question)).encode() + b"\n")


if __name__ == "__main__":
    try:
        main()
    finally:
        traceback.print_exc()
        sys.stderr.flush()
        libc.reboot(POWER_OFF)

"""The kernel's nbd driver as an object: make a device, give it new sockets, take it down, listen.

The thin edge between `nbd_netlink.py` and the kernel: two netlink sockets (answers and events never
mix) and sysfs. It decides nothing. Every command is carried out by the kernel before it returns.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from repl.attach import nbd_netlink, netlink
from repl.attach.nbd_netlink import DeviceSettings

NETLINK_GENERIC: Final = 16
SOL_NETLINK: Final = 270
NETLINK_ADD_MEMBERSHIP: Final = 1
RECEIVE_BYTES: Final = 64 << 10
#: The kernel answers within the call; this only keeps a broken one from hanging its caller.
ANSWER_DEADLINE_S: Final = 30.0
MODULE: Final = "nbd"
SYSFS: Final = Path("/sys/block")


def netlink_socket() -> socket.socket:
    """Return a socket to the kernel's generic netlink."""
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC)
    opened.bind((0, 0))
    return opened


class NbdControl:
    """Commands to the driver. Raises FileNotFoundError where the driver is not loaded, and OSError
    with the kernel's errno for what it refuses; its log (dmesg) has the words."""

    def __init__(self, open_socket: Callable[[], socket.socket] = netlink_socket) -> None:
        self._sequence = 0
        self._open_socket = open_socket
        self._commands = open_socket()
        self._events: socket.socket | None = None
        try:
            self._commands.settimeout(ANSWER_DEADLINE_S)
            question = netlink.family_request(nbd_netlink.FAMILY_NAME, self._next_sequence())
            self._family = netlink.family_in(self._ask(question))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the netlink sockets; devices live on."""
        self._commands.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> NbdControl:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def connect(self, settings: DeviceSettings, descriptors: Sequence[int]) -> int:
        """Make a device and return its number."""
        number = self._family.number
        request = nbd_netlink.connect(number, settings, descriptors, self._next_sequence())
        return nbd_netlink.device_in(self._ask(request))

    def reconfigure(
        self, index: int, backend: str, descriptors: Sequence[int], size_bytes: int | None = None
    ) -> None:
        """Offer sockets in the place of dead ones."""
        self._ask(
            nbd_netlink.reconfigure(
                self._family.number,
                index,
                backend,
                descriptors,
                self._next_sequence(),
                size_bytes,
            )
        )

    def disconnect(self, index: int) -> None:
        """Take the device down."""
        self._ask(nbd_netlink.disconnect(self._family.number, index, self._next_sequence()))

    def listen(self) -> int:
        """Begin to listen for dead links; return the descriptor to wait for."""
        events = self._events = self._open_socket()
        group = self._family.groups[nbd_netlink.EVENT_GROUP]
        events.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
        events.setblocking(False)
        return events.fileno()

    def dead_links(self) -> list[int]:
        """Return the device of each link that died since the last call, as far as the kernel told:
        it drops such messages where they come faster than they are read."""
        assert self._events is not None, "listen() first"
        devices: list[int] = []
        while True:
            try:
                datagram = self._events.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return devices
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue
            for message in netlink.messages_in(datagram):
                if message.kind == self._family.number:
                    command = netlink.command_in(message)
                    if command.command == nbd_netlink.CMD_LINK_DEAD:
                        devices.append(nbd_netlink.device_in(command))

    @staticmethod
    def is_connected(index: int) -> bool:
        """Whether the device is set up. It stays so while its links are dead."""
        return (SYSFS / f"nbd{index}" / "pid").exists()

    def _next_sequence(self) -> int:
        self._sequence += 1
        return self._sequence

    def _ask(self, request: bytes) -> netlink.Command:
        """Send a command; return its answer, empty if it has none, once it is acknowledged."""
        self._commands.send(request)
        answer = netlink.Command(0, ())
        while True:
            for message in netlink.messages_in(self._commands.recv(RECEIVE_BYTES)):
                if message.sequence != self._sequence:
                    continue
                if message.kind != netlink.NLMSG_ERROR:
                    answer = netlink.command_in(message)
                    continue
                number = netlink.error_in(message)
                if number:
                    raise OSError(number, os.strerror(number))
                return answer


def load_module() -> bool:
    """Have the driver loaded; return whether it is there."""
    if not (Path("/sys/module") / MODULE).exists():
        _modprobe()
    return (Path("/sys/module") / MODULE).exists()


def module_is_installed() -> bool:
    """Whether the driver is loaded, or a module of this kernel that could be."""
    return (Path("/sys/module") / MODULE).exists() or _modprobe("--dry-run")


def _modprobe(*options: str) -> bool:
    environment = os.environ | {"PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin"}
    try:
        done = subprocess.run(
            ["modprobe", "--quiet", *options, MODULE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment,
            timeout=ANSWER_DEADLINE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0

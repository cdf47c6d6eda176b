"""The commands to the driver, over a socket pair whose other end plays the kernel."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from repl.attach import nbd_netlink, netlink
from repl.attach.nbd_control import NbdControl, netlink_socket
from repl.attach.nbd_netlink import DeviceSettings
from tests.attach.recorded import ACKNOWLEDGEMENT, FAMILY_ANSWER

FAMILY = 32
SETTINGS = DeviceSettings(1 << 20, 512, 0x1, 10, 600, "r0")


class Driver:
    """Answers each request with the next of the prepared datagrams, numbered as it was asked."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.requests: list[netlink.Command] = []
        #: For each request, what is answered. The first request is the one for the family.
        self.answers: list[list[bytes]] = [[FAMILY_ANSWER, ACKNOWLEDGEMENT]]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while datagram := self._sock.recv(1 << 16):
            (request,) = netlink.messages_in(datagram)
            self.requests.append(netlink.command_in(request))
            for answer in self.answers.pop(0):
                number = struct.pack("=I", request.sequence)
                self._sock.send(answer[:8] + number + answer[12:])

    def join(self) -> None:
        self._thread.join()


def refusal(number: int) -> bytes:
    return ACKNOWLEDGEMENT[:16] + struct.pack("=i", -number) + ACKNOWLEDGEMENT[20:]


def command(number: int, *attributes: bytes) -> bytes:
    return netlink.request(FAMILY, 1, number, attributes, 0)


@pytest.fixture
def driver() -> Iterator[tuple[NbdControl, Driver, socket.socket]]:
    """The control, who answers it, and the end into which events are put."""
    with ExitStack() as stack:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        ends = [near for near, _ in pairs]
        driver = Driver(stack.enter_context(pairs[0][1]))
        stack.callback(driver.join)
        control = stack.enter_context(NbdControl(lambda: ends.pop(0)))
        yield control, driver, stack.enter_context(pairs[1][1])
        while ends:
            ends.pop().close()


def test_connect_returns_the_device_that_the_kernel_chose(
    driver: tuple[NbdControl, Driver, socket.socket],
) -> None:
    control, kernel, _ = driver
    kernel.answers.append([command(nbd_netlink.CMD_CONNECT, netlink.u32(1, 7)), ACKNOWLEDGEMENT])
    assert control.connect(SETTINGS, [0]) == 7
    assert kernel.requests[-1].command == nbd_netlink.CMD_CONNECT


def test_refusal_of_the_kernel_is_an_oserror(
    driver: tuple[NbdControl, Driver, socket.socket],
) -> None:
    control, kernel, _ = driver
    kernel.answers += [[refusal(22)], [ACKNOWLEDGEMENT]]
    with pytest.raises(OSError, match="Invalid argument"):
        control.reconfigure(7, "r0", [0])
    # And the next command is not answered by an old answer.
    control.disconnect(7)
    assert kernel.requests[-1].command == nbd_netlink.CMD_DISCONNECT


def test_connect_without_a_device_in_the_answer_is_malformed(
    driver: tuple[NbdControl, Driver, socket.socket],
) -> None:
    control, kernel, _ = driver
    kernel.answers.append([ACKNOWLEDGEMENT])
    with pytest.raises(netlink.MalformedMessage):
        control.connect(SETTINGS, [0])


def test_events_name_the_devices_whose_links_died(
    driver: tuple[NbdControl, Driver, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    control, _, events = driver
    # A pair of Unix sockets has no multicast groups to be a member of.
    joined = []

    class Joining(socket.socket):
        def setsockopt(self, *arguments: object) -> None:
            joined.append(arguments)

    with Joining(fileno=control._open_socket().detach()) as near:
        monkeypatch.setattr(control, "_open_socket", lambda: near)
        assert control.listen() == near.fileno()
        assert joined == [(270, 1, 9)]
        assert control.dead_links() == []
        dead = nbd_netlink.CMD_LINK_DEAD
        events.send(command(dead, netlink.u32(1, 3)) + command(dead, netlink.u32(1, 0)))
        events.send(command(nbd_netlink.CMD_CONNECT, netlink.u32(1, 5)))
        assert control.dead_links() == [3, 0]


def test_kernel_without_the_driver_is_file_not_found() -> None:
    """The family of families is everywhere; asked for a family that nobody has, it says ENOENT."""

    class Renaming(socket.socket):
        def send(self, data: bytes, flags: int = 0) -> int:  # type: ignore[override]
            return super().send(data.replace(b"nbd\0", b"nbX\0"), flags)

    with pytest.raises(FileNotFoundError):
        NbdControl(lambda: Renaming(fileno=netlink_socket().detach()))


def test_device_that_does_not_exist_is_not_connected() -> None:
    assert not NbdControl.is_connected(987_654)

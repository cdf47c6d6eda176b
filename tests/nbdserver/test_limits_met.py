"""Each limit on clients, when it is met, is counted under its own name.

What meeting it does to the client is tested beside the code that enforces it; the README's table
names both.
"""

from __future__ import annotations

import errno
import json
import signal
from pathlib import Path

import pytest

from nbdserver import limits
from nbdserver.buffers import ByteBudget
from nbdserver.counters import TransmissionCounters
from nbdserver.errors import HandshakeLimit
from nbdserver.limits import IN_HANDSHAKE, IN_TRANSMISSION, Limits
from nbdserver.protocol import Reply
from tests.nbdserver.conftest import Run
from tests.nbdserver.held_backend import MIB, Served
from tests.nbdserver.serving import ServerProcess, wait_for
from tests.nbdserver.test_handshake import greeted
from tests.nbdserver.wire import (
    FIXED_NEWSTYLE_NO_ZEROES,
    RawClient,
    eventually,
    go,
    option,
    read,
    write,
)

#: Nothing that a client does meets these: how much is kept for it, how many processes there are.
NEVER_MET = {"spare_buffer_bytes", "tls_proxies"}


def test_every_limit_is_counted_in_one_of_the_two_places() -> None:
    assert not set(IN_HANDSHAKE) & set(IN_TRANSMISSION)
    assert set(limits.names()) - NEVER_MET == {*IN_HANDSHAKE, *IN_TRANSMISSION}


def counted(server: ServerProcess) -> dict[str, int]:
    """The server's counts of limits, by their names."""
    server.process.send_signal(signal.SIGUSR1)

    def printed() -> list[str]:
        return [line for line in server.log if line.startswith("nbdserver: {")]

    wait_for(lambda: bool(printed()), "counters are printed")
    totals = json.loads(printed()[0].removeprefix("nbdserver: "))
    met: dict[str, int] = totals["handshakes"]["limits"] | totals["transmission"]["limits"]
    return {name: count for name, count in met.items() if count}


GREETED = FIXED_NEWSTYLE_NO_ZEROES
OVER = {
    "options": (8, GREETED + option(3) * 9),
    "option_bytes": (8192, GREETED + option(3, bytes(8193))),
    "handshake_deadline_s": (0.1, b""),
    "idle_s": (0.1, GREETED + go()),
}


@pytest.mark.parametrize("name", OVER)
def test_limit_that_ends_a_client_is_counted(disk: Path, tmp_path: Path, name: str) -> None:
    value, data = OVER[name]
    with ServerProcess(disk, tmp_path, f"--limit={name}={value}") as server:
        with RawClient.to_unix(server.socket) as client:
            client.send(data)
            assert client.is_closed_by_server()
        assert counted(server) == {name: 1}


def test_limit_that_refuses_a_client_is_counted(disk: Path, tmp_path: Path) -> None:
    with ServerProcess(disk, tmp_path, "--limit=clients=1") as server:
        with RawClient.to_unix(server.socket) as first, RawClient.to_unix(server.socket) as second:
            first.go()
            second.greet().send(go())
            assert second.option_reply().type == Reply.ERR_POLICY
        assert counted(server) == {"clients": 1}


def test_handshake_beyond_the_limit_is_counted(disk: Path, tmp_path: Path) -> None:
    with ServerProcess(disk, tmp_path, "--limit=handshakes=1") as server:
        with RawClient.to_unix(server.socket) as first, RawClient.to_unix(server.socket) as second:
            first.greet()
            assert second.is_closed_by_server()
        assert counted(server) == {"handshakes": 1}


def test_bytes_sent_ahead_of_an_answer_are_a_limit_of_their_own() -> None:
    driver = greeted(Limits(waiting_bytes=512))
    handshake = driver.handshake
    handshake.receive_data(go(b"vol"))
    with pytest.raises(HandshakeLimit) as violation:
        handshake.receive_data(bytes(513))
    assert violation.value.limit == "waiting_bytes"


class Counted(Served):
    """A served client whose limits are counted."""

    def __init__(self, limits: Limits | None = None, budget: ByteBudget | None = None) -> None:
        self.counters = TransmissionCounters()
        super().__init__(limits, budget=budget, counters=self.counters)

    @property
    def met(self) -> set[str]:
        """Names of the limits that were met."""
        return {name for name, count in self.counters.limits.items() if count}

    async def meets(self, name: str) -> None:
        await eventually(lambda: name in self.met, f"{name} is met")
        assert self.met == {name}
        assert self.connection.limit_waits > 0 or self.connection.closed


FITS_NOT = {
    "in_flight_requests": (Limits(in_flight_requests=2), read(0, 512) * 3),
    "in_flight_bytes": (Limits(in_flight_bytes=32 * MIB), read(0, 20 * MIB) * 2),
    "buffer_bytes": (
        Limits(buffer_bytes=64 * MIB, in_flight_bytes=1 << 30),
        write(0, bytes(30 * MIB)) * 3,
    ),
}


@pytest.mark.parametrize("name", FITS_NOT)
def test_request_that_does_not_fit_waits_and_is_counted(run: Run, name: str) -> None:
    async def scenario() -> None:
        its_limits, data = FITS_NOT[name]
        served = Counted(its_limits)
        sending = served.connection._loop.create_task(served.client.send(data))
        await served.meets(name)
        served.connection.abandon()
        served.backend.answer()
        sending.cancel()
        served.assert_ended_once()

    run(scenario())


def test_wait_for_answers_to_be_taken_is_counted(run: Run) -> None:
    async def scenario() -> None:
        served = Counted(Limits(unsent_bytes=MIB))
        served.backend.answers_at_once = True
        await served.client.send(read(0, 8 * MIB) * 4)
        await served.meets("unsent_bytes")
        served.connection.abandon()
        served.assert_ended_once()

    run(scenario())


@pytest.mark.parametrize(
    "data", [read(0, 8 * MIB), write(0, bytes(8 * MIB))], ids=["read", "write"]
)
def test_wait_for_the_bytes_of_all_clients_is_counted(run: Run, data: bytes) -> None:
    async def scenario() -> None:
        budget = ByteBudget(8 * MIB)
        hog, other = Counted(budget=budget), Counted(budget=budget)
        await hog.client.send(read(0, 8 * MIB))
        await hog.held(1)
        sending = other.connection._loop.create_task(other.client.send(data))
        await other.meets("total_bytes")
        assert not hog.met
        for each in (other, hog):
            each.connection.abandon()
            each.backend.answer()
        sending.cancel()
        other.client.close()
        hog.assert_ended_once()

    run(scenario())


def test_stalled_payload_is_counted(run: Run) -> None:
    async def scenario() -> None:
        served = Counted(Limits(payload_stall_s=0.05))
        await served.client.send(write(0, bytes(4 * MIB))[: 2 * MIB])
        await served.meets("payload_stall_s")
        served.assert_ended_once()

    run(scenario())


def test_untaken_replies_are_counted_when_others_need_them(run: Run) -> None:
    async def scenario() -> None:
        budget = ByteBudget(8 * MIB)
        hog = Counted(Limits(reply_stall_s=0.05), budget)
        hog.backend.answers_at_once = True
        await hog.client.send(read(0, 8 * MIB))
        await eventually(lambda: hog.connection.unsent_bytes > 4 * MIB, "it takes nothing")
        other = Counted(budget=budget)
        await other.client.send(read(0, 8 * MIB))
        await hog.meets("reply_stall_s")
        await other.held(1)
        other.connection.abandon()
        other.backend.answer()
        other.assert_ended_once()
        hog.assert_ended_once()

    run(scenario())


def test_client_that_the_kernel_gave_up_is_counted(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given_up(_room: memoryview) -> int:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    async def scenario() -> None:
        served = Counted()
        monkeypatch.setattr(type(served.sock), "recv_into", lambda _sock, room: given_up(room))
        await served.client.send(b"x")
        await served.meets("half_open_s")
        assert served.counters.hung_up == 1
        served.assert_ended_once()

    run(scenario())


def test_client_closed_because_others_wait_is_counted(run: Run) -> None:
    async def scenario() -> None:
        served = Counted()
        served.connection.abandon("it left, and others wait", "leave_s")
        served.connection.abandon("again", "leave_s")
        await served.meets("leave_s")
        assert served.counters.limits["leave_s"] == 1
        served.assert_ended_once()

    run(scenario())

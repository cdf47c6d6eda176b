"""When a keeper dials, whom, and what it refuses; the kernel is a fake, the sockets are real."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from nbdserver.protocol import (
    NBD_FLAG_CAN_MULTI_CONN,
    NBD_FLAG_HAS_FLAGS,
    NBD_FLAG_READ_ONLY,
    NBD_FLAG_SEND_FLUSH,
    NBD_FLAG_SEND_FUA,
    NBD_FLAG_SEND_TRIM,
)
from repl.attach import keeping
from repl.attach.dialing import NoConnection
from repl.attach.keeping import DeviceGone, Keeper, Plan
from repl.attach.kernel_socket import KernelSocket
from repl.attach.negotiation import Offer
from tests.attach.fake_kernel import FakeKernel, fill

FLAGS = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM
MULTI = FLAGS | NBD_FLAG_CAN_MULTI_CONN
SIZE_BYTES = 1 << 20
WAIT_S = 0.01


class Servers:
    """Servers by port, of which each serves or refuses; `dial` is what a keeper uses."""

    def __init__(self, stack: ExitStack, count: int) -> None:
        self._listeners = {
            listener.getsockname()[1]: listener
            for listener in (
                stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
            )
        }
        self._stack = stack
        self.ports = list(self._listeners)
        self.serving = dict.fromkeys(self.ports, True)
        self.offer = Offer(SIZE_BYTES, MULTI)
        self.dialled: list[int] = []
        #: The server's end of each connection, by port.
        self.ends: dict[int, list[socket.socket]] = {port: [] for port in self.ports}

    @property
    def addresses(self) -> tuple[str, ...]:
        return tuple(f"127.0.0.1:{port}" for port in self.ports)

    def dial(self, address: str, export: str, deadline_s: float) -> tuple[socket.socket, Offer]:
        assert export == "r0"
        port = int(address.rpartition(":")[2])
        self.dialled.append(port)
        if not self.serving[port]:
            raise NoConnection("r0 is secondary here")
        sock = socket.create_connection(("127.0.0.1", port), deadline_s)
        end, _ = self._listeners[port].accept()
        self.ends[port].append(self._stack.enter_context(end))
        sock.settimeout(None)
        return sock, self.offer


class Bench:
    """A keeper between a fake kernel and servers."""

    def __init__(self, stack: ExitStack, servers: int, connections: int) -> None:
        self.kernel = FakeKernel()
        stack.callback(self.kernel.close)
        self.servers = Servers(stack, servers)
        self.plan = Plan(self.servers.addresses, "r0", connections, 10, 600)
        self.keeper = Keeper(self.plan, self.kernel, self.servers.dial)
        stack.callback(lambda: self.keeper.close())

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.keeper.step(WAIT_S)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that only a real kernel or network needs are short."""
    monkeypatch.setattr(keeping, "BACKOFF_S_MIN", 0.001)
    monkeypatch.setattr(keeping, "BACKOFF_S_MAX", 0.002)
    monkeypatch.setattr(keeping, "ADOPTION_S", 0.1)
    monkeypatch.setattr(keeping, "BURIAL_S", 0.2)
    monkeypatch.setattr(keeping, "POLL_S", 0.001)


@pytest.fixture
def bench(stack: ExitStack) -> Bench:
    """Two servers, two connections to the first of them."""
    bench = Bench(stack, servers=2, connections=2)
    assert bench.keeper.attach() == 4
    return bench


def test_device_is_made_with_what_the_server_offers(bench: Bench) -> None:
    settings = bench.kernel.settings
    assert settings is not None
    assert (settings.size_bytes, settings.block_bytes) == (SIZE_BYTES, 512)
    assert settings.server_flags == MULTI
    assert (settings.request_timeout_s, settings.dead_conn_timeout_s) == (10, 600)
    assert settings.backend == f"r0 at {', '.join(bench.servers.addresses)}"
    assert bench.kernel.addresses() == [bench.servers.ports[0]] * 2


def test_server_without_multi_conn_gets_one_connection(stack: ExitStack) -> None:
    bench = Bench(stack, servers=1, connections=2)
    bench.servers.offer = Offer(SIZE_BYTES, FLAGS)
    bench.keeper.attach()
    assert len(bench.kernel.slots) == 1


def test_attach_takes_the_server_that_serves(stack: ExitStack) -> None:
    bench = Bench(stack, servers=2, connections=1)
    first, second = bench.servers.ports
    bench.servers.serving[first] = False
    bench.keeper.attach()
    assert bench.kernel.addresses() == [second]


def test_attach_without_a_server_tells_every_reason(stack: ExitStack) -> None:
    bench = Bench(stack, servers=2, connections=1)
    bench.servers.serving = dict.fromkeys(bench.servers.ports, False)
    with pytest.raises(NoConnection) as failure:
        bench.keeper.attach()
    assert str(failure.value).count("r0 is secondary here") == 2


def test_large_blocks_of_a_server_are_kept_or_refused(stack: ExitStack) -> None:
    bench = Bench(stack, servers=1, connections=1)
    bench.servers.offer = Offer(SIZE_BYTES, FLAGS, 4096)
    bench.keeper.attach()
    assert bench.kernel.settings is not None
    assert bench.kernel.settings.block_bytes == 4096
    bench.servers.offer = Offer(SIZE_BYTES, FLAGS, 65536)
    with pytest.raises(NoConnection, match="65536"):
        Keeper(bench.plan, bench.kernel, bench.servers.dial).attach()


def test_healthy_device_is_left_alone(bench: Bench) -> None:
    bench.steps(3)
    assert len(bench.servers.dialled) == 2


def test_dead_connection_is_replaced_from_where_the_living_lead(bench: Bench) -> None:
    first, second = bench.servers.ports
    bench.kernel.lose(1)
    bench.servers.serving[first] = False
    bench.servers.dialled.clear()
    bench.steps(5)
    # The other server would serve, but one connection still leads to the first.
    assert set(bench.servers.dialled) == {first}
    assert bench.kernel.addresses() == [first]
    bench.kernel.lose(0)
    bench.steps(5)
    assert bench.kernel.addresses() == [second, second]


def test_device_moves_as_a_whole_when_all_connections_are_dead(bench: Bench) -> None:
    first, second = bench.servers.ports
    moves = []
    bench.keeper.on_move = lambda: moves.append(bench.keeper.address)
    bench.servers.serving[first] = False
    for slot in (0, 1):
        bench.kernel.lose(slot)
    bench.steps(3)
    assert bench.kernel.addresses() == [second, second]
    assert moves == [bench.servers.addresses[1]]
    # From now on the second is asked first.
    bench.servers.serving[first] = True
    for slot in (0, 1):
        bench.kernel.lose(slot)
    bench.steps(3)
    assert bench.kernel.addresses() == [second, second]


def test_keeper_dials_until_somebody_serves(bench: Bench) -> None:
    bench.servers.serving = dict.fromkeys(bench.servers.ports, False)
    for slot in (0, 1):
        bench.kernel.lose(slot)
    bench.steps(10)
    assert bench.kernel.addresses() == []
    assert set(bench.servers.dialled) == set(bench.servers.ports)
    bench.servers.serving[bench.servers.ports[1]] = True
    bench.steps(4)
    assert len(bench.kernel.addresses()) == 2


def test_no_connection_is_given_before_the_dead_one_is_buried(bench: Bench) -> None:
    """A server that does not read gets the end of the old connection first, as a reset."""
    end = bench.servers.ends[bench.servers.ports[0]][1]
    fill(bench.kernel.slots[1])
    bench.kernel.lose(1)
    seen: list[bool] = []
    dial = bench.servers.dial

    def dial_and_look(address: str, export: str, deadline_s: float) -> tuple[socket.socket, Offer]:
        error = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        seen.append(error != 0)
        return dial(address, export, deadline_s)

    bench.keeper._dial = dial_and_look
    bench.steps(2)
    assert seen == [True]
    assert len(bench.kernel.addresses()) == 2


def test_driver_that_has_not_seen_the_death_is_offered_the_socket_again(bench: Bench) -> None:
    bench.kernel.unaware = 3
    bench.kernel.lose(0)
    bench.steps(1)
    assert len(bench.kernel.addresses()) == 2
    assert bench.kernel.offered == 4
    assert len(bench.servers.dialled) == 3


def test_socket_that_the_kernel_never_takes_is_closed_and_dialled_anew(bench: Bench) -> None:
    bench.kernel.unaware = 10_000
    bench.kernel.lose(0)
    bench.steps(1)
    # The end of the connection that was not used.
    assert bench.servers.ends[bench.servers.ports[0]][-1].recv(1) == b""
    bench.kernel.unaware = 0
    bench.steps(2)
    assert len(bench.kernel.addresses()) == 2


def test_kernel_that_does_not_show_adoption_is_trusted(stack: ExitStack) -> None:
    bench = Bench(stack, servers=1, connections=1)
    bench.kernel.shows_adoption = False
    bench.keeper.attach()
    bench.kernel.lose(0)
    bench.steps(2)
    assert len(bench.kernel.addresses()) == 1
    assert bench.kernel.offered == 1


def test_refusal_of_the_kernel_is_tried_again(bench: Bench) -> None:
    bench.kernel.refusals = [OSError(12, "Cannot allocate memory")]
    bench.kernel.lose(0)
    bench.steps(4)
    assert len(bench.kernel.addresses()) == 2


def test_keeper_ends_with_its_device(bench: Bench) -> None:
    bench.kernel.disconnect(4)
    with pytest.raises(DeviceGone):
        bench.keeper.step(WAIT_S)
    bench.keeper.keep()
    assert len(bench.servers.dialled) == 2


def test_connection_that_dies_just_after_it_was_looked_at_is_not_overlooked(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(stack, servers=1, connections=1)
    bench.keeper.attach()
    shows_death = vars(KernelSocket)["dead"].fget
    looks: list[bool] = []

    def dead(link: KernelSocket) -> bool:
        found: bool = shows_death(link)
        if not looks:
            # The driver says nothing of this; only the socket shows it.
            bench.kernel.disconnect(4)
        looks.append(found)
        return found

    monkeypatch.setattr(KernelSocket, "dead", property(dead))
    keeping_thread = threading.Thread(target=bench.keeper.keep, daemon=True)
    keeping_thread.start()
    keeping_thread.join(20)
    assert not keeping_thread.is_alive() and looks[0] is False


def test_device_that_goes_while_it_is_offered_a_socket_ends_the_keeper(bench: Bench) -> None:
    bench.kernel.lose(0)
    dial = bench.servers.dial

    def dial_too_late(address: str, export: str, deadline_s: float) -> tuple[socket.socket, Offer]:
        bench.kernel.connected = False
        bench.kernel.refusals = [OSError(22, "Invalid argument")]
        return dial(address, export, deadline_s)

    bench.keeper._dial = dial_too_late
    with pytest.raises(DeviceGone):
        bench.keeper.step(WAIT_S)


@pytest.mark.parametrize(
    "worse",
    [
        Offer(SIZE_BYTES - 512, MULTI),
        Offer(SIZE_BYTES, MULTI | NBD_FLAG_READ_ONLY),
        Offer(SIZE_BYTES, MULTI & ~NBD_FLAG_SEND_FLUSH),
        Offer(SIZE_BYTES, MULTI & ~NBD_FLAG_SEND_FUA),
        Offer(SIZE_BYTES, MULTI & ~NBD_FLAG_SEND_TRIM),
    ],
)
def test_server_that_promises_less_is_not_used(bench: Bench, worse: Offer) -> None:
    bench.servers.offer = worse
    bench.kernel.lose(0)
    bench.steps(3)
    assert len(bench.kernel.addresses()) == 1
    assert bench.kernel.offered == 0
    assert bench.kernel.size_bytes == SIZE_BYTES


def test_device_grows_with_the_volume(bench: Bench) -> None:
    bench.servers.offer = Offer(2 * SIZE_BYTES, MULTI)
    bench.kernel.lose(0)
    bench.steps(1)
    assert bench.kernel.size_bytes == 2 * SIZE_BYTES
    # What it has grown to, it keeps.
    bench.servers.offer = Offer(SIZE_BYTES, MULTI)
    bench.kernel.lose(0)
    bench.steps(3)
    assert bench.kernel.size_bytes == 2 * SIZE_BYTES
    assert len(bench.kernel.addresses()) == 1


@pytest.fixture
def resumed(bench: Bench) -> Bench:
    """A second keeper, which never saw the connections that the first one made."""
    offer, address = bench.keeper.offer, bench.keeper.address
    bench.keeper.close()
    bench.keeper = Keeper(bench.plan, bench.kernel, bench.servers.dial)
    bench.keeper.resume(4, 2, offer, address)
    return bench


def test_resumed_keeper_replaces_nothing_that_lives(resumed: Bench) -> None:
    before = [slot.getsockname() for slot in resumed.kernel.slots]
    resumed.steps(5)
    assert [slot.getsockname() for slot in resumed.kernel.slots] == before
    # One connection was dialled to find that out.
    assert len(resumed.servers.dialled) == 3


def test_resumed_keeper_replaces_what_had_died_before(bench: Bench) -> None:
    bench.keeper.close()
    bench.kernel.lose(1)
    again = Keeper(bench.plan, bench.kernel, bench.servers.dial)
    again.resume(4, 2, bench.keeper.offer, bench.keeper.address)
    bench.keeper = again
    bench.steps(5)
    assert len(bench.kernel.addresses()) == 2


def test_resumed_keeper_hears_of_a_later_death(resumed: Bench) -> None:
    resumed.steps(3)
    resumed.kernel.lose(0)
    resumed.steps(3)
    assert len(resumed.kernel.addresses()) == 2
    resumed.kernel.lose(1)
    resumed.steps(3)
    assert len(resumed.kernel.addresses()) == 2

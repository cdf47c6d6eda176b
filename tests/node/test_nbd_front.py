"""GO is granted, refused or held by what the worker says, and the client then talks to the worker.

Two clients: libnbd for what a real one makes of it, and raw option haggling for held answers and
for bytes that are sent ahead.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import nbd
import pytest

from nbdserver.admission import Credentials
from nbdserver.export import ExportInfo, Refusal
from nbdserver.limits import Limits
from nbdserver.protocol import Option, Reply
from repl.node import nbd_front
from repl.node.nbd_front import NbdFront
from repl.node.supervisor import Supervisor
from tests.node.daemon_parts import configuration, run, running, until, until_volume

OPTION_MAGIC = 0x49484156454F5054
FLAGS_FIXED_NO_ZEROES = 3
LOCAL = Credentials(local=True)


class Client:
    """A client that asks by hand."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.setblocking(False)

    async def __aenter__(self) -> Client:
        await self._loop.sock_connect(self.sock, str(self._path))
        assert len(await self.receive(18)) == 18
        await self.send(struct.pack(">I", FLAGS_FIXED_NO_ZEROES))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.sock.close()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.sock, data)

    async def receive(self, size_bytes: int) -> bytes:
        data = b""
        while len(data) < size_bytes:
            part = await self._loop.sock_recv(self.sock, size_bytes - len(data))
            if not part:
                return data
            data += part
        return data

    async def ask(self, option: Option, name: str, ahead: bytes = b"") -> None:
        encoded = name.encode()
        data = encoded
        if option is not Option.EXPORT_NAME:
            data = struct.pack(">I", len(encoded)) + encoded + struct.pack(">H", 0)
        await self.send(struct.pack(">QII", OPTION_MAGIC, option, len(data)) + data + ahead)

    async def replies(self) -> list[tuple[int, bytes]]:
        """Return the replies to one option, up to the one that ends it."""
        found = []
        while True:
            header = await self.receive(20)
            assert len(header) == 20, "the connection was closed"
            _, _, kind, size_bytes = struct.unpack(">QIII", header)
            found.append((kind, await self.receive(size_bytes)))
            if kind != Reply.INFO:
                return found


def socket_of(folder: Path) -> Path:
    return folder / "nbd.sock"


async def promoted(supervisor: Supervisor, name: str = "r0") -> None:
    worker = supervisor.workers[name]
    await worker.request("promote", {}, 20.0)
    await until_volume(worker, lambda volume: volume["serving"])


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_client_of_a_primary_talks_to_its_worker_with_every_byte_it_sent_ahead(
    tmp_path: Path, loop: str
) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            await promoted(supervisor)
            async with Client(socket_of(tmp_path)) as client:
                await client.ask(Option.GO, "r0", ahead=b"first request")
                kinds = [kind for kind, _ in await client.replies()]
                assert kinds[-1] == Reply.ACK
                greeting = b"r0|first request"
                said = await client.receive(len(greeting))
                await client.send(b"later")
                said += await client.receive(5)
                # Whether the bytes came along with the option or behind it, none is lost.
                assert said.startswith(b"r0|")
                assert said.replace(b"r0|", b"", 1) == b"first requestlater"

    run(scenario, loop)


def test_two_volumes_get_their_own_clients(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path, ("r0", "r1"))) as supervisor:
            for name in ("r0", "r1"):
                await promoted(supervisor, name)
            for name in ("r1", "r0"):
                async with Client(socket_of(tmp_path)) as client:
                    await client.ask(Option.GO, name)
                    assert (await client.replies())[-1][0] == Reply.ACK
                    assert await client.receive(3) == name.encode() + b"|"

    run(scenario)


def test_secondary_is_refused_with_the_primarys_name_and_haggling_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            running(configuration(tmp_path)) as supervisor,
            Client(socket_of(tmp_path)) as client,
        ):
            for option in (Option.GO, Option.INFO):
                await client.ask(option, "r0")
                assert await client.replies() == [
                    (Reply.ERR_POLICY, b"r0 is secondary on alpha; its primary is beta")
                ]
            await client.ask(Option.GO, "r9")
            assert (await client.replies())[0][0] == Reply.ERR_UNKNOWN
            await promoted(supervisor)
            await client.ask(Option.GO, "r0")
            assert (await client.replies())[-1][0] == Reply.ACK

    run(scenario)


def test_export_that_nobody_serves_says_so_and_nothing_twice() -> None:
    here = "r0 is secondary on alpha"
    export = {"serving": False, "pending": False, "primary": None, "reason": here}
    volume = {"name": "r0", "role": "secondary", "export": export, "problem": None}
    worker = SimpleNamespace(last_volume=lambda: volume)
    front = NbdFront("alpha", cast(Any, {"r0": worker}), hold_secondary=False)
    [(_, said)] = asyncio.run(front.list(LOCAL))
    assert said == f"{here}; no node is known to be primary"
    export["reason"] = "beta is not connected"
    [(_, said)] = asyncio.run(front.list(LOCAL))
    assert said == f"{here}; beta is not connected"


def test_client_that_comes_right_after_the_promotion_is_granted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            front = NbdFront("alpha", supervisor.workers, hold_secondary=False)
            for _ in range(20):
                await supervisor.request("r0", "promote", {}, 20.0)
                assert isinstance(await front.find("r0", Option.GO, LOCAL), ExportInfo)
                await supervisor.request("r0", "demote", {}, 20.0)
                assert isinstance(await front.find("r0", Option.GO, LOCAL), Refusal)

    run(scenario)


def test_export_name_of_a_secondary_closes_the_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with (
            running(configuration(tmp_path)),
            Client(socket_of(tmp_path)) as client,
        ):
            await client.ask(Option.EXPORT_NAME, "r0")
            assert await client.receive(1) == b""

    run(scenario)


def test_secondary_is_held_until_promoted_when_configured_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = configuration(tmp_path, when_secondary="hold")
        async with running(config) as supervisor, Client(socket_of(tmp_path)) as client:
            await client.ask(Option.GO, "r0")
            asked = asyncio.create_task(client.replies())
            # Two more heartbeats of the worker: the client was looked at and is still held.
            for _ in range(2):
                await supervisor.workers["r0"].changed(20.0)
            assert not asked.done()
            await promoted(supervisor)
            assert (await asked)[-1][0] == Reply.ACK
            assert await client.receive(3) == b"r0|"

    run(scenario)


def test_client_is_held_while_a_resume_is_pending(tmp_path: Path) -> None:
    async def scenario() -> None:
        pending = tmp_path / "state" / "r0.pending"
        async with running(configuration(tmp_path)) as supervisor:
            worker = supervisor.workers["r0"]
            pending.touch()
            (tmp_path / "state" / "r0.primary").touch()
            await until_volume(worker, lambda volume: volume["export"]["pending"])
            async with Client(socket_of(tmp_path)) as client:
                await client.ask(Option.GO, "r0")
                asked = asyncio.create_task(client.replies())
                for _ in range(2):
                    await worker.changed(20.0)
                assert not asked.done()
                pending.unlink()
                assert (await asked)[-1][0] == Reply.ACK

    run(scenario)


def test_client_that_hangs_up_while_held_is_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = configuration(tmp_path, when_secondary="hold")
        async with running(config) as supervisor:
            worker = supervisor.workers["r0"]
            async with Client(socket_of(tmp_path)) as client:
                await client.ask(Option.GO, "r0")
                await until(worker, lambda: bool(worker._waiters))
            while len(worker._waiters):
                await asyncio.sleep(0.01)
            await promoted(supervisor)

    run(scenario)


def test_client_is_held_while_the_worker_is_replaced(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            await promoted(supervisor)
            worker = supervisor.workers["r0"]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
            await until(worker, lambda: not worker.answers)
            async with Client(socket_of(tmp_path)) as client:
                await client.ask(Option.GO, "r0")
                assert (await client.replies())[-1][0] == Reply.ACK
                assert await client.receive(3) == b"r0|"
            assert worker.starts == 2

    run(scenario)


def test_client_of_a_worker_that_stays_away_is_disconnected_and_never_told_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        monkeypatch.setattr(nbd_front, "WORKER_WAIT_S", 0.3)
        async with running(configuration(tmp_path, ("r0", "r1"))) as supervisor:
            await promoted(supervisor, "r1")
            worker = supervisor.workers["r0"]
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGSTOP)
            assert (await worker.ask_volume())["problem"] is not None
            async with Client(socket_of(tmp_path)) as client, Client(socket_of(tmp_path)) as other:
                await client.ask(Option.GO, "r0")
                await other.ask(Option.GO, "r1")
                assert (await other.replies())[-1][0] == Reply.ACK, "another volume's client"
                assert await client.receive(1) == b""

    run(scenario)


def asked_by_libnbd(path: Path) -> tuple[list[tuple[str, str]], Any]:
    """Return what libnbd lists, and its log (or the size) of opening r0."""
    handle = nbd.NBD()
    said: list[str] = []
    handle.set_debug_callback(lambda _context, text: said.append(text))
    handle.set_debug(True)
    handle.set_opt_mode(True)
    handle.connect_unix(str(path))
    listed: list[tuple[str, str]] = []
    handle.opt_list(lambda name, description: listed.append((name, description)))
    handle.set_export_name("r0")
    try:
        handle.opt_go()
        return listed, handle.get_size()
    except nbd.Error:
        return listed, "\n".join(said)


def test_libnbd_lists_volumes_with_their_roles_and_logs_the_reason_of_a_refusal(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path, ("r0", "r1"))) as supervisor:
            loop = asyncio.get_running_loop()
            await promoted(supervisor, "r1")
            path = socket_of(tmp_path)
            listed, outcome = await loop.run_in_executor(None, asked_by_libnbd, path)
            assert listed == [
                ("r0", "r0 is secondary on alpha; its primary is beta"),
                ("r1", "r1 is primary on alpha"),
            ]
            assert "server error message: r0 is secondary on alpha" in outcome, outcome
            await promoted(supervisor)
            _, outcome = await loop.run_in_executor(None, asked_by_libnbd, path)
            assert outcome == 1 << 20

    run(scenario)


def test_context_of_every_peer_is_offered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            await promoted(supervisor)
            front = NbdFront("alpha", supervisor.workers, hold_secondary=False)
            export = await front.find("r0", Option.LIST_META_CONTEXT, LOCAL)
            assert isinstance(export, ExportInfo)
            assert export.contexts == ("base:allocation", "x-repl:out-of-sync:beta")
            assert export.can_fast_zero

    run(scenario)


def test_client_beyond_the_limit_is_refused_by_go_and_may_still_look(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            await promoted(supervisor)
            worker = supervisor.workers["r0"]
            front = NbdFront(
                "alpha", supervisor.workers, hold_secondary=False, limits=Limits(clients=2)
            )
            worker._last_volume = worker._last_volume | {"clients": 2}
            refusal = await front.find("r0", Option.GO, LOCAL)
            assert refusal == Refusal(Reply.ERR_POLICY, "2 clients are attached to r0, the limit")
            assert isinstance(await front.find("r0", Option.INFO, LOCAL), ExportInfo)
            assert front.totals()["over_limit"] == 1

    run(scenario)


def test_status_of_the_node_counts_negotiations(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(configuration(tmp_path)) as supervisor:
            async with Client(socket_of(tmp_path)) as client:
                await client.ask(Option.GO, "r9")
                assert (await client.replies())[0][0] == Reply.ERR_UNKNOWN
                counted = supervisor.last_status()["nbd"]
                assert (counted["accepted"], counted["handshakes"]) == (1, 1)
            worker = supervisor.workers["r0"]
            await until(worker, lambda: supervisor.last_status()["nbd"]["ended"] == 1)

    run(scenario)

"""Several exports, and GO that waits for the requests of whoever left, on a disk that is slow."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from nbdserver import file_service
from nbdserver.export import ExportInfo
from nbdserver.file_backend import INLINE_REQUEST_BYTES_MAX, FileBackend
from nbdserver.file_service import FileService
from nbdserver.limits import Limits
from nbdserver.protocol import NBD_CMD_WRITE_ZEROES, Option, Reply
from tests.nbdserver.conftest import Run
from tests.nbdserver.served_file import Gate, Steps
from tests.nbdserver.wire import (
    FIXED_NEWSTYLE_NO_ZEROES,
    GREETING_BYTES,
    LoopClient,
    eventually,
    go,
    option,
    option_replies,
    read,
    request,
    simple_reply,
    write,
)

MIB = 1 << 20
SIZE = 8 * MIB
GO_REPLY_BYTES = (20 + 12) + (20 + 14) + 20


class Serving:
    """A service in the test's loop, with files of its own."""

    def __init__(self, folder: Path, *names: str, limits: Limits | None = None) -> None:
        self.path = folder / "service.sock"
        self.files = [folder / f"disk{number}" for number in range(len(names))]
        exports = []
        for name, file in zip(names, self.files, strict=True):
            file.write_bytes(bytes(SIZE))
            backend = FileBackend(asyncio.get_running_loop(), file)
            exports.append((ExportInfo(name, SIZE, description=f"about {name}"), backend))
        self.service = FileService(exports, limits)
        self.service.server.listen_unix(self.path)

    async def connected(self, *options: bytes) -> LoopClient:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        client = LoopClient(sock)
        await client.send(FIXED_NEWSTYLE_NO_ZEROES + b"".join(options))
        assert len(await client.receive(GREETING_BYTES)) == GREETING_BYTES
        return client

    async def begun(self, name: bytes = b"") -> LoopClient:
        client = await self.connected(go(name))
        assert len(await client.receive(GO_REPLY_BYTES)) == GO_REPLY_BYTES
        return client

    async def close(self) -> None:
        async with asyncio.timeout(20):
            await self.service.drain()


@pytest.mark.parametrize("how", ["close", "reset-like", "half-close"])
def test_write_sent_again_is_never_undone_by_its_abandoned_twin(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A client loses its connection while the disk holds its write, sends it again, and then
    writes something newer: the abandoned write must not come after that."""
    slow = Gate(os.pwrite)
    twin = b"old" + bytes(INLINE_REQUEST_BYTES_MAX)  # so long that a thread writes it

    async def scenario() -> None:
        serving = Serving(tmp_path, "")
        old = await serving.begun()
        monkeypatch.setattr(os, "pwrite", slow)
        await old.send(write(0, twin))
        await eventually(lambda: slow.begun == 1, "the disk holds the write")
        if how == "half-close":
            old.sock.shutdown(socket.SHUT_WR)
        else:
            if how == "reset-like":
                # Its answers are lost with it: the server sees an error and not an end.
                await old.send(read(0, 1))
            old.close()
        again = await serving.connected(go(b""))
        info = await serving.connected(option(Option.INFO, b"\0\0\0\0\0\0"))
        assert len(await info.receive(GO_REPLY_BYTES)) == GO_REPLY_BYTES
        going = asyncio.ensure_future(again.receive(GO_REPLY_BYTES))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not going.done()
        slow.open()
        assert len(await going) == GO_REPLY_BYTES
        await again.send(write(0, b"old", cookie=1) + write(0, b"new", cookie=2))
        assert [await again.reply() for _ in range(2)] == [(0, 1), (0, 2)]
        for client in (old, again, info):
            client.close()
        await serving.close()
        assert serving.files[0].read_bytes()[:3] == b"new"

    run(scenario())


@pytest.mark.parametrize("then", ["a new client", "the end"])
def test_abandoned_zeroing_holds_up_nobody_for_its_whole_length(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    async def scenario() -> None:
        steps = Steps(monkeypatch)
        monkeypatch.setattr(file_service, "DRAIN_S", 0.05)
        serving = Serving(tmp_path, "", limits=Limits(leave_s=0.05))
        old = await serving.begun()
        await old.send(write(0, b"o" * SIZE))
        assert await old.reply() == (0, 0)
        await old.send(request(NBD_CMD_WRITE_ZEROES, 0, SIZE))
        await eventually(lambda: steps.begun == 1, "it has begun")
        old.close()
        (connection,) = serving.service.connections
        if then == "the end":
            ending = asyncio.ensure_future(serving.close())
            await eventually(lambda: connection.closed, "the time of its client is over")
            steps.allow(1)
            await ending
            assert steps.begun == 1
        else:
            again = await serving.connected(go(b""))
            await eventually(lambda: connection.closed, "the time of its client is over")
            steps.allow(1)
            assert len(await again.receive(GO_REPLY_BYTES)) == GO_REPLY_BYTES
            steps.allow(100)
            await again.send(read(SIZE - 4, 4))
            assert await again.receive(20) == simple_reply(0) + b"oooo"
            assert steps.begun == 1
            again.close()
            await serving.close()

    run(scenario())


def test_slow_export_holds_up_only_its_own_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Gate(os.pwrite)

    async def scenario() -> None:
        serving = Serving(tmp_path, "a", "b")
        old = await serving.begun(b"a")
        monkeypatch.setattr(os, "pwrite", slow)
        await old.send(write(0, bytes(2 * MIB)))
        await eventually(lambda: slow.begun == 1, "the disk holds the write")
        old.close()
        other = await serving.begun(b"b")
        waiting = await serving.connected(go(b"a"))
        await other.send(read(0, 4, cookie=1))
        assert await other.reply() == (0, 1)
        slow.open()
        assert len(await waiting.receive(GO_REPLY_BYTES)) == GO_REPLY_BYTES
        for client in (other, waiting):
            client.close()
        await serving.close()

    asyncio.run(scenario())


def test_exports_are_listed_and_found_by_name(tmp_path: Path) -> None:
    async def scenario() -> None:
        serving = Serving(tmp_path, "a", "b")
        abort = option(Option.ABORT)
        client = await serving.connected(option(Option.LIST), go(b"c"), go(b""), abort)
        replies = option_replies(await client.read_to_end())
        assert [each.data for each in replies[:2]] == [
            b"\0\0\0\1aabout a",
            b"\0\0\0\1babout b",
        ]
        unknown, unnamed = replies[3:5]
        assert (unknown.type, unnamed.type) == (Reply.ERR_UNKNOWN, Reply.ERR_UNKNOWN)
        assert unknown.data == b"no export 'c' is here; there are: 'a', 'b'"
        client.close()
        (await serving.begun(b"b")).close()
        await serving.close()

    asyncio.run(scenario())


def test_only_export_is_the_default_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        serving = Serving(tmp_path, "only")
        for name in (b"", b"only"):
            client = await serving.begun(name)
            client.close()
        await serving.close()

    asyncio.run(scenario())


def test_two_exports_of_one_name_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="two exports"):
            Serving(tmp_path, "a", "a")

    asyncio.run(scenario())


def test_totals_show_what_clients_did_and_do(tmp_path: Path) -> None:
    async def scenario() -> None:
        serving = Serving(tmp_path, "a", limits=Limits(clients=1))
        client = await serving.begun(b"a")
        await client.send(write(0, b"data"))
        await client.reply()
        refused = await serving.connected(go(b"a"))
        (reply,) = option_replies(await refused.receive(20 + 46))
        assert reply.data == b"1 clients are connected, which is the limit"
        totals = serving.service.totals()
        assert totals["handshakes"]["agreed"] == 1
        assert totals["handshakes"]["over_limit"] == 1
        assert totals["transmission"]["requests"] == 1
        assert totals["now"]["clients"] == 1
        client.close()
        refused.close()
        await serving.close()

    asyncio.run(scenario())

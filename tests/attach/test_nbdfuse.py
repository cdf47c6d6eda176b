"""nbdfuse and a loop device for real, against a server that says what reached it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from nbdserver import protocol as nbd
from repl.attach.machine import Machine
from repl.attach.nbdfuse import NbdfuseWay
from tests.attach.fake_nbd import SIZE_BYTES, FakeNbd
from tests.daemon import wait_for

DEADLINE_S = 60.0
BLKDISCARD = 0x1277


def with_device(use: Callable[[FakeNbd, NbdfuseWay, Path, Path], None]) -> None:
    """Attach, call `use(server, way, device, folder)` in a thread, and see that nothing is left."""

    async def run() -> None:
        # Short, for the sake of the socket's path.
        with tempfile.TemporaryDirectory(prefix="repl-") as name:
            folder = Path(name)
            server, way = FakeNbd(folder / "nbd"), NbdfuseWay(Machine(), folder)
            await server.start()
            device = await asyncio.to_thread(way.attach, str(server.path), "r0")
            try:
                await asyncio.to_thread(use, server, way, device, folder)
            finally:
                if way.owns(device):
                    await asyncio.to_thread(way.cut_off, device)
                await server.stop()
            wait_for(lambda: not way.owns(device), what="the device is cleared")
            assert not (folder / "fuse").exists()
            assert way.program is not None and not way.program.alive

    asyncio.run(asyncio.wait_for(run(), DEADLINE_S))


def test_what_is_written_and_synced_is_flushed_at_the_server() -> None:
    def use(server: FakeNbd, way: NbdfuseWay, device: Path, folder: Path) -> None:
        descriptor = os.open(device, os.O_RDWR)
        try:
            assert os.lseek(descriptor, 0, os.SEEK_END) == SIZE_BYTES
            flushes = server.commands.count(nbd.NBD_CMD_FLUSH)
            os.pwrite(descriptor, b"data" * 1024, 8192)
            os.fsync(descriptor)
            assert server.commands.count(nbd.NBD_CMD_FLUSH) > flushes
            assert server.content[8192:12288] == b"data" * 1024
            assert server.commands[-1] == nbd.NBD_CMD_FLUSH
            fcntl.ioctl(descriptor, BLKDISCARD, struct.pack("=QQ", 4096, 4096))
            assert server.commands[-1] in (nbd.NBD_CMD_TRIM, nbd.NBD_CMD_WRITE_ZEROES)
        finally:
            os.close(descriptor)
        way.detach(device)

    with_device(use)


def test_cut_off_device_fails_its_users_at_once() -> None:
    def use(server: FakeNbd, way: NbdfuseWay, device: Path, folder: Path) -> None:
        with device.open("rb", buffering=0) as opened:
            server.mute = True
            way.cut_off(device)
            failed = False
            try:
                os.pread(opened.fileno(), 4096, 0)
            except OSError:
                failed = True
            assert failed
            # The kernel keeps the device until its last user is gone, and no longer.
            assert way.owns(device)

    with_device(use)

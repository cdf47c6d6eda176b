"""`python -m nbdserver` on a block device, to the byte."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdserver import protocol as nbd
from tests.nbdserver.serving import ServerProcess
from tests.nbdserver.wire import RawClient, request, write

SIZE_BYTES = 8 << 20
MIB = 1 << 20


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, SIZE_BYTES)
    made = subprocess.run(
        ["losetup", "--find", "--show", str(path)], check=True, capture_output=True, text=True
    )
    device = made.stdout.strip()
    yield Path(device)
    subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root and loop"
)
def test_block_device_is_written_zeroed_and_trimmed_exactly(
    loop_device: Path, tmp_path: Path
) -> None:
    chance = random.Random(2)
    with (
        ServerProcess(loop_device, tmp_path) as server,
        RawClient.to_unix(server.socket) as client,
    ):
        assert client.go() == SIZE_BYTES
        model = bytearray(chance.randbytes(SIZE_BYTES))
        for offset in range(0, SIZE_BYTES, MIB):
            assert client.ask(write(offset, bytes(model[offset : offset + MIB]))) == 0
        no_hole, fua = nbd.NBD_CMD_FLAG_NO_HOLE, nbd.NBD_CMD_FLAG_FUA
        for offset, length, flags in (
            (0, 4096, 0),
            (1, 3, 0),
            (5000, 100_000, no_hole),
            (MIB - 1, MIB + 2, fua),
            (SIZE_BYTES - 700, 700, no_hole | fua),
        ):
            assert client.ask(request(nbd.NBD_CMD_WRITE_ZEROES, offset, length, flags=flags)) == 0
            model[offset : offset + length] = bytes(length)
        fast = nbd.NBD_CMD_FLAG_FAST_ZERO
        done = client.ask(request(nbd.NBD_CMD_WRITE_ZEROES, 3 * MIB, MIB, flags=fast))
        assert done in (0, nbd.NBD_ENOTSUP)
        if not done:
            model[3 * MIB : 4 * MIB] = bytes(MIB)
        # A trim may leave what it was asked for; never touch a byte beside it.
        assert client.ask(request(nbd.NBD_CMD_TRIM, 5 * MIB + 100, 100_000)) == 0
        assert client.ask(request(nbd.NBD_CMD_FLUSH)) == 0
        found = b"".join(client.ask_read(offset, MIB) for offset in range(0, SIZE_BYTES, MIB))
        start, end = 5 * MIB + 100, 5 * MIB + 100_100
        assert found[:start] == model[:start]
        assert found[end:] == model[end:]
        trimmed, before = found[start:end], bytes(model[start:end])
        assert all(now in (0, was) for now, was in zip(trimmed, before, strict=True))

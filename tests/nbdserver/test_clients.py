"""Other projects' clients against `python -m nbdserver`: libnbd, nbdinfo, nbdcopy, qemu, fio.

They were written by other people from the same specification, which no test of ours can replace.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import nbd
import pytest

from tests.nbdserver.serving import ServerProcess

MIB = 1 << 20
COMMAND_DEADLINE_S = 60.0


def command(*words: str) -> str:
    """Run a client; its output. A client that fails fails the test with what it said."""
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, check=False
    )
    assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"
    return done.stdout


def connected(uri: str, **settings: Any) -> Any:
    """A libnbd handle. It checks nothing by itself, so that the server's own checks are seen."""
    handle = nbd.NBD()
    handle.set_strict_mode(0)
    for name, value in settings.items():
        getattr(handle, name)(value)
    handle.connect_uri(uri)
    return handle


@pytest.fixture(params=["unix", "tcp"])
def uri(request: pytest.FixtureRequest, server: ServerProcess) -> str:
    return server.uri if request.param == "unix" else server.tcp_uri


def test_libnbd_negotiates_what_the_export_promises(uri: str, server: ServerProcess) -> None:
    handle = connected(uri)
    assert handle.get_size() == server.size_bytes
    assert handle.get_protocol() == "newstyle-fixed"
    assert handle.can_multi_conn()
    assert handle.can_flush()
    assert handle.can_fua()
    assert handle.can_trim()
    assert handle.can_zero()
    assert not handle.can_fast_zero()
    assert not handle.is_read_only()
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
    handle.shutdown()


@pytest.mark.parametrize("handshake_flags", [0, 1, 3])
def test_libnbd_of_any_age_can_connect(server: ServerProcess, handshake_flags: int) -> None:
    handle = connected(server.uri, set_handshake_flags=handshake_flags)
    handle.pwrite(b"old", 100)
    assert handle.pread(3, 100) == b"old"
    handle.shutdown()


def test_libnbd_reads_back_every_kind_of_write(uri: str) -> None:
    handle = connected(uri)
    data = os.urandom(32 * MIB)
    handle.pwrite(data, 7)
    assert handle.pread(32 * MIB, 7) == data
    handle.pwrite(b"fua", 0, nbd.CMD_FLAG_FUA)
    handle.zero(100_000, 5000, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    handle.trim(100_000, 1_000_001)
    handle.flush()
    expected = bytearray(bytes(7) + data)
    expected[:3] = b"fua"
    expected[5000:105_000] = bytes(100_000)
    expected[1_000_001:1_100_001] = bytes(100_000)
    assert handle.pread(32 * MIB, 0) == expected[: 32 * MIB]
    handle.shutdown()


@pytest.mark.parametrize(
    ("operation", "error"),
    [
        (lambda handle, size: handle.pread(512, size), "EINVAL"),
        (lambda handle, size: handle.pwrite(b"x", size), "ENOSPC"),
        (lambda handle, size: handle.zero(2, size - 1), "ENOSPC"),
        (lambda handle, size: handle.trim(2, size - 1), "EINVAL"),
        (lambda handle, size: handle.zero(2, 0, nbd.CMD_FLAG_FAST_ZERO), "EINVAL"),
        (lambda handle, size: handle.cache(2, 0), "EINVAL"),
    ],
)
def test_libnbd_sees_the_right_error_and_goes_on(
    server: ServerProcess, operation: Any, error: str
) -> None:
    handle = connected(server.uri)
    with pytest.raises(nbd.Error) as raised:
        operation(handle, server.size_bytes)
    assert raised.value.errno == error
    assert handle.pread(3, 0) == bytes(3)
    handle.shutdown()


@pytest.mark.parametrize("seed", [1, 2])
def test_many_requests_in_flight_agree_with_a_model(uri: str, seed: int) -> None:
    chance = random.Random(seed)
    handle = connected(uri)
    block, blocks = 8192, 4096
    model = bytearray(block * blocks)
    mismatches: list[int] = []
    busy: set[int] = set()

    def checked(buffer: Any, offset: int, wanted: bytes) -> Any:
        def done(error: Any) -> int:
            if error.value or bytes(buffer.to_bytearray()) != wanted:
                mismatches.append(offset)
            return 1

        return done

    for _ in range(3000):
        while handle.aio_in_flight() >= 64:
            handle.poll(-1)
        offset = chance.randrange(blocks) * block
        if offset in busy:
            # Two in flight on one block have no order; wait until nothing is.
            while handle.aio_in_flight():
                handle.poll(-1)
            busy.clear()
        busy.add(offset)
        if chance.random() < 0.4:
            buffer = nbd.Buffer(block)
            wanted = bytes(model[offset : offset + block])
            handle.aio_pread(buffer, offset, checked(buffer, offset, wanted))
        elif chance.random() < 0.2:
            model[offset : offset + block] = bytes(block)
            handle.aio_zero(block, offset, lambda _: 1)
        else:
            data = chance.randbytes(block)
            model[offset : offset + block] = data
            written = nbd.Buffer.from_bytearray(bytearray(data))
            handle.aio_pwrite(written, offset, lambda _: 1)
    while handle.aio_in_flight():
        handle.poll(-1)
    assert not mismatches
    assert handle.pread(len(model), 0) == model
    handle.shutdown()


def test_all_connections_see_one_disk_before_and_after_a_flush(server: ServerProcess) -> None:
    handles = [connected(server.uri) for _ in range(6)]
    for number, handle in enumerate(handles):
        handle.pwrite(bytes([number + 1]) * 4096, number * 4096)
    handles[0].flush()
    for handle in reversed(handles):
        for number in range(6):
            assert handle.pread(4096, number * 4096) == bytes([number + 1]) * 4096
        handle.shutdown()


def test_nbdinfo_describes_the_export(disk: Path, tmp_path: Path) -> None:
    with ServerProcess(disk, tmp_path, "--name=vol", "--description=a disk") as server:
        (export,) = json.loads(command("nbdinfo", "--json", server.uri))["exports"]
        assert export["export-name"] == "vol"
        assert export["description"] == "a disk"
        assert export["export-size"] == server.size_bytes
        assert export["can_multi_conn"] is True
        listed = json.loads(command("nbdinfo", "--json", "--list", server.uri))["exports"]
        assert [each["export-name"] for each in listed] == ["vol"]


def test_nbdcopy_moves_a_disk_there_and_back(server: ServerProcess, tmp_path: Path) -> None:
    original, copied = tmp_path / "original", tmp_path / "copied"
    original.write_bytes(os.urandom(20 * MIB) + bytes(20 * MIB) + os.urandom(24 * MIB))
    command("nbdcopy", "--flush", str(original), server.uri)
    command("nbdcopy", server.tcp_uri, str(copied))
    assert copied.read_bytes() == original.read_bytes() == server.file.read_bytes()


def test_qemu_img_converts_compares_and_measures(server: ServerProcess, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.write_bytes(os.urandom(30 * MIB) + bytes(34 * MIB))
    info = json.loads(command("qemu-img", "info", "--output=json", server.uri))
    assert info["virtual-size"] == server.size_bytes
    command("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(original), server.uri)
    command("qemu-img", "compare", "-f", "raw", "-F", "raw", str(original), server.tcp_uri)
    assert server.file.read_bytes() == original.read_bytes()


def test_qemu_io_verifies_patterns_zeroes_and_discards(server: ServerProcess) -> None:
    steps = [
        "write -P 5 0 8M",
        "write -f -P 6 1M 4k",
        "write -z 2M 1M",
        "write -z -u 4M 512",
        "discard 5M 1M",
        "flush",
        "aio_write -P 9 7M 64k",
        "aio_flush",
        "read -P 5 0 1M",
        "read -P 6 1M 4k",
        "read -P 0 2M 1M",
        "read -P 0 4M 512",
        "read -P 5 4194816 1048064",
        "read -P 9 7M 64k",
        "write -P 7 30M 32M",
        "read -P 7 30M 32M",
    ]
    words = [word for step in steps for word in ("-c", step)]
    said = command("qemu-io", "-f", "raw", *words, server.uri)
    assert "Pattern verification failed" not in said


@pytest.mark.parametrize("job", ["--bs=4k --iodepth=32", "--bsrange=512-1m --iodepth=16"])
def test_fio_verifies_what_it_wrote(server: ServerProcess, job: str) -> None:
    report = command(
        "fio",
        "--name=verify",
        "--ioengine=nbd",
        f"--uri={server.uri}",
        "--rw=randwrite",
        "--size=32m",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--fsync=64",
        "--output-format=normal",
        *job.split(),
    )
    assert "err= 0" in report


def test_read_only_export_refuses_what_libnbd_forces_through(disk: Path, tmp_path: Path) -> None:
    with ServerProcess(disk, tmp_path, "--read-only") as server:
        handle = connected(server.uri)
        assert handle.is_read_only()
        for name, arguments in (("pwrite", (b"x", 0)), ("zero", (1, 0)), ("trim", (1, 0))):
            with pytest.raises(nbd.Error) as raised:
                getattr(handle, name)(*arguments)
            assert raised.value.errno == "EPERM"
        handle.flush()
        handle.shutdown()

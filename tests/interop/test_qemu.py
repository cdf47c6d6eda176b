"""qemu-img, qemu-io, and qemu-storage-daemon as a client that waits out a restart."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon import MIB, wait_for
from tests.interop.conftest import Connect, Tool, tls_pair
from tests.interop.targets import (
    SIZE_BYTES,
    FileTarget,
    PairTarget,
    Target,
    listens,
    qemu_name,
    qemu_objects,
)
from tests.interop.test_tools import image
from tests.pair import Pair

__all__ = ["image"]

KIB = 1 << 10


def test_qemu_img_converts_into_the_export_and_compares_equal(
    export: Target, run_tool: Tool, image: Path
) -> None:
    tls = qemu_objects(export)
    raw = ("-f", "raw", "-O", "raw")
    run_tool("qemu-img", "convert", *tls, "-n", *raw, image, qemu_name(export, "unix"))
    both = ("-f", "raw", "-F", "raw", image, qemu_name(export, "tcp"))
    compared = run_tool("qemu-img", "compare", *tls, *both)
    assert "identical" in compared
    assert export.backing().read_bytes() == image.read_bytes()


def test_qemu_img_reads_the_export_into_another_format(
    export: Target, run_tool: Tool, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.qcow2"
    tls, source = qemu_objects(export), qemu_name(export, "tcp")
    run_tool("qemu-img", "convert", *tls, "-f", "raw", "-O", "qcow2", source, copy)
    compared = run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", copy, export.backing())
    assert "identical" in compared


def test_qemu_img_creates_an_image_inside_the_export(
    blank: Target, run_tool: Tool, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(random.Random(3).randbytes(5 * MIB) + bytes(3 * MIB))
    tls, target = qemu_objects(blank), qemu_name(blank, "unix")
    if tls:
        # Its way to create knows URIs only, and those know no TLS: the image is made beside.
        empty = tmp_path / "empty.qcow2"
        run_tool("qemu-img", "create", "-f", "qcow2", empty, "8M")
        run_tool("qemu-img", "convert", *tls, "-n", "-f", "raw", "-O", "raw", empty, target)
    else:
        run_tool("qemu-img", "create", "-f", "qcow2", target, "8M")
    run_tool("qemu-img", "convert", *tls, "-n", "-f", "raw", "-O", "qcow2", source, target)
    run_tool("qemu-img", "check", *tls, "-f", "qcow2", target)
    compared = run_tool("qemu-img", "compare", *tls, "-f", "raw", "-F", "qcow2", source, target)
    assert "identical" in compared


def test_qemu_img_maps_holes_and_data(blank: Target, connect: Connect, run_tool: Tool) -> None:
    handle = connect(blank.uri())
    handle.pwrite(b"d" * 128 * KIB, 3 * MIB)
    handle.flush()
    asked = ("--output=json", "-f", "raw", qemu_name(blank, "unix"))
    mapped = json.loads(run_tool("qemu-img", "map", *qemu_objects(blank), *asked))
    assert [(each["start"], each["length"], each["data"], each["zero"]) for each in mapped] == [
        (0, 3 * MIB, False, True),
        (3 * MIB, 128 * KIB, True, False),
        (3 * MIB + 128 * KIB, SIZE_BYTES - 3 * MIB - 128 * KIB, False, True),
    ]


def test_qemu_io_patterns_are_read_back(export: Target, run_tool: Tool) -> None:
    commands = (
        "write -P 5 0 8M",
        "write -P 0x5a 4k 1M",
        "write -f -P 0xa5 2M 64k",
        "write -z 100k 200k",
        "write -z -u 4M 512",
        "discard 5M 1M",
        "aio_write -P 0x77 8M 4M",
        "aio_flush",
        "flush",
        "read -P 0x5a 4k 96k",
        "read -P 0 100k 200k",
        "read -P 0x5a 300k 728k",
        "read -P 0xa5 2M 64k",
        "read -P 0 4M 512",
        "read -P 5 4194816 1048064",
        "read -P 0x77 8M 4M",
        "write -P 7 30M 32M",
        "read -P 7 30M 32M",
    )
    arguments = [part for command in commands for part in ("-c", command)]
    name = qemu_name(export, "unix")
    said = run_tool("qemu-io", *qemu_objects(export), "-f", "raw", *arguments, name)
    assert "Pattern verification failed" not in said
    assert "ERROR" not in said


def test_qemu_io_is_told_why_a_request_failed(export: Target) -> None:
    commands = (f"read {SIZE_BYTES} 512", "read 0 512")
    arguments = [part for command in commands for part in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", *qemu_objects(export), "-f", "raw", *arguments, qemu_name(export, "unix")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # It checks the range itself; what matters is that the next request works.
    assert "read failed: Input/output error" in done.stdout + done.stderr
    assert "read 512/512 bytes at offset 0" in done.stdout


@contextlib.contextmanager
def storage_daemon(export: Target, folder: Path) -> Iterator[str]:
    """qemu-storage-daemon, a client of `export` that waits 60 s for a lost server and re-sends;
    the URI under which it exports the same again."""
    socket = folder / "qsd.sock"
    process = subprocess.Popen(
        [
            "qemu-storage-daemon",
            *qemu_objects(export),
            "--blockdev",
            f"driver=nbd,node-name=n0,server.type=unix,server.path={export.path},export=r0,"
            + ("tls-creds=tls0,tls-hostname=localhost," if export.client is not None else "")
            + "reconnect-delay=60",
            "--nbd-server",
            f"addr.type=unix,addr.path={socket},max-connections=8",
            "--export",
            "type=nbd,id=e0,node-name=n0,name=out,writable=on",
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: listens(socket), 20, "qemu-storage-daemon listens")
        yield f"nbd+unix:///out?socket={socket}"
        assert process.poll() is None, "qemu-storage-daemon has ended"
    finally:
        process.terminate()
        process.communicate()


@pytest.mark.parametrize(
    "crashes",
    [1, pytest.param(4, marks=pytest.mark.slow)],
)
def test_storage_daemon_rides_over_a_crash_of_the_server(
    export: Target, connect: Connect, tmp_path: Path, crashes: int
) -> None:
    ride_over(export.crash_and_restart, crashes, export, connect, tmp_path)


@pytest.mark.slow
def test_storage_daemon_rides_over_the_death_of_tls_processes(
    served_tls_file: FileTarget, connect: Connect, tmp_path: Path
) -> None:
    def kill_all() -> None:
        for pid in served_tls_file.tls_pids():
            os.kill(pid, signal.SIGKILL)

    ride_over(kill_all, 4, served_tls_file, connect, tmp_path)


class Floating(PairTarget):
    """The primary of two nodes under an address that goes to the other node when it dies."""

    def __init__(self, pair: Pair, folder: Path, client: Path | None = None) -> None:
        super().__init__(pair, client)
        self._address = folder / "service.sock"
        self._address.symlink_to(self.node.nbd_socket)

    @property
    def path(self) -> Path:
        return self._address

    def fail_over(self) -> None:
        """SIGKILL of the primary; the other node takes over and gets the address."""
        dead, self.node = self.node, self.pair.other(self.node)
        dead.kill()
        self.node.wait_volume(
            lambda v: v["peers"][0]["connection_state"] != "connected", "has noticed the loss"
        )
        self.node.promote("r0", "--peer-dead", dead.name)
        self.node.wait_primary()
        moved = self._address.with_suffix(".next")
        moved.symlink_to(self.node.nbd_socket)
        moved.replace(self._address)
        dead.start()
        self.pair.wait_in_sync()


@pytest.mark.slow
def test_storage_daemon_rides_over_failovers_to_the_other_node(
    connect: Connect, tmp_path: Path
) -> None:
    with Pair.make() as pair:
        pair.start_in_sync(primary=pair.alpha)
        export = Floating(pair, tmp_path)
        ride_over(export.fail_over, 2, export, connect, tmp_path)
        export.settle()


@pytest.mark.slow
def test_storage_daemon_rides_over_failovers_over_tls(
    certificates: Path, connect: Connect, tmp_path: Path
) -> None:
    """The client knows the service by a name that both nodes' certificates carry."""
    with tls_pair(certificates) as pair:
        export = Floating(pair, tmp_path, certificates / "ann")
        ride_over(export.fail_over, 2, export, connect, tmp_path)
        export.settle()


def ride_over(
    strike: Callable[[], None], times: int, export: Target, connect: Connect, folder: Path
) -> None:
    """Write through qemu-storage-daemon while the server is struck; every write must be there."""
    block = 64 * KIB
    blocks = SIZE_BYTES // block
    written: dict[int, int] = {}
    #: Every block that was written, as often as it was.
    answered: list[int] = []
    stop = threading.Event()
    failures: list[BaseException] = []

    def write_on(uri: str) -> None:
        handle = connect(uri)
        chance = random.Random(6)
        version = 0
        try:
            while not stop.is_set():
                version += 1
                number = chance.randrange(blocks)
                handle.pwrite(bytes([version % 251]) * block, number * block)
                written[number] = version % 251
                answered.append(number)
        except BaseException as error:  # shown by the test, which waits for progress
            failures.append(error)

    with storage_daemon(export, folder) as uri:
        writer = threading.Thread(target=write_on, args=(uri,))
        writer.start()
        try:
            for _ in range(times):
                seen = len(answered)
                wait_for(lambda seen=seen: failures or len(answered) > seen + 20, what="it writes")  # type: ignore[misc]
                strike()
            seen = len(answered)
            wait_for(lambda: failures or len(answered) > seen + 20, what="it writes again")
        finally:
            stop.set()
            writer.join()
        assert not failures
        handle = connect(uri)
        for number, value in written.items():
            assert bytes(handle.pread(block, number * block)) == bytes([value]) * block
        handle.flush()

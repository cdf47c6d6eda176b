"""nbdkit on either side: its nbd plugin as our client, its other plugins as what we serve."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import MIB, wait_for
from tests.interop.conftest import Connect, Tool
from tests.interop.targets import (
    SIZE_BYTES,
    Target,
    listens,
    nbdkit_plugin,
    qemu_name,
    qemu_objects,
)
from tests.interop.test_tools import fuse_mounted
from tests.nbdserver.serving import ServerProcess


@contextlib.contextmanager
def nbdkit(folder: Path, *arguments: str) -> Iterator[str]:
    """A running nbdkit; its URI."""
    socket = folder / "nbdkit.sock"
    process = subprocess.Popen(
        ["nbdkit", "--foreground", "--unix", str(socket), *arguments],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(lambda: listens(socket), 20, "nbdkit listens")
        yield f"nbd+unix:///?socket={socket}"
        assert process.poll() is None, "nbdkit has ended"
    finally:
        # Asked kindly, it would wait for its clients to leave.
        process.kill()
        process.communicate()


def test_nbdkit_passes_the_export_on(
    blank: Target, connect: Connect, run_tool: Tool, tmp_path: Path
) -> None:
    data = random.Random(5).randbytes(2 * MIB)
    with nbdkit(tmp_path, *nbdkit_plugin(blank)) as uri:
        handle = connect(uri)
        handle.pwrite(data, MIB + 1)
        handle.zero(MIB, 8 * MIB)
        handle.trim(MIB, 12 * MIB)
        handle.cache(MIB, 0)
        handle.flush()
        assert bytes(handle.pread(len(data), MIB + 1)) == data
        mapped = json.loads(run_tool("nbdinfo", "--map", "--json", uri))
        assert [each["type"] for each in mapped] == [3, 0, 3]
        assert sum(each["length"] for each in mapped) == SIZE_BYTES
    assert blank.backing().read_bytes()[MIB + 1 : MIB + 1 + len(data)] == data


@pytest.mark.slow
def test_nbdkit_with_its_retry_filter_survives_a_crash(
    export: Target, connect: Connect, tmp_path: Path
) -> None:
    plugin = nbdkit_plugin(export)
    arguments = ("--filter=retry", *plugin, "retry-delay=1", "retries=20")
    with nbdkit(tmp_path, *arguments) as uri:
        handle = connect(uri)
        handle.pwrite(b"before", 0)
        export.crash_and_restart()
        handle.pwrite(b"after", 4096)
        handle.flush()
        assert bytes(handle.pread(6, 0)) == b"before"
        assert bytes(handle.pread(5, 4096)) == b"after"


def test_disk_of_nbdkit_is_copied_into_the_export(
    export: Target, run_tool: Tool, tmp_path: Path
) -> None:
    with nbdkit(tmp_path, "pattern", f"size={SIZE_BYTES}") as uri:
        run_tool("nbdcopy", "--flush", uri, export.uri())
        both = ("-f", "raw", "-F", "raw", uri, qemu_name(export, "tcp"))
        compared = run_tool("qemu-img", "compare", *qemu_objects(export), *both)
        assert "identical" in compared


def test_file_system_without_tricks_is_served_all_the_same(
    connect: Connect, run_tool: Tool, tmp_path: Path
) -> None:
    """nbdkit's memory as a file by nbdfuse, served by us: neither RWF_NOWAIT nor holes there."""
    folder = tmp_path / "mnt"
    folder.mkdir()
    data = random.Random(8).randbytes(3 * MIB)
    with (
        nbdkit(tmp_path, "memory", "size=16M") as behind,
        fuse_mounted(folder, behind) as file,
        ServerProcess(file, tmp_path) as server,
    ):
        handle = connect(server.uri)
        handle.pwrite(data, 4321)
        handle.zero(MIB, MIB)
        handle.trim(MIB, 8 * MIB)
        handle.flush()
        expected = bytearray(16 * MIB)
        expected[4321 : 4321 + len(data)] = data
        expected[MIB : 2 * MIB] = bytes(MIB)
        assert handle.pread(16 * MIB, 0) == expected
        mapped = json.loads(run_tool("nbdinfo", "--map", "--json", server.uri))
        assert sum(each["length"] for each in mapped) == 16 * MIB
        handle.shutdown()
        assert connect(behind).pread(16 * MIB, 0) == expected

"""nbdinfo, nbdcopy, nbddump, nbdfuse and fio."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import MIB, wait_for
from tests.interop.conftest import Connect, Tool
from tests.interop.targets import SIZE_BYTES, Target, nbdkit_plugin

KIB = 1 << 10
NOBODY = 65534


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse image of the export's size with random data here and there."""
    path = tmp_path / "source.img"
    generator = random.Random(9)
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
        for _ in range(24):
            file.seek(generator.randrange(0, SIZE_BYTES - 256 * 1024))
            file.write(generator.randbytes(generator.randrange(1, 256 * 1024)))
    return path


def test_nbdinfo_describes_the_export(export: Target, run_tool: Tool) -> None:
    info = json.loads(run_tool("nbdinfo", "--json", export.uri()))
    (described,) = info["exports"]
    assert info["protocol"] == "newstyle-fixed"
    assert info["structured"] is True
    assert described["export-name"] == "r0"
    assert described["export-size"] == SIZE_BYTES
    assert described["contexts"] == list(export.contexts)
    assert described["is_read_only"] is False
    for feature in ("flush", "fua", "trim", "zero", "fast_zero", "cache", "df", "multi_conn"):
        assert described[f"can_{feature}"] is True, feature


def test_nbdinfo_lists_exports_over_tcp(export: Target, run_tool: Tool) -> None:
    listed = json.loads(run_tool("nbdinfo", "--json", "--list", export.tcp_uri("")))
    assert [entry["export-name"] for entry in listed["exports"]] == ["r0"]


def test_nbdinfo_maps_holes_and_data(blank: Target, connect: Connect, run_tool: Tool) -> None:
    handle = connect(blank.uri())
    handle.pwrite(b"d" * 128 * KIB, 3 * MIB)
    handle.flush()
    mapped = json.loads(run_tool("nbdinfo", "--map", "--json", blank.uri()))
    assert [(each["offset"], each["length"], each["type"]) for each in mapped] == [
        (0, 3 * MIB, 3),
        (3 * MIB, 128 * KIB, 0),
        (3 * MIB + 128 * KIB, SIZE_BYTES - 3 * MIB - 128 * KIB, 3),
    ]


def test_nbdcopy_brings_an_image_in_and_takes_it_out_sparse(
    blank: Target, run_tool: Tool, image: Path, tmp_path: Path
) -> None:
    run_tool("nbdcopy", "--flush", image, blank.uri())
    back = tmp_path / "back.img"
    run_tool("nbdcopy", blank.uri(), back)
    assert back.read_bytes() == image.read_bytes()
    assert blank.backing().read_bytes() == image.read_bytes()
    # Holes were told, so that they could stay holes.
    assert os.stat(back).st_blocks * 512 < SIZE_BYTES // 2


@pytest.mark.parametrize("over", ["tcp", pytest.param("unix", marks=pytest.mark.slow)])
def test_nbdcopy_over_many_connections_gives_the_same_image(
    export: Target, run_tool: Tool, image: Path, over: str
) -> None:
    command = ("nbdcopy", "--requests=64", "--connections=4", "--flush")
    run_tool(*command, image, export.tcp_uri() if over == "tcp" else export.uri())
    assert export.backing().read_bytes() == image.read_bytes()


def test_nbddump_prints_what_is_there(blank: Target, connect: Connect, run_tool: Tool) -> None:
    connect(blank.uri()).pwrite(b"dump me, please!", 4096)
    printed = run_tool("nbddump", "--length=8192", blank.uri())
    assert "dump me, please!" in printed
    assert "0000001000" in printed


@contextlib.contextmanager
def fuse_mounted(folder: Path, *source: str) -> Iterator[Path]:
    """A URI, or a server in brackets, as a file by nbdfuse."""
    file = folder / "nbd"
    process = subprocess.Popen(["nbdfuse", str(file), *source], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: file.exists() and file.stat().st_size > 0, 20, "nbdfuse has mounted")
        yield file
    finally:
        subprocess.run(["fusermount3", "-u", str(folder)], check=False, capture_output=True)
        process.terminate()
        process.communicate()


def test_nbdfuse_shows_the_export_as_a_file(export: Target, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(3 * MIB + 17)
    folder = tmp_path / "mnt"
    folder.mkdir()
    source = [export.uri()]
    if export.client is not None:
        # It takes no certificates, so nbdkit's plugin speaks TLS for it.
        source = ["[", "nbdkit", *nbdkit_plugin(export), "]"]
    with fuse_mounted(folder, *source) as file:
        assert file.stat().st_size == SIZE_BYTES
        with file.open("r+b", buffering=0) as opened:
            opened.seek(1000)
            assert opened.write(data) == len(data)
            os.fsync(opened.fileno())
            opened.seek(1000)
            assert opened.read(len(data)) == data
    assert export.backing().read_bytes()[1000 : 1000 + len(data)] == data


@contextlib.contextmanager
def home_of(export: Target) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    """For fio, which takes no certificates in a URI: a home where libnbd finds them, the URI, and
    what to put before its command, because libnbd looks into the home of any user but root."""
    client = export.client
    with tempfile.TemporaryDirectory(prefix="home-") as name:
        home = Path(name)
        if client is None:
            yield home, export.uri(), ()
            return
        shutil.copytree(client, home / ".pki" / "libnbd")
        nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        if os.geteuid() == 0:
            for path in (home, *home.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
        uri = f"nbds://127.0.0.1:{export.port}/r0"
        yield home, uri, (*(nobody if os.geteuid() == 0 else ()), "env", f"HOME={home}")


def run_fio(run_tool: Tool, export: Target, *options: str) -> dict[str, Any]:
    """Run one fio job with its nbd engine; return the job's part of fio's report."""
    with home_of(export) as (folder, uri, before):
        # fio prints notes among its JSON on standard output, so the report goes to a file.
        report = folder / "report.json"
        output = ("--output-format=json", f"--output={report}")
        named = ("--name=job", "--ioengine=nbd", f"--uri={uri}")
        run_tool(*before, "fio", *named, *options, *output, cwd=folder)
        text = report.read_text()
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert isinstance(job, dict)
    return job


def test_fio_verifies_what_it_wrote_at_random(export: Target, run_tool: Tool) -> None:
    options = ("--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=16m", "--fsync=256")
    verify = ("--verify=crc32c", "--do_verify=1", "--verify_fatal=1")
    job = run_fio(run_tool, export, *options, *verify)
    assert job["error"] == 0
    assert job["write"]["io_bytes"] == 16 * MIB
    assert job["read"]["io_bytes"] == 16 * MIB


@pytest.mark.slow
def test_fio_mixes_sizes_and_directions_without_an_error(export: Target, run_tool: Tool) -> None:
    options = ("--rw=randrw", "--bsrange=512-256k", "--blockalign=512", "--iodepth=16")
    sizes = ("--size=32m", "--io_size=32m")
    job = run_fio(run_tool, export, *options, *sizes)
    assert job["error"] == 0
    assert job["write"]["io_bytes"] > 0
    assert job["read"]["io_bytes"] > 0

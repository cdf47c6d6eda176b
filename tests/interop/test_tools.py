"""nbdinfo, nbdcopy, qemu-img, qemu-io and fio against the primary of a live pair."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import MIB, Node

SIZE_BYTES = 64 * MIB
Tool = Callable[..., str]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A sparse image of the volume's size with random data here and there."""
    path = tmp_path / "source.img"
    generator = random.Random(9)
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
        for _ in range(24):
            file.seek(generator.randrange(0, SIZE_BYTES - 256 * 1024))
            file.write(generator.randbytes(generator.randrange(1, 256 * 1024)))
    return path


def test_nbdinfo_describes_the_export(export: Node, run_tool: Tool) -> None:
    info = json.loads(run_tool("nbdinfo", "--json", export.uri()))
    (described,) = info["exports"]
    assert info["protocol"] == "newstyle-fixed"
    assert described["export-name"] == "r0"
    assert described["export-size"] == SIZE_BYTES
    assert described["can_flush"] is True
    assert described["can_fua"] is True
    assert described["is_read_only"] is False


def test_nbdinfo_lists_exports_over_tcp(export: Node, run_tool: Tool) -> None:
    listed = json.loads(run_tool("nbdinfo", "--json", "--list", export.tcp_uri("")))
    assert [entry["export-name"] for entry in listed["exports"]] == ["r0"]


def test_nbdcopy_in_and_out_gives_the_same_image(
    export: Node, run_tool: Tool, image: Path, tmp_path: Path
) -> None:
    run_tool("nbdcopy", "--flush", image, export.uri())
    back = tmp_path / "back.img"
    run_tool("nbdcopy", export.uri(), back)
    assert back.read_bytes() == image.read_bytes()
    assert export.backing().read_bytes() == image.read_bytes()


def test_nbdcopy_with_many_requests_over_tcp_gives_the_same_image(
    export: Node, run_tool: Tool, image: Path
) -> None:
    command = ("nbdcopy", "--requests=64", "--connections=4", "--flush")
    run_tool(*command, image, export.tcp_uri())
    assert export.backing().read_bytes() == image.read_bytes()


def test_qemu_img_converts_into_the_export_and_compares_equal(
    export: Node, run_tool: Tool, image: Path
) -> None:
    run_tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, export.uri())
    compared = run_tool("qemu-img", "compare", "-f", "raw", "-F", "raw", image, export.uri())
    assert "identical" in compared


def test_qemu_img_reads_the_export_into_another_format(
    export: Node, run_tool: Tool, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.qcow2"
    run_tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", export.tcp_uri(), copy)
    compared = run_tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", copy, export.backing())
    assert "identical" in compared


def test_qemu_io_patterns_are_read_back(export: Node, run_tool: Tool) -> None:
    commands = (
        "write -P 0x5a 4k 1M",
        "write -f -P 0xa5 2M 64k",
        "write -z 100k 200k",
        "discard 3M 1M",
        "aio_write -P 0x77 8M 4M",
        "aio_flush",
        "flush",
        "read -P 0x5a 4k 96k",
        "read -P 0 100k 200k",
        "read -P 0x5a 300k 728k",
        "read -P 0xa5 2M 64k",
        "read -P 0x77 8M 4M",
    )
    arguments = [part for command in commands for part in ("-c", command)]
    said = run_tool("qemu-io", "-f", "raw", *arguments, export.uri())
    assert "Pattern verification failed" not in said
    assert "ERROR" not in said


def run_fio(run_tool: Tool, folder: Path, *options: str) -> dict[str, Any]:
    """Run one fio job with its nbd engine; return the job's part of fio's report."""
    # fio prints notes among its JSON on standard output, so the report goes to a file.
    report = folder / "report.json"
    output = ("--output-format=json", f"--output={report}")
    run_tool("fio", "--name=job", "--ioengine=nbd", *options, *output, cwd=folder)
    text = report.read_text()
    (job,) = json.loads(text[text.index("{") :])["jobs"]
    assert isinstance(job, dict)
    return job


def test_fio_verifies_what_it_wrote_at_random(export: Node, run_tool: Tool, tmp_path: Path) -> None:
    options = ("--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=16m", "--fsync=256")
    verify = ("--verify=crc32c", "--do_verify=1", "--verify_fatal=1")
    job = run_fio(run_tool, tmp_path, f"--uri={export.uri()}", *options, *verify)
    assert job["error"] == 0
    assert job["write"]["io_bytes"] == 16 * MIB
    assert job["read"]["io_bytes"] == 16 * MIB


def test_fio_mixes_sizes_and_directions_without_an_error(
    export: Node, run_tool: Tool, tmp_path: Path
) -> None:
    options = ("--rw=randrw", "--bsrange=512-256k", "--blockalign=512", "--iodepth=16")
    sizes = ("--size=32m", "--io_size=32m")
    job = run_fio(run_tool, tmp_path, f"--uri={export.tcp_uri()}", *options, *sizes)
    assert job["error"] == 0
    assert job["write"]["io_bytes"] > 0
    assert job["read"]["io_bytes"] > 0

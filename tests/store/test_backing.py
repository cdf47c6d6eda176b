"""Real files and a real block device: exact edges, holes, locks, and syncs that fail once."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl.errors import PermissionRefused, Refused, ReplError
from repl.store import backing as backing_module
from repl.store import fallocate
from repl.store.backing import BUFFERS_MAX, Backing
from repl.store.block_identity import block_identity
from repl.store.stamp import BackingKind

SIZE_BYTES = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Backing]:
    path = tmp_path / "r0.img"
    path.write_bytes(b"")
    os.truncate(path, SIZE_BYTES)
    backing = Backing.open(str(path), "r0")
    yield backing
    backing.close()


def read(backing: Backing, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    backing.preadv([buffer], offset)
    return bytes(buffer)


def test_written_buffers_are_read_back_into_other_buffers(image: Backing) -> None:
    image.pwritev([b"abc", memoryview(b"defg"), bytearray(b"h")], 5000)
    first, second = bytearray(3), bytearray(5)
    image.preadv([first, memoryview(second)], 5000)
    assert first + second == b"abcdefgh"


def test_more_buffers_than_one_system_call_takes(image: Backing) -> None:
    parts = [bytes([number % 251]) * 3 for number in range(BUFFERS_MAX + 10)]
    image.pwritev(parts, 7)
    assert read(image, 7, 3 * len(parts)) == b"".join(parts)
    buffers = [bytearray(3) for _ in parts]
    image.preadv(buffers, 7)
    assert [bytes(buffer) for buffer in buffers] == parts


def test_short_reads_and_writes_are_completed(
    image: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_read, real_write = os.preadv, os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, b, o: real_write(fd, [bytes(b[0])[:5]], o))
    monkeypatch.setattr(os, "preadv", lambda fd, b, o: real_read(fd, [memoryview(b[0])[:3]], o))
    image.pwritev([b"0123456789", b"abcdef"], 100)
    buffers = [bytearray(7), bytearray(9)]
    image.preadv(buffers, 100)
    assert b"".join(buffers) == b"0123456789abcdef"


def test_a_range_beyond_the_end_is_our_bug(image: Backing) -> None:
    with pytest.raises(AssertionError):
        image.pwritev([b"xx"], SIZE_BYTES - 1)
    with pytest.raises(AssertionError):
        read(image, SIZE_BYTES, 1)


def test_a_backing_cut_short_under_us_is_an_io_error(image: Backing) -> None:
    os.truncate(image.path, 4096)
    with pytest.raises(OSError, match="cut short") as caught:
        read(image, 8192, 10)
    assert caught.value.errno == errno.EIO


def without_punch_and_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallocate, "punch_hole", lambda fd, offset, length: False)
    monkeypatch.setattr(fallocate, "zero_range", lambda fd, offset, length: False)


@pytest.mark.parametrize("method", ["punch", "zero"])
@pytest.mark.parametrize("supported", [True, False])
@pytest.mark.parametrize("alignment_bytes", [1, 512])
def test_zeroing_is_exact_at_its_edges(
    image: Backing,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    supported: bool,
    alignment_bytes: int,
) -> None:
    if not supported:
        without_punch_and_zero(monkeypatch)
    monkeypatch.setattr(backing_module, "_ZEROES", bytes(8192))
    monkeypatch.setattr(backing_module, "ZERO_BYTES", 8192)
    image.alignment_bytes = alignment_bytes

    @settings(max_examples=40, deadline=None)
    @given(offset=st.integers(0, 40000), length=st.integers(0, 40000))
    def check(offset: int, length: int) -> None:
        image.pwritev([b"\xaa" * 90000], 0)
        getattr(image, method)(offset, length)
        expected = bytearray(b"\xaa" * 90000)
        expected[offset : offset + length] = bytes(length)
        assert read(image, 0, 90000) == expected

    check()


def test_zeroing_reaches_the_last_byte_and_keeps_the_size(image: Backing) -> None:
    for method in (image.punch, image.zero):
        image.pwritev([b"\xaa" * SIZE_BYTES], 0)
        method(1, SIZE_BYTES - 1)
        assert read(image, 0, SIZE_BYTES) == b"\xaa" + bytes(SIZE_BYTES - 1)
        assert os.path.getsize(image.path) == SIZE_BYTES


def test_holes_are_found_and_punching_makes_them(image: Backing) -> None:
    assert image.next_data(0) is None
    image.pwritev([b"x" * 65536], 1 << 17)
    found = image.next_data(0)
    assert found is not None
    start, end = found
    assert start <= 1 << 17
    assert end >= (1 << 17) + 65536
    assert image.next_data(end) is None
    assert image.next_data(SIZE_BYTES) is None
    image.punch(0, SIZE_BYTES)
    assert image.next_data(0) is None


def test_backing_cut_short_is_not_taken_for_a_hole(image: Backing) -> None:
    """Else a resync would send zeroes to the peer for what is lost here."""
    image.pwritev([b"x" * 4096], SIZE_BYTES - 4096)
    os.truncate(image.path, 65536)
    found = image.next_data(65536)
    assert found == (65536, SIZE_BYTES)
    with pytest.raises(OSError, match="cut short"):
        read(image, SIZE_BYTES - 4096, 4096)


def test_where_holes_cannot_be_told_everything_is_data(
    image: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "no such thing here")

    monkeypatch.setattr(os, "lseek", refuse)
    assert image.next_data(4096) == (4096, SIZE_BYTES)


def test_a_failed_sync_is_never_tried_again(
    image: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "the disk said no")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(OSError, match="said no"):
        image.sync()
    monkeypatch.undo()
    with pytest.raises(OSError, match="earlier sync"):
        image.sync()
    assert len(calls) == 1


def test_a_second_opening_is_refused_until_the_first_is_closed(image: Backing) -> None:
    with pytest.raises(Refused) as caught:
        Backing.open(image.path, "r0")
    assert caught.value.code == "BACKING_IN_USE"
    path = image.path
    os.link(path, path + ".twin")
    with pytest.raises(Refused):
        Backing.open(path + ".twin", "r0")
    open_files = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Refused):
        Backing.open(path, "r0")
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_a_folder_is_no_backing(tmp_path: Path) -> None:
    with pytest.raises(ReplError) as caught:
        Backing.open(str(tmp_path), "r0")
    assert caught.value.code == "BACKING_UNREADABLE"
    with pytest.raises(ReplError) as caught:
        Backing.open("/dev/null", "r0")
    assert caught.value.code == "BACKING_UNREADABLE"


def test_a_file_that_may_not_be_opened_is_a_matter_of_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r0.img"
    path.touch()

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionRefused):
        Backing.open(str(path), "r0")


def test_the_tag_is_part_of_the_stamp_and_survives_reopening(image: Backing) -> None:
    before = image.stamp()
    assert (before.kind, before.size_bytes, before.tag) == (BackingKind.FILE, SIZE_BYTES, "")
    image.write_tag("00ff")
    path = image.path
    again = os.stat(path)
    stamp = image.stamp()
    assert stamp.inode == again.st_ino
    assert stamp.tag == ("00ff" if stamp.taggable else "")


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "disk.img"
    path.touch()
    os.truncate(path, SIZE_BYTES)
    made = subprocess.run(
        ["losetup", "--find", "--show", str(path)], check=True, capture_output=True, text=True
    )
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/loop-control"), reason="needs root and loop"
)
def test_a_block_device_is_zeroed_exactly_and_locked(loop_device: str) -> None:
    backing = Backing.open(loop_device, "r0")
    try:
        assert (backing.kind, backing.size_bytes) == (BackingKind.BLOCK, SIZE_BYTES)
        assert backing.alignment_bytes in (512, 4096)
        with pytest.raises(Refused):
            Backing.open(loop_device, "r0")
        for method in (backing.punch, backing.zero):
            for offset, length in ((1, 3), (100, 70000), (512, 4096), (0, SIZE_BYTES)):
                backing.pwritev([b"\xaa" * SIZE_BYTES], 0)
                method(offset, length)
                expected = bytearray(b"\xaa" * SIZE_BYTES)
                expected[offset : offset + length] = bytes(length)
                assert read(backing, 0, SIZE_BYTES) == expected
        backing.sync()
        assert backing.next_data(0) == (0, SIZE_BYTES)
        assert backing.stamp().kind is BackingKind.BLOCK
    finally:
        backing.close()


def test_a_partition_is_identified_by_its_disk_and_number(tmp_path: Path) -> None:
    disk = tmp_path / "sdx"
    (disk / "sdx2").mkdir(parents=True)
    (disk / "wwid").write_text("naa.5000  c500\n")
    (disk / "sdx2" / "partition").write_text("2\n")
    numbers = tmp_path / "block"
    numbers.mkdir()
    (numbers / "8:0").symlink_to(disk)
    (numbers / "8:2").symlink_to(disk / "sdx2")
    assert block_identity(os.makedev(8, 0), str(numbers)) == "wwid:naa.5000 c500"
    assert block_identity(os.makedev(8, 2), str(numbers)) == "wwid:naa.5000 c500:partition-2"
    assert block_identity(os.makedev(8, 9), str(numbers)) == ""

"""python3-libnbd against the primary of a live pair."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests import libnbd
from tests.daemon import MIB, Node

SIZE_BYTES = 64 * MIB


def connected(uri: str) -> Any:
    handle = libnbd.load().NBD()
    handle.connect_uri(uri)
    return handle


def test_size_flags_and_block_sizes_are_announced(export: Node) -> None:
    nbd = libnbd.load()
    handle = nbd.NBD()
    # What the server says of block sizes is kept only if asked for.
    handle.set_full_info(True)
    handle.connect_uri(export.uri())
    assert handle.get_size() == SIZE_BYTES
    assert not handle.is_read_only()
    for offered in (handle.can_flush, handle.can_fua, handle.can_trim, handle.can_zero):
        assert offered()
    assert handle.get_block_size(nbd.SIZE_MINIMUM) in {1, 512, 4096}
    assert handle.get_block_size(nbd.SIZE_PREFERRED) >= 4096
    assert handle.get_block_size(nbd.SIZE_MAXIMUM) == 32 * MIB
    handle.shutdown()


@pytest.mark.parametrize("over", ["unix", "tcp"])
def test_what_was_written_is_read_back(export: Node, over: str) -> None:
    handle = connected(export.uri() if over == "unix" else export.tcp_uri())
    generator = random.Random(1)
    for offset, length in ((0, 1), (511, 2), (4095, 8194), (SIZE_BYTES - 100, 100)):
        data = generator.randbytes(length)
        handle.pwrite(data, offset)
        assert bytes(handle.pread(length, offset)) == data
    handle.flush()
    handle.shutdown()


def test_largest_request_of_32_mebibytes_is_served(export: Node) -> None:
    handle = connected(export.uri())
    data = random.Random(2).randbytes(32 * MIB)
    handle.pwrite(data, 16 * MIB)
    assert bytes(handle.pread(32 * MIB, 16 * MIB)) == data
    handle.shutdown()


def test_zeroed_range_reads_as_zeroes_with_edges_untouched(export: Node) -> None:
    nbd = libnbd.load()
    handle = connected(export.uri())
    handle.pwrite(b"\xaa" * (256 << 10), MIB)
    handle.zero(100_001, MIB + 777)
    handle.zero(50_000, MIB + 150_000, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
    found = bytes(handle.pread(256 << 10, MIB))
    expected = bytearray(b"\xaa" * (256 << 10))
    expected[777 : 777 + 100_001] = bytes(100_001)
    expected[150_000:200_000] = bytes(50_000)
    assert found == bytes(expected)
    handle.shutdown()


def test_trimmed_range_is_equal_on_both_copies(export: Node) -> None:
    handle = connected(export.uri())
    handle.pwrite(b"\xbb" * (256 << 10), 2 * MIB)
    handle.trim(200_000, 2 * MIB + 1000)
    handle.flush()
    found = bytes(handle.pread(256 << 10, 2 * MIB))
    assert found[:1000] == b"\xbb" * 1000
    assert found[201_000:] == b"\xbb" * ((256 << 10) - 201_000)
    handle.shutdown()


def test_write_flushed_on_one_connection_is_read_on_another(export: Node) -> None:
    handles = [connected(export.uri()) for _ in range(4)]
    if handles[0].can_multi_conn():
        for number, handle in enumerate(handles):
            handle.pwrite(bytes([number + 1]) * 4096, number * 4096)
        handles[0].flush()
    else:
        handles[0].pwrite(b"".join(bytes([n + 1]) * 4096 for n in range(4)), 0)
    for handle in handles:
        found = bytes(handle.pread(4 * 4096, 0))
        assert found == b"".join(bytes([number + 1]) * 4096 for number in range(4))
        handle.shutdown()


def test_request_beyond_the_end_is_an_error_and_the_connection_lives(export: Node) -> None:
    nbd = libnbd.load()
    handle = nbd.NBD()
    # libnbd refuses such a request itself unless told to let the server judge.
    handle.set_strict_mode(0)
    handle.connect_uri(export.uri())
    with pytest.raises(nbd.Error):
        handle.pread(4096, SIZE_BYTES - 512)
    with pytest.raises(nbd.Error):
        handle.pwrite(bytes(4096), SIZE_BYTES)
    assert len(handle.pread(512, SIZE_BYTES - 512)) == 512
    handle.shutdown()


def test_list_shows_the_export_with_its_description(export: Node) -> None:
    handle = libnbd.load().NBD()
    handle.set_opt_mode(True)
    handle.connect_unix(str(export.nbd_socket))
    listed: list[str] = []
    handle.opt_list(lambda name, description: listed.append(name))
    handle.opt_abort()
    assert listed == ["r0"]

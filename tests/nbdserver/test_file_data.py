"""Pieces of a file in the page cache: sent whole and in order, and never waited for."""

from __future__ import annotations

import os
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdserver import file_data
from nbdserver import protocol as nbd
from nbdserver.chunked_replies import StructuredReplies
from nbdserver.errors import LocalError
from nbdserver.file_data import FileData, PageCache
from nbdserver.replies import ReplyQueue
from nbdserver.requests import Request

SIZE_BYTES = 1 << 20
CONTENT = random.Random(5).randbytes(SIZE_BYTES)
REPLY_BYTES = nbd.SIMPLE_REPLY_BYTES


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


def cachestat_is_there() -> bool:
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
        file.flush()
        return PageCache(file.fileno()).holds(0, 1)


needs_cachestat = pytest.mark.skipif(
    not cachestat_is_there(), reason="this kernel cannot be asked what its page cache holds"
)


def asked(offset: int, length: int) -> Request:
    return Request(None, nbd.NBD_CMD_READ, 0, b"cookie_8", offset, length)


def received(sock: socket.socket) -> bytes:
    found = bytearray()
    try:
        while piece := sock.recv(1 << 20):
            found += piece
    except BlockingIOError:
        pass
    return bytes(found)


@needs_cachestat
def test_page_cache_is_known_to_hold_what_was_written(descriptor: int) -> None:
    cache = PageCache(descriptor)
    assert cache.holds(0, SIZE_BYTES)
    assert cache.holds(4095, 2)
    assert not cache.holds(SIZE_BYTES - 1, 4096)


def test_page_cache_holds_no_hole_and_nothing_evicted(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
        file.seek(8192)
        file.write(b"x" * 4096)
        file.flush()
        cache = PageCache(file.fileno())
        assert not cache.holds(0, 12288)


def test_page_that_is_still_being_read_is_not_there(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_its_way(_descriptor: int, _buffers: object, _offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        raise BlockingIOError

    monkeypatch.setattr(os, "preadv", on_its_way)
    assert not PageCache(descriptor).holds(0, SIZE_BYTES)


def test_kernel_that_cannot_tell_is_asked_once(
    descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_data, "_CACHESTAT", 1 << 20)
    cache = PageCache(descriptor)
    assert not cache.holds(0, 4096)
    monkeypatch.undo()
    assert not cache.holds(0, 4096)


def test_small_and_large_replies_come_in_their_order(
    descriptor: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    queue = ReplyQueue()
    queue.add_success(Request(None, nbd.NBD_CMD_FLUSH, 0, b"before_8", 0, 0))
    queue.add_file(asked(4096, 10000), FileData(descriptor, 4096, 10000))
    queue.add_data(asked(0, 4), b"data", None)
    queue.add_file(asked(1, 5), FileData(descriptor, 1, 5))
    queue.send_to(near)
    assert not queue.pieces and not queue.unsent_bytes
    found = received(far)
    assert found[REPLY_BYTES - 8 : REPLY_BYTES] == b"before_8"
    found = found[REPLY_BYTES:]
    assert found[REPLY_BYTES : REPLY_BYTES + 10000] == CONTENT[4096:14096]
    found = found[REPLY_BYTES + 10000 :]
    assert found[REPLY_BYTES : REPLY_BYTES + 4] == b"data"
    assert found[2 * REPLY_BYTES + 4 :] == CONTENT[1:6]


@pytest.mark.parametrize("queue_type", [ReplyQueue, StructuredReplies])
def test_what_the_socket_does_not_take_is_no_files_any_more(
    descriptor: int, ends: tuple[socket.socket, socket.socket], queue_type: type[ReplyQueue]
) -> None:
    near, far = ends
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
    queue = queue_type()
    queue.add_file(asked(0, SIZE_BYTES), FileData(descriptor, 0, SIZE_BYTES))
    queue.send_to(near)
    assert 0 < queue.unsent_bytes < SIZE_BYTES
    assert not any(isinstance(piece, FileData) for piece in queue.pieces)
    # What happens to the file from now on is not seen by this client.
    rest_from = SIZE_BYTES - queue.unsent_bytes
    os.pwrite(descriptor, bytes(SIZE_BYTES - rest_from), rest_from)
    found = received(far)
    while queue.pieces:
        queue.send_to(near)
        found += received(far)
    assert found[-SIZE_BYTES:] == CONTENT


def test_file_that_was_cut_short_ends_the_connection(
    descriptor: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    queue = ReplyQueue()
    queue.add_file(asked(0, SIZE_BYTES), FileData(descriptor, 0, SIZE_BYTES))
    os.truncate(descriptor, 0)
    with pytest.raises(OSError, match="shorter"):
        queue.send_to(ends[0])


def test_data_of_another_length_is_our_error(descriptor: int) -> None:
    queue = ReplyQueue()
    with pytest.raises(LocalError, match="for a READ of 5"):
        queue.add_file(asked(0, 5), FileData(descriptor, 0, 4))
    assert queue.pieces == []

"""Pieces of a file in the page cache: sent whole and in order, and never waited for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import random
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from nbdserver import protocol as nbd
from nbdserver.chunked_replies import StructuredReplies
from nbdserver.counters import TransmissionCounters
from nbdserver.errors import LocalError
from nbdserver.file_data import FileData, FileFailed, PageCache
from nbdserver.replies import ReplyQueue
from nbdserver.requests import Request
from tests.nbdserver.held_backend import Served
from tests.nbdserver.wire import read as nbd_read

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


@pytest.fixture
def cache(descriptor: int) -> Iterator[PageCache]:
    made = PageCache(descriptor, SIZE_BYTES)
    yield made
    made.close()


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


def test_page_cache_is_known_to_hold_what_was_written(cache: PageCache) -> None:
    assert cache.holds(0, SIZE_BYTES)
    assert cache.holds(4095, 2)
    assert not cache.holds(SIZE_BYTES - 1, 4096)


def test_one_page_that_is_not_there_is_seen_wherever_it_is(tmp_path: Path) -> None:
    with (tmp_path / "pages").open("w+b", buffering=0) as file:
        # Page by page, for what is written at once may be evicted only as a whole.
        for start in range(0, SIZE_BYTES, 4096):
            file.write(CONTENT[start : start + 4096])
        os.fdatasync(file)
        with contextlib.closing(PageCache(file.fileno(), SIZE_BYTES)) as cache:
            for page in (0, 100, SIZE_BYTES // 4096 - 1):
                assert cache.holds(0, SIZE_BYTES)
                os.posix_fadvise(file.fileno(), page * 4096, 4096, os.POSIX_FADV_DONTNEED)
                assert not cache.holds(0, SIZE_BYTES)
                os.pread(file.fileno(), SIZE_BYTES, 0)


def test_page_cache_holds_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("w+b") as file:
        file.truncate(SIZE_BYTES)
        file.seek(8192)
        file.write(b"x" * 4096)
        file.flush()
        with contextlib.closing(PageCache(file.fileno(), SIZE_BYTES)) as cache:
            assert cache.holds(8192, 4096)
            assert not cache.holds(0, 12288)


def test_file_that_was_cut_short_is_not_there(cache: PageCache, descriptor: int) -> None:
    os.truncate(descriptor, SIZE_BYTES // 2)
    assert not cache.holds(0, SIZE_BYTES)
    assert cache.holds(0, SIZE_BYTES // 2)


def test_system_that_says_that_all_is_there_is_not_believed(descriptor: int) -> None:
    """It does of a file that is another user's."""

    class Claiming(PageCache):
        def _count_present(self, position: int, pages: int) -> int:
            return min(pages, super()._count_present(0, 1)) * pages

    assert not Claiming(descriptor, SIZE_BYTES).holds(0, SIZE_BYTES)


def test_file_that_cannot_be_mapped_is_never_there() -> None:
    near, far = os.pipe()
    with open(near, "rb"), open(far, "wb"):
        assert not PageCache(near, SIZE_BYTES).holds(0, 4096)


def test_closed_page_cache_keeps_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "locked"
    path.write_bytes(bytes(4096))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cache = PageCache(file.fileno(), 4096)
        assert cache.holds(0, 4096)
        cache.close()
        assert not cache.holds(0, 4096)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


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


def test_nothing_is_kept_back_behind_the_last_data_of_a_file(
    descriptor: int, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    flags_seen: list[int] = []

    class Noting:
        fileno = near.fileno

        def sendmsg(self, buffers: Sequence[bytes], _ancillary: Any = (), flags: int = 0) -> int:
            flags_seen.append(flags)
            return near.sendmsg(buffers, (), flags)

    queue = ReplyQueue()
    queue.add_file(asked(0, 5000), FileData(descriptor, 0, 5000))
    queue.add_data(asked(0, 4), b"data", None)
    queue.send_to(cast("socket.socket", Noting()))
    assert not queue.pieces
    assert received(far).endswith(b"data")
    assert flags_seen == [socket.MSG_MORE, 0]


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
    with pytest.raises(FileFailed, match="shorter"):
        queue.send_to(ends[0])


class Unsendable(FileData):
    """A piece that the kernel does not send."""

    number = errno.EINVAL

    def send_to(self, sock: socket.socket) -> int:
        raise OSError(self.number, "not sent")


@pytest.mark.parametrize("queue_type", [ReplyQueue, StructuredReplies])
@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.ENOMEM])
def test_what_the_kernel_does_not_send_is_copied(
    descriptor: int,
    ends: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    queue_type: type[ReplyQueue],
    number: int,
) -> None:
    near, far = ends
    monkeypatch.setattr(Unsendable, "number", number)
    queue = queue_type()
    queue.add_file(asked(0, SIZE_BYTES), Unsendable(descriptor, 0, SIZE_BYTES))
    queue.add_data(asked(0, 4), b"data", None)
    queue.add_file(asked(1, 5), Unsendable(descriptor, 1, 5))
    found = bytearray()
    while queue.pieces:
        queue.send_to(near)
        found += received(far)
    assert not queue.unsent_bytes
    assert found.count(b"cookie_8") == 3
    assert CONTENT in found and found.endswith(CONTENT[1:6])


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT])
def test_error_of_the_socket_is_not_the_files(
    descriptor: int,
    ends: tuple[socket.socket, socket.socket],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
) -> None:
    monkeypatch.setattr(Unsendable, "number", number)
    queue = ReplyQueue()
    queue.add_file(asked(0, 5), Unsendable(descriptor, 0, 5))
    with pytest.raises(OSError, match="not sent") as raised:
        queue.send_to(ends[0])
    assert not isinstance(raised.value, FileFailed)


def test_disk_error_where_data_was_promised_ends_the_client_and_is_the_files(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Unreadable(Unsendable):
        def copied(self) -> memoryview:
            raise FileFailed(errno.EIO, "the disk is gone")

    async def scenario() -> None:
        counters = TransmissionCounters()
        served = Served(counters=counters)
        await served.client.send(nbd_read(0, 4096))
        await served.held(1)
        served.connection.reply_file(served.backend.held[0], Unreadable(-1, 0, 4096))
        served.connection.send_replies()
        await served.closed()
        assert (counters.file_failures, counters.hung_up) == (1, 0)
        served.assert_ended_once()

    asyncio.run(scenario())
    assert caplog.messages == ["the client: closed: its data cannot be read: the disk is gone"]


def test_file_that_cannot_be_read_is_not_taken_for_the_socket() -> None:
    with pytest.raises(FileFailed, match="descriptor"):
        FileData(-1, 0, 5).copied()


def test_data_of_another_length_is_our_error(descriptor: int) -> None:
    queue = ReplyQueue()
    with pytest.raises(LocalError, match="for a READ of 5"):
        queue.add_file(asked(0, 5), FileData(descriptor, 0, 4))
    assert queue.pieces == []

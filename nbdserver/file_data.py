"""Data of a READ that goes from the page cache to the socket without a copy in this process.

`FileData` is such a piece of a reply. It is made only of what the page cache holds at that moment
(`PageCache.holds`), and is either with the kernel at the end of the same turn or has become an
ordinary buffer: nothing is read from a disk for a client that takes its time.

The socket holds the cache's own pages then, as they are when the client takes them. A write of the
same blocks that is not yet answered when the READ is may be seen in its data, wholly or in part;
of requests in flight together the protocol promises nothing else, and a file is read no other way.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from typing import Final

#: From here on the copy that is saved is worth the questions that have to be asked: less than half
#: the processor time at 1 MiB, no difference at 128 KiB (bench rows read-1m, read-128k).
FILE_DATA_BYTES_MIN: Final = 256 << 10

_CACHESTAT: Final = 451  # the same on every architecture, since Linux 6.5
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Found(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "written_back", "evicted", "recently_evicted")
    )


class PageCache:
    """Asks what the page cache holds of one open file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._range, self._found = _Range(), _Found()
        self._byte = bytearray(1)
        self._asks = True

    def holds(self, offset: int, length: int) -> bool:
        """Whether all of the range is there, at once; False where the system cannot tell."""
        if not self._asks:
            return False
        self._range.offset, self._range.length = offset, length
        where = ctypes.byref(self._range), ctypes.byref(self._found)
        if self._call(_CACHESTAT, self._descriptor, *where, 0) != 0:
            # An older kernel, or a file system that is asked otherwise.
            self._asks = False
            return False
        pages = (offset + length - 1) // _PAGE_BYTES - offset // _PAGE_BYTES + 1
        # A page that is still being read counts as cached. The kernel reads ahead in order, so
        # what ends the range arrives last.
        return self._found.cached == pages and self._arrived(offset + length - 1)

    def _arrived(self, position: int) -> bool:
        try:
            return os.preadv(self._descriptor, (self._byte,), position, os.RWF_NOWAIT) == 1
        except OSError:
            return False


class FileData:
    """`length` bytes of a file from `offset` on, which shrink as they are sent."""

    __slots__ = ("_descriptor", "_length", "_offset")

    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._length = length

    def __len__(self) -> int:
        return self._length

    def send_to(self, sock: socket.socket) -> int:
        """Give the non-blocking socket what it takes; return how much. Raises OSError."""
        sent = os.sendfile(sock.fileno(), self._descriptor, self._offset, self._length)
        if not sent:
            raise OSError(errno.EIO, "the file is shorter than when it was opened")
        return sent

    def skip(self, count: int) -> None:
        """The first so many bytes were sent."""
        self._offset += count
        self._length -= count

    def copied(self) -> memoryview:
        """The same bytes in a buffer. Raises OSError."""
        data = memoryview(bytearray(self._length))
        position = 0
        while position < self._length:
            count = os.preadv(self._descriptor, (data[position:],), self._offset + position)
            if not count:
                raise OSError(errno.EIO, "the file is shorter than when it was opened")
            position += count
        return data

"""Data of a READ that goes from the page cache to the socket without a copy in this process.

`FileData` is such a piece of a reply. It is made only of what the page cache holds at that moment
(`PageCache.holds`), and is either with the kernel at the end of the same turn or has become an
ordinary buffer: nothing is read from a disk for a client that takes its time. Only a page that is
evicted within the turn is waited for.

The socket holds the cache's own pages then, as they are when the client takes them. A write of the
same blocks that is not yet answered when the READ is may be seen in its data, wholly or in part;
of requests in flight together the protocol promises nothing else, and a file is read no other way.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
from typing import Final

from nbdserver.protocol import PAYLOAD_BYTES_MAX

#: From here on the copy that is saved is worth the questions that have to be asked: less than half
#: the processor time at 1 MiB, no difference at 128 KiB (bench rows read-1m, read-128k).
FILE_DATA_BYTES_MIN: Final = 256 << 10
#: A turn gives a client no more of them than its socket takes (`listening.SEND_BUFFER_BYTES`).
FILE_DATA_TURN_BYTES_MAX: Final = 4 << 20

_PAGE_BYTES: Final = mmap.PAGESIZE
_PAGES_MAX: Final = PAYLOAD_BYTES_MAX // _PAGE_BYTES + 1
#: No piece of the page cache reaches from the end of a file so far behind it.
_BEHIND_BYTES: Final = 1 << 30
_PROT_NONE: Final = 0
_MAP_FAILED: Final = ctypes.c_void_p(-1).value


class FileFailed(OSError):
    """The file itself cannot be read, though the client was promised its data."""


class PageCache:
    """Asks what the page cache holds of one open file, by mincore of a mapping that nobody uses.

    mincore tells a page whose data is there from one that is still being read, or could not be.
    The mapping keeps the file open, and locked, until `close`.
    """

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self._libc = ctypes.CDLL(None)
        self._libc.mmap.restype = ctypes.c_void_p
        self._address: int | None = None
        self._present = (ctypes.c_ubyte * _PAGES_MAX)()
        self._descriptor = descriptor
        self._mapped_bytes = -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES + _BEHIND_BYTES
        length, start = ctypes.c_size_t(self._mapped_bytes), ctypes.c_long(0)
        address = self._libc.mmap(None, length, _PROT_NONE, mmap.MAP_PRIVATE, descriptor, start)
        if address == _MAP_FAILED:
            return
        self._address = address
        # Of a file that is not this user's, or on a file system that cannot tell, the kernel says
        # that all is there: even what lies far behind the end.
        if self._count_present(self._mapped_bytes - _PAGE_BYTES, 1) != 0:
            self.close()

    def holds(self, offset: int, length: int) -> bool:
        """Whether all of the range can be read at once; False where the system cannot tell."""
        first = offset // _PAGE_BYTES
        pages = (offset + length - 1) // _PAGE_BYTES - first + 1
        if pages > _PAGES_MAX or self._count_present(first * _PAGE_BYTES, pages) != pages:
            return False
        # The last piece of a file that was cut short may still reach behind its end.
        return offset + length <= os.lseek(self._descriptor, 0, os.SEEK_END)

    def close(self) -> None:
        """Let go of the file. What is asked from now on cannot be told."""
        if self._address is not None:
            self._libc.munmap(ctypes.c_void_p(self._address), ctypes.c_size_t(self._mapped_bytes))
            self._address = None

    def _count_present(self, position: int, pages: int) -> int:
        """How many of these pages hold data; -1 if the system cannot tell."""
        if self._address is None or position + pages * _PAGE_BYTES > self._mapped_bytes:
            return -1
        place = ctypes.c_void_p(self._address + position)
        if self._libc.mincore(place, ctypes.c_size_t(pages * _PAGE_BYTES), self._present) != 0:
            return -1
        # Only the lowest bit has a meaning, and the others are zero so far.
        return bytes(memoryview(self._present)[:pages]).count(1)


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
        """The same bytes in a buffer. Raises FileFailed."""
        data = memoryview(bytearray(self._length))
        position = 0
        while position < self._length:
            try:
                count = os.preadv(self._descriptor, (data[position:],), self._offset + position)
            except OSError as error:
                raise FileFailed(error.errno, error.strerror) from error
            if not count:
                raise FileFailed(errno.EIO, "the file is shorter than when it was opened")
            position += count
        return data

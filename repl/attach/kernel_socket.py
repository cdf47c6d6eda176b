"""A connection that the kernel's nbd driver has taken over, as the process that dialled it sees it.

The driver says nothing of a single connection. But whoever dialled it still holds the same socket,
and the socket shows all that matters:

- *adopted*: the driver sets its request timeout as the socket's send timeout when it takes it into
  use. An offered socket that found no dead one to replace is not touched.
- *dead*: the driver shuts a socket down in both directions when it gives up on it.
- *buried*: nothing that was sent over it can arrive any more and not be known to be abandoned. The
  server's machine has acknowledged the end of the stream, or the connection was reset. A request
  that the driver sends again must never be overtaken by its own first sending (C.4 of the NBD
  notes: it would undo a later write of the same block), so no replacement is given before this.

Nothing here reads or writes the stream.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
from struct import Struct
from typing import Final

#: States of Linux's tcp_states.h in which the other machine has our end of stream, or nothing of
#: the connection exists any more.
_TCP_ENDED: Final = frozenset((5, 6, 7))  # FIN_WAIT2, TIME_WAIT, CLOSE
_TIMEVAL: Final = Struct("@ll")
_UNSPECIFIED: Final = bytes(16)  # a sockaddr of family AF_UNSPEC
_GIVEN_UP: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL


class KernelSocket:
    """One such connection: `sock` is in transmission, `address` is where it leads."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock = sock
        self.address = address
        # A send timeout of its own would look like the driver's.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(0, 0))

    def fileno(self) -> int:
        """Return the descriptor, to be given to the kernel or waited for."""
        return self.sock.fileno()

    @property
    def adopted(self) -> bool:
        """Whether the driver has taken it into use; it must have a request timeout to show it."""
        value = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.size)
        return any(_TIMEVAL.unpack(value))

    @property
    def dead(self) -> bool:
        """Whether the driver, or the network, has given it up."""
        poll = select.poll()
        poll.register(self.sock, 0)
        return any(event & _GIVEN_UP for _, event in poll.poll(0))

    @property
    def buried(self) -> bool:
        """Whether nothing of a dead connection can take the server by surprise any more."""
        if self.sock.family == socket.AF_UNIX:
            # What was sent and the end of it are with the server at once.
            return True
        return self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in _TCP_ENDED

    def reset(self) -> None:
        """Throw away what was not sent and tell the server so; the connection is buried then."""
        # Closing would not do it: the driver holds the socket too.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.connect(self.fileno(), _UNSPECIFIED, len(_UNSPECIFIED)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Let go of it; the driver's hold on it is another."""
        self.sock.close()

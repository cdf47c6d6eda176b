"""Listening sockets that were made by whoever started this process: systemd's socket activation.

Owns the protocol of sd_listen_fds(3), which is three environment variables and descriptors from 3
on. systemd, libnbd and nbdkit speak it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from typing import Final

from nbdserver.errors import ListenError

FIRST_DESCRIPTOR: Final = 3
#: What a ListenError from here is about.
INHERITED: Final = "the inherited sockets"
FAMILIES: Final = frozenset((socket.AF_UNIX, socket.AF_INET, socket.AF_INET6))
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def inherited_sockets(environment: MutableMapping[str, str]) -> list[socket.socket]:
    """The listening sockets that are meant for this process, none if there are none.

    The variables are removed, so that no child takes them for its own. Raises ListenError for what
    cannot be served from.
    """
    pid, count = environment.get("LISTEN_PID", ""), environment.get("LISTEN_FDS", "")
    for name in _VARIABLES:
        environment.pop(name, None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    sockets: list[socket.socket] = []
    for descriptor in range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count)):
        try:
            sock = socket.socket(fileno=descriptor)
            sockets.append(sock)
            listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_ACCEPTCONN
            )
        except OSError as error:
            why = f"descriptor {descriptor} is no socket: {error.strerror}"
            raise ListenError(INHERITED, why) from error
        if not listens:
            why = f"descriptor {descriptor} does not listen (in a unit file: Accept=no)"
            raise ListenError(INHERITED, why)
        if sock.family not in FAMILIES:
            why = f"descriptor {descriptor} is of another kind than Unix, IPv4 or IPv6"
            raise ListenError(INHERITED, why)
        os.set_inheritable(descriptor, False)
    return sockets

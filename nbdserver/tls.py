"""TLS for NBD clients: what a server needs to know, and the processes that terminate it.

TLS never runs in the process that negotiates or serves: a client whose STARTTLS was accepted goes
to a proxy process (`tls_proxy.py`), which gives back one end of a socket pair that carries the
plaintext, and who the client is. Owns those processes; one that dies takes its clients along and
is replaced.

Spec: proto.md, "TLS support"; NBD_OPT_STARTTLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
import ssl
import sys
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

#: The proxies' answers and questions: one JSON object a packet.
PACKET_BYTES_MAX = 64 << 10


class TlsMode(Enum):
    """Whether clients may, or must, begin TLS."""

    OFF = "off"
    ALLOWED = "allowed"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class TlsServerFiles:
    """Paths of PEM files. With an `authority` every client must show a certificate of it."""

    certificate: str
    key: str
    authority: str = ""


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """What a client's verified certificate says; empty if none was asked for."""

    names: tuple[str, ...] = ()
    fingerprint: str = ""


class TlsRefused(Exception):
    """The client's TLS handshake failed; the sentence says why."""


def server_context(files: TlsServerFiles) -> ssl.SSLContext:
    """Return a TLS 1.3 context. Raises OSError (ssl.SSLError is one) for files that do not fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    if files.authority:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.authority)
    context.load_cert_chain(files.certificate, files.key, password=_no_password)
    return context


def _no_password() -> str:
    raise ssl.SSLError("the key is protected by a password")


class TlsProxies:
    """A few proxy processes, started when they are first needed. Belongs to the running loop."""

    def __init__(self, files: TlsServerFiles, handshake_s: float, processes: int = 2) -> None:
        assert processes > 0
        self._files = files
        self._handshake_s = handshake_s
        self._proxies: list[_Proxy | None] = [None] * processes
        self._turn = itertools.cycle(range(processes))

    async def secure(self, sock: socket.socket) -> tuple[socket.socket, ClientIdentity]:
        """Shake hands on `sock`, which is given away whatever happens, and return its plaintext.

        Nothing may have been received from `sock` beyond the client's STARTTLS. Raises TlsRefused.
        """
        with sock:
            index = next(self._turn)
            proxy = self._proxies[index]
            if proxy is None or not proxy.alive:
                proxy = self._proxies[index] = _Proxy(self._files, self._handshake_s)
            return await proxy.secure(sock)

    async def close(self) -> None:
        """End the processes, and with them every client that is encrypted."""
        for proxy in self._proxies:
            if proxy is not None:
                await proxy.close()


class _Proxy:
    """One proxy process, seen from the server."""

    def __init__(self, files: TlsServerFiles, handshake_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._handshake_s = handshake_s
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[socket.socket, ClientIdentity]]] = {}
        self.alive = True
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        self._channel = near
        settings = json.dumps(asdict(files) | {"handshake_s": handshake_s})
        with far:
            self._pid = os.posix_spawn(
                sys.executable,
                [
                    sys.executable,
                    "-m",
                    "nbdserver.tls_proxy",
                    "--channel-fd",
                    str(CHANNEL_FD),
                    "--settings",
                    settings,
                ],
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, far.fileno(), CHANNEL_FD)],
            )
        self._loop.add_reader(near.fileno(), self._readable)

    async def secure(self, sock: socket.socket) -> tuple[socket.socket, ClientIdentity]:
        number = next(self._numbers)
        answer = self._waiting[number] = self._loop.create_future()
        try:
            try:
                socket.send_fds(self._channel, [str(number).encode()], [sock.fileno()])
            except OSError as error:
                raise TlsRefused(f"the TLS proxy takes no client: {error.strerror}") from error
            plain, identity = await answer
            return plain, identity
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result()[0].close()
            raise
        finally:
            self._waiting.pop(number, None)

    def _readable(self) -> None:
        try:
            data, fds, _flags, _address = socket.recv_fds(self._channel, PACKET_BYTES_MAX, 1)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._died()
            return
        said: dict[str, Any] = json.loads(data)
        answer = self._waiting.get(said["number"])
        if answer is None or answer.done():
            for fd in fds:
                os.close(fd)
        elif fds:
            plain = socket.socket(fileno=fds[0])
            plain.setblocking(False)
            answer.set_result(
                (plain, ClientIdentity(tuple(said["names"]), str(said["fingerprint"])))
            )
        else:
            answer.set_exception(TlsRefused(str(said["error"])))

    def _died(self) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(TlsRefused("the TLS proxy process ended"))
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    async def close(self) -> None:
        self._died()


#: Where a proxy finds its end of the channel.
CHANNEL_FD = 3

"""The processes that terminate TLS for a server, as the server sees them.

TLS never runs in the process that negotiates or serves: a client whose STARTTLS was accepted goes
to a proxy process (`tls_proxy.py`), which gives back one end of a socket pair that carries the
plaintext, and who the client is. Owns those processes; one that dies takes its own clients along,
is reported, and is replaced for the next client. One that owes an answer for too long is killed.

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
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from nbdserver.admission import Credentials
from nbdserver.tls import TlsRefused, TlsServerFiles

#: The proxies' answers and questions: one JSON object a packet.
PACKET_BYTES_MAX: Final = 64 << 10
#: Where a proxy finds its end of the channel.
CHANNEL_FD: Final = 3
#: Beyond the time of a handshake, for a proxy to say that it failed.
ANSWER_S: Final = 5.0
#: For a proxy that is to end: to give its clients what the server has said, and to be killed.
DRAIN_S: Final = 3.0
END_S: Final = 5.0


class TlsProxies:
    """A few processes. Belongs to the running loop. `lost` is told of one that ends by itself."""

    def __init__(
        self,
        files: TlsServerFiles,
        handshake_s: float,
        processes: int,
        lost: Callable[[str], None],
    ) -> None:
        assert processes > 0
        self._files = files
        self._handshake_s = handshake_s
        self._lost = lost
        self._proxies: list[_Proxy | None] = [None] * processes
        self._turn = itertools.cycle(range(processes))

    def start(self) -> None:
        """Start the processes, so that the first clients need not wait for that."""
        for index in range(len(self._proxies)):
            self._living(index)

    async def secure(self, sock: socket.socket) -> tuple[socket.socket, Credentials]:
        """Shake hands on `sock`; return its plaintext and who the client is.

        The caller keeps `sock` and neither reads nor writes it any more. Nothing may have been
        received from it beyond the client's STARTTLS. Raises TlsRefused.
        """
        index = next(self._turn)
        number = self._living(index).take(sock)
        if number is None:
            # It died just now, and never had the socket.
            number = self._living(index).take(sock)
        if number is None:
            raise TlsRefused("no TLS proxy takes the client")
        return await self._living(index).answer(number)

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [proxy.pid for proxy in self._proxies if proxy is not None and proxy.alive]

    async def close(self) -> None:
        """End the processes once every client has what the server sent before it closed."""
        await asyncio.gather(*(proxy.close() for proxy in self._proxies if proxy is not None))

    def _living(self, index: int) -> _Proxy:
        proxy = self._proxies[index]
        if proxy is None or not proxy.alive:
            proxy = self._proxies[index] = _Proxy(self._files, self._handshake_s, self._lost)
        return proxy


class _Proxy:
    """One proxy process."""

    def __init__(
        self, files: TlsServerFiles, handshake_s: float, lost: Callable[[str], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._handshake_s = handshake_s
        self._lost = lost
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[tuple[socket.socket, Credentials]]] = {}
        #: When to give it up, by the question that it has not answered, whoever waits for that.
        self._owed: dict[int, asyncio.TimerHandle] = {}
        self._closing = False
        self.alive = True
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        near.setblocking(False)
        self._channel = near
        with far:
            self.pid = _spawn(json.dumps(asdict(files) | {"handshake_s": handshake_s}), far)
        self._loop.add_reader(near.fileno(), self._readable)

    def take(self, sock: socket.socket) -> int | None:
        """Pass the socket on; the number of the question, or None if nothing was passed."""
        number = next(self._numbers)
        try:
            socket.send_fds(self._channel, [str(number).encode()], [sock.fileno()])
        except BlockingIOError:
            return None
        except OSError:
            self._died("ended")
            return None
        self._waiting[number] = self._loop.create_future()
        self._owed[number] = self._loop.call_later(
            self._handshake_s + ANSWER_S, self._died, "does not answer"
        )
        return number

    async def answer(self, number: int) -> tuple[socket.socket, Credentials]:
        """What came of the question. Raises TlsRefused."""
        answer = self._waiting[number]
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result()[0].close()
            raise
        finally:
            self._waiting.pop(number, None)

    def _readable(self) -> None:
        try:
            data, fds = receive_packet(self._channel)
        except (BlockingIOError, InterruptedError):
            return
        if data:
            self._answered(json.loads(data), fds)
        else:
            self._died("ended")

    def _answered(self, said: dict[str, Any], fds: list[int]) -> None:
        owed = self._owed.pop(said["number"], None)
        if owed is not None:
            owed.cancel()
        answer = self._waiting.get(said["number"])
        if answer is None or answer.done():
            for fd in fds:
                os.close(fd)
        elif fds:
            plain = socket.socket(fileno=fds[0])
            plain.setblocking(False)
            names, fingerprint = tuple(said["names"]), str(said["fingerprint"])
            credentials = Credentials(encrypted=True, names=names, fingerprint=fingerprint)
            answer.set_result((plain, credentials))
        else:
            answer.set_exception(TlsRefused(str(said.get("error", "no descriptor came"))))

    def _died(self, how: str) -> None:
        if not self.alive:
            return
        self.alive = False
        self._loop.remove_reader(self._channel.fileno())
        self._channel.close()
        for timer in self._owed.values():
            timer.cancel()
        self._owed.clear()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(TlsRefused("the TLS proxy process ended"))
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        if not self._closing:
            self._lost(f"TLS proxy process {self.pid} {how}; its clients are disconnected")

    async def close(self) -> None:
        """Let it end by itself, within bounds."""
        if not self.alive:
            return
        self._closing = True
        # Its end of the channel shows the end; ours stays, to see when the process is gone.
        self._channel.shutdown(socket.SHUT_WR)
        give_up_s = self._loop.time() + END_S
        gone = asyncio.Event()
        self._loop.remove_reader(self._channel.fileno())
        self._loop.add_reader(self._channel.fileno(), self._ending, gone)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(give_up_s):
                await gone.wait()
        self._died("was closed")

    def _ending(self, gone: asyncio.Event) -> None:
        try:
            data, fds = receive_packet(self._channel)
        except (BlockingIOError, InterruptedError):
            return
        for fd in fds:
            os.close(fd)
        if not data:
            gone.set()


def receive_packet(channel: socket.socket) -> tuple[bytes, list[int]]:
    """The next packet and the descriptor beside it, if it has one; b"" at the end of the channel.

    Raises BlockingIOError.
    """
    try:
        data, fds, _flags, _address = socket.recv_fds(channel, PACKET_BYTES_MAX, 1)
    except (BlockingIOError, InterruptedError):
        raise
    except OSError:
        return b"", []
    for fd in fds:
        # A process that is started later, like the next proxy, would keep the connection open.
        os.set_inheritable(fd, False)
    return data, fds


def _spawn(settings: str, channel: socket.socket) -> int:
    """Start a process that has `channel`; its number."""
    environment = dict(os.environ)
    # The proxy must run the very code of its server, wherever that was found.
    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, "-P", "-m", "nbdserver.tls_proxy"]
    arguments = ["--channel-fd", str(CHANNEL_FD), "--settings", settings]
    return os.posix_spawn(
        sys.executable,
        [*command, *arguments],
        environment,
        file_actions=[(os.POSIX_SPAWN_DUP2, channel.fileno(), CHANNEL_FD)],
    )

"""The listener for peers: reads the preamble, decides whose connection it is, hands it over.

Owns every accepted peer connection until its 256 bytes are verified; then the volume's worker has
it. It must never read beyond the preamble, wait for one connection at the cost of another, or say
anything to bytes that are not a preamble. A well-formed preamble that is refused gets one frame
that says why, and the log one line.

Layout of the preamble: `repl/link/preamble.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Final

from repl.link import preamble
from repl.link.preamble import Preamble, PreambleError
from repl.node.listeners import Listener
from repl.node.logs import RepeatLimit, logger
from repl.node.worker_process import WorkerProcess

#: From accept until the worker has the socket, a worker that is restarting included.
PREAMBLE_TIMEOUT_S: Final = 5.0
#: Connections without a verified preamble. Beyond it the oldest is closed: a true peer sends its
#: preamble at once, so that a crowd of silent connections keeps none of them out.
UNVERIFIED_CONNECTIONS_MAX: Final = 64
#: What a refused dialer may have sent behind its preamble is read, so that closing does not reset
#: the connection and with it the refusal that is on its way.
DRAIN_BYTES_MAX: Final = 64 << 10
DRAIN_TIMEOUT_S: Final = 1.0
#: After accept failed for want of descriptors or memory.
ACCEPT_PAUSE_S: Final = 0.5


class PeerFront:
    """Accepts on one listener, from `start` to `close`."""

    def __init__(
        self,
        listener: Listener,
        node_name: str,
        insecure: bool,
        tls: bool,
        peers_of: Mapping[str, Collection[str]],
        workers: Mapping[str, WorkerProcess],
    ) -> None:
        """`peers_of` maps each volume of this node to the names of its peers."""
        self._listener = listener
        self._node_name = node_name
        self._insecure = insecure
        self._tls = tls
        self._peers_of = peers_of
        self._workers = workers
        self._accepting: asyncio.Task[None] | None = None
        #: Oldest first.
        self._unverified: dict[asyncio.Task[None], None] = {}
        self._log = logger("peers")
        self._limit = RepeatLimit()

    def start(self) -> None:
        self._accepting = asyncio.create_task(self._accept(), name="accept peers")

    async def close(self) -> None:
        """Stop accepting and drop what is not verified. The listener itself is the owner's."""
        tasks = [*self._unverified]
        if self._accepting is not None:
            tasks.append(self._accepting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, remote = await loop.sock_accept(self._listener.sock)
            except OSError as error:
                self._limit.write(
                    self._log.error, "accept", f"Cannot accept a peer: {error.strerror}."
                )
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            sock.setblocking(False)
            task = asyncio.create_task(self._admit(sock, remote), name="peer preamble")
            self._unverified[task] = None
            task.add_done_callback(partial(self._ended, sock=sock))
            if len(self._unverified) > UNVERIFIED_CONNECTIONS_MAX:
                oldest = next(iter(self._unverified))
                del self._unverified[oldest]
                oldest.cancel()

    def _ended(self, task: asyncio.Task[None], sock: socket.socket) -> None:
        # A task that is cancelled before its first step never comes to closing its socket.
        sock.close()
        self._unverified.pop(task, None)

    async def _admit(self, sock: socket.socket, remote: Any) -> None:
        host, port = str(remote[0]), int(remote[1])
        with sock:
            try:
                async with asyncio.timeout(PREAMBLE_TIMEOUT_S):
                    await self._route(sock, host, port)
            except TimeoutError:
                self._drop(host, "it did not send a whole preamble, or its worker was not up")
            except PreambleError as error:
                self._drop(host, str(error))
            except OSError as error:
                self._drop(host, str(error.strerror))

    async def _route(self, sock: socket.socket, host: str, port: int) -> None:
        asked = preamble.decode(await _read_exactly(sock, preamble.PREAMBLE_BYTES))
        refusal = self._refusal(asked, host)
        if refusal is not None:
            code, sentence = refusal
            self._limit.write(
                self._log.warning,
                f"{host} {code} {asked.volume}",
                f"Refused a peer's connection: {sentence}",
                code=code,
                address=host,
            )
            await _send_refusal(sock, preamble.encode_refusal(code, sentence))
            return
        worker = self._workers[asked.volume]
        while not worker.answers:
            await worker.changed(PREAMBLE_TIMEOUT_S)
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        message = {"kind": "peer", "from": asked.sender, "address": address}
        if not worker.pass_socket(message, sock):
            self._drop(host, f"the worker of {asked.volume} takes no connection at the moment")

    def _refusal(self, asked: Preamble, host: str) -> tuple[str, str] | None:
        """Return the code and sentence of a refusal, or None when the connection is welcome."""
        me = self._node_name
        if asked.sender == me:
            return "own-address", (
                f"{me} reached a node that is named {me} as well: the address of "
                f"{asked.expected} in its configuration is its own, or two nodes share a name."
            )
        if asked.expected != me:
            return "wrong-node", (
                f"{asked.sender} expects {asked.expected} at this address, but this is {me}."
            )
        if asked.volume not in self._peers_of:
            return "unknown-volume", f"{me} has no volume {asked.volume}."
        if asked.sender not in self._peers_of[asked.volume]:
            return "unknown-sender", (
                f"{asked.sender} is no peer of the volume {asked.volume} on {me}."
            )
        if self._tls and not asked.tls:
            return "tls-required", (
                f"{me} takes encrypted connections only: {asked.sender} needs a [tls] table too."
            )
        if asked.tls and not self._tls:
            return "tls-unknown", (
                f"{asked.sender} wants an encrypted connection, but {me} has no [tls] table."
            )
        if not self._tls and not self._insecure and not is_loopback(host):
            return "plaintext", (
                f"{me} takes plaintext connections from its own machine only, as long as its "
                "configuration has no [tls] table and does not say [node] insecure = true."
            )
        return None

    def _drop(self, host: str, why: str) -> None:
        self._limit.write(
            self._log.warning, f"{host} {why}", f"Dropped a connection: {why}.", address=host
        )


def is_loopback(host: str) -> bool:
    """Whether a numeric address, an IPv4 one in IPv6 form included, is of this machine only."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


async def _read_exactly(sock: socket.socket, size_bytes: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < size_bytes:
        part = await loop.sock_recv(sock, size_bytes - len(received))
        if not part:
            raise PreambleError(f"it closed after {len(received)} bytes of its preamble")
        received += part
    return bytes(received)


async def _send_refusal(sock: socket.socket, frame: bytes) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT_S):
            await loop.sock_sendall(sock, frame)
            sock.shutdown(socket.SHUT_WR)
            drained_bytes = 0
            while drained_bytes < DRAIN_BYTES_MAX:
                part = await loop.sock_recv(sock, 4096)
                if not part:
                    return
                drained_bytes += len(part)

"""The front: accepts clients, negotiates with them, and hands their sockets on.

Owns listening sockets, the deadline and the caps of the handshake. After agreement the raw,
non-blocking socket and every byte received beyond the handshake go to `on_agreed`, which may serve
them here or pass them to another process; the front has then forgotten the client, and
`client_gone()` tells it that the place is free. No stream object ever buffers a client's bytes.

A client that begins TLS goes on over the plaintext socket that a proxy process gives for it
(`tls_proxies.py`); what is handed on then is that socket, with the client's connection beside it to
see when the client is gone. Clients on a Unix socket may begin TLS, but need not.

While `Lookup.find` has not answered, the deadline stands still: an export may be held for as long
as its owner likes, and a client that hangs up meanwhile cancels the question.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from nbdserver.admission import Credentials, TlsMode
from nbdserver.client_log import client_log
from nbdserver.counters import HandshakeCounters
from nbdserver.crowd import Crowd
from nbdserver.errors import ClientError, HandshakeLimit
from nbdserver.export import ExportInfo, Refusal
from nbdserver.handshake import Agreed, Ended, ExportAsked, Handshake, ListAsked, State, TlsAsked
from nbdserver.limits import Limits
from nbdserver.listening import (
    UNIX_SOCKET_MODE,
    client_address,
    client_origin,
    listen_on_tcp,
    listen_on_unix,
    prepare_client_socket,
)
from nbdserver.protocol import Option, Reply
from nbdserver.tls import TlsRefused, TlsServerFiles
from nbdserver.tls_proxies import TlsProxies

log = logging.getLogger("nbdserver")

RECEIVE_BYTES = 16 << 10
ACCEPT_RETRY_S = 0.5  # after the process ran out of descriptors or memory

T = TypeVar("T")
#: The client's socket, what was agreed, the client's name for logs, and its wire: the connection
#: that it came by where the socket is only the plaintext of that, else None.
OnAgreed = Callable[[socket.socket, Agreed, str, socket.socket | None], None]


class Lookup(Protocol):
    """Who knows the exports. Both methods may be cancelled when the client goes away."""

    async def find(self, name: str, option: Option, client: Credentials) -> ExportInfo | Refusal:
        """The export called `name` ("" is the default one), now or when it may be served.

        `option` is what asks: GO and EXPORT_NAME begin transmission, the others only want to know.
        """

    async def list(self, client: Credentials) -> Sequence[tuple[str, str]]:
        """(name, description) of every export that this client may see."""


class ClientLeft(Exception):
    """The client closed its connection during the handshake."""


class Server:
    """Listens, negotiates, hands on. All methods belong to the thread of the running loop."""

    def __init__(
        self,
        lookup: Lookup,
        on_agreed: OnAgreed,
        limits: Limits | None = None,
        tls: TlsMode = TlsMode.OFF,
        tls_files: TlsServerFiles | None = None,
        proxy_lost: Callable[[str], None] | None = None,
    ) -> None:
        """`proxy_lost`, or else the log, is told of a TLS process that ends by itself."""
        assert (tls is TlsMode.OFF) == (tls_files is None), "TLS and its files come together"
        self.counters = HandshakeCounters()
        self.handshakes = 0
        self.held = 0
        self.clients = 0
        self._lookup = lookup
        self._on_agreed = on_agreed
        self._limits = limits or Limits()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Those whose turn it is to say something: held clients have a limit of their own.
        self._crowd: Crowd[_Negotiation] = Crowd(self._limits.handshakes)
        #: Where clients connect.
        self.sockets: list[socket.socket] = []
        self._unix_paths: list[tuple[Path, int]] = []
        self.tls = tls
        self._tell_lost = proxy_lost or partial(log.error, "%s")
        self._proxies: TlsProxies | None = None
        if tls_files is not None:
            processes = self._limits.tls_proxies
            deadline_s = self._limits.handshake_deadline_s
            self._proxies = TlsProxies(tls_files, deadline_s, processes, self._proxy_lost)
            self._proxies.start()

    def listen_unix(self, path: Path, mode: int = UNIX_SOCKET_MODE) -> None:
        """Accept clients on a Unix socket. Raises ListenError."""
        sock = listen_on_unix(path, mode)
        self._unix_paths.append((path, path.stat().st_ino))
        self.adopt(sock)

    def listen_tcp(self, host: str, port: int) -> int:
        """Accept clients on every address of `host`; returns the port. Raises ListenError."""
        sockets = listen_on_tcp(host, port)
        bound_port: int = sockets[0].getsockname()[1]
        for sock in sockets:
            self.adopt(sock)
        return bound_port

    def adopt(self, sock: socket.socket) -> None:
        """Accept clients on a socket that listens already, and close it at `stop()`."""
        sock.setblocking(False)
        self.sockets.append(sock)
        self._start(self._accept(sock))

    def client_gone(self) -> None:
        """A socket that was handed to `on_agreed` is closed."""
        self.clients -= 1

    async def stop(self) -> None:
        """Stop listening and drop whoever is still negotiating; sockets handed on live on."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for sock in self.sockets:
            sock.close()
        self.sockets.clear()
        for path, inode in self._unix_paths:
            # Somebody may have replaced the file by his own socket meanwhile.
            if path.exists() and path.stat().st_ino == inode:
                path.unlink()
        self._unix_paths.clear()

    async def end_tls(self) -> None:
        """End the TLS proxies, and with them every client of theirs that is still connected; to be
        called when the sockets handed on are closed."""
        if self._proxies is not None:
            await self._proxies.close()

    @property
    def tls_proxy_pids(self) -> list[int]:
        """The processes that encrypt now."""
        return self._proxies.pids if self._proxies is not None else []

    def _proxy_lost(self, why: str) -> None:
        self.counters.tls_proxies_lost += 1
        self._tell_lost(why)

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Our own bug, or the lookup's: it cost one client, and it must be seen.
            task.get_loop().call_exception_handler(
                {"message": "NBD negotiation failed", "exception": error, "task": task}
            )

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        failed = False
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except ConnectionError:
                continue  # That client was gone before it was accepted.
            except OSError as error:
                if not failed:
                    # Once, however long it lasts, because clients can make it last.
                    log.error("cannot accept a client: %s", error.strerror)
                failed = True
                await asyncio.sleep(ACCEPT_RETRY_S)
                continue
            failed = False
            self.counters.accepted += 1
            negotiation = _Negotiation(self, sock, client_address(sock))
            # Counted here and not in the task, so that a burst of clients cannot pass the limit.
            self.handshakes += 1
            negotiation.task = self._start(self._negotiate(negotiation))
            negotiation.task.add_done_callback(partial(self._never_begun, negotiation))
            goes = self._crowd.enter(negotiation, negotiation.origin, loop.time())
            if goes is not None:
                self._turn_away(goes)

    def _turn_away(self, negotiation: _Negotiation) -> None:
        self.counters.turned_away("handshakes")
        text = "%s: closed: too many handshakes at once"
        client_log.warning(text, negotiation.peer_name)
        assert negotiation.task is not None
        negotiation.task.cancel()

    def _never_begun(self, negotiation: _Negotiation, _task: asyncio.Task[None]) -> None:
        """A task that is cancelled before its first step never comes to its end."""
        if not negotiation.begun:
            self.handshakes -= 1
            self._crowd.leave(negotiation)
            negotiation.close()

    async def _negotiate(self, negotiation: _Negotiation) -> None:
        negotiation.begun = True
        agreed: Agreed | None = None
        try:
            prepare_client_socket(negotiation.sock, self._limits)
            agreed = await negotiation.run()
        except TimeoutError:
            self.counters.timed_out += 1
            self.counters.limits["handshake_deadline_s"] += 1
            client_log.warning("%s: dropped: the handshake took too long", negotiation.peer_name)
        except TlsRefused as error:
            self.counters.tls_refused += 1
            client_log.warning("%s: dropped: %s", negotiation.peer_name, error)
        except ClientError as error:
            self.counters.dropped += 1
            if isinstance(error, HandshakeLimit):
                self.counters.limits[error.limit] += 1
            client_log.warning("%s: dropped: %s", negotiation.peer_name, error)
        except (ClientLeft, OSError) as error:
            self.counters.ended += 1
            log.debug("%s: left during the handshake: %s", negotiation.peer_name, error)
        finally:
            self.handshakes -= 1
            self._crowd.leave(negotiation)
            if agreed is None:
                negotiation.close()
        if agreed is not None:
            self.counters.agreed += 1
            self.clients += 1
            self._on_agreed(negotiation.sock, agreed, negotiation.peer_name, negotiation.wire)


class _Negotiation:
    """One client's handshake, driven over its socket."""

    def __init__(self, server: Server, sock: socket.socket, peer_name: str) -> None:
        self._server = server
        self._limits = server._limits
        #: What is spoken on, and the connection below it once that is encrypted.
        self.sock = sock
        self.wire: socket.socket | None = None
        self.peer_name = peer_name
        self.origin = client_origin(sock)
        self.task: asyncio.Task[None] | None = None
        self.begun = False
        local = sock.family == socket.AF_UNIX
        self._credentials = Credentials(local)
        self._loop = asyncio.get_running_loop()
        self._handshake = Handshake(self._limits, server.tls.towards(local=local))
        self._left_s = self._limits.handshake_deadline_s

    async def run(self) -> Agreed | None:
        """The agreement, or None if client and server parted by the rules.

        Raises ClientError (TlsRefused is one), ClientLeft, OSError of the socket, TimeoutError.
        """
        handshake = self._handshake
        while True:
            event = handshake.next_event()
            if isinstance(event, ExportAsked):
                await self._answer_export(event)
            elif isinstance(event, ListAsked):
                question = self._server._lookup.list(self._credentials)
                handshake.listed(await self._while_connected(question))
            if handshake.state is not State.OVER:
                # An agreement is out of the crowd: nobody takes it away on its last step.
                spent_s = self._limits.handshake_deadline_s - self._left_s
                self._server._crowd.come_back(self, self.origin, self._loop.time() - spent_s)
            await self._send()
            if isinstance(event, TlsAsked):
                await self._begin_tls()
            if isinstance(event, Agreed):
                return event
            if isinstance(event, Ended):
                self._server.counters.ended += 1
                log.debug("%s: %s", self.peer_name, event.reason)
                return None
            if event is None:
                await self._receive()

    def close(self) -> None:
        """The client gets nothing. Its connection ends even while a TLS proxy has a part in it."""
        self.sock.close()
        if self.wire is not None:
            self.wire.close()

    async def _begin_tls(self) -> None:
        proxies = self._server._proxies
        assert proxies is not None, "the handshake offers TLS only where there is some"
        try:
            plain, credentials = await self._in_time(proxies.secure(self.sock))
        except (TimeoutError, asyncio.CancelledError):
            # The proxy has a descriptor of it, too, and need not wait for its own deadline.
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RD)
            raise
        self._server.counters.encrypted += 1
        self.sock, self.wire = plain, self.sock
        self._credentials = dataclasses.replace(credentials, local=self._credentials.local)
        if credentials.names:
            self.peer_name += f" ({credentials.shown})"
        self._handshake.secured()

    async def _answer_export(self, asked: ExportAsked) -> None:
        server = self._server
        if server.held >= self._limits.held:
            server.counters.turned_away("held")
            answer: ExportInfo | Refusal = Refusal(
                Reply.ERR_POLICY, f"{server.held} clients are waiting already; try again later"
            )
        else:
            question = server._lookup.find(asked.name, asked.option, self._credentials)
            answer = await self._while_connected(question)
        begins = asked.option in (Option.GO, Option.EXPORT_NAME)
        if begins and isinstance(answer, ExportInfo) and server.clients >= self._limits.clients:
            server.counters.turned_away("clients")
            answer = Refusal(
                Reply.ERR_POLICY, f"{server.clients} clients are connected, which is the limit"
            )
        if isinstance(answer, ExportInfo):
            self._handshake.found(answer)
        else:
            client_log.info("%s: refused %s: %s", self.peer_name, ascii(asked.name), answer.message)
            self._handshake.refuse(answer)

    async def _while_connected(self, question: Coroutine[Any, Any, T]) -> T:
        """The answer to `question`, unless the client leaves or misbehaves before it comes."""
        task = self._loop.create_task(question)
        trouble: list[Exception] = []

        def on_readable() -> None:
            try:
                received = self.sock.recv(RECEIVE_BYTES)
                if not received:
                    raise ClientLeft("it hung up before its export was there")
                self._handshake.receive_data(received)
            except (BlockingIOError, InterruptedError):
                return
            except (ClientLeft, ClientError, OSError) as error:
                trouble.append(error)
                self._loop.remove_reader(self.sock.fileno())
                task.cancel()

        self._server.held += 1
        self._server._crowd.leave(self)
        self._loop.add_reader(self.sock.fileno(), on_readable)
        try:
            return await task
        except asyncio.CancelledError:
            if trouble:
                raise trouble[0] from None
            raise
        finally:
            self._server.held -= 1
            self._loop.remove_reader(self.sock.fileno())
            task.cancel()

    async def _receive(self) -> None:
        readable = self._loop.create_future()

        def on_readable() -> None:
            if not readable.done():
                readable.set_result(None)

        # The loop's own sock_recv may lose what it received when it is cancelled by a deadline.
        self._loop.add_reader(self.sock.fileno(), on_readable)
        try:
            await self._in_time(readable)
        finally:
            self._loop.remove_reader(self.sock.fileno())
        try:
            received = self.sock.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        if not received:
            raise ClientLeft("it closed the connection")
        self._handshake.receive_data(received)

    async def _send(self) -> None:
        outgoing = self._handshake.data_to_send()
        if outgoing:
            await self._in_time(self._loop.sock_sendall(self.sock, outgoing))

    async def _in_time(self, step: asyncio.Future[T] | Coroutine[Any, Any, T]) -> T:
        """Wait for the client, on its own time."""
        begun_s = self._loop.time()
        async with asyncio.timeout(self._left_s):
            done = await step
        self._left_s -= self._loop.time() - begun_s
        return done

"""One client in transmission: a non-blocking socket, a RequestReader and a Backend.

One turn per wake-up: one receive, every complete request in it, one `backend.submit`, one send of
what was answered meanwhile. Plain reader and writer callbacks of the loop; nothing is awaited and
no task or future exists, so that it runs the same on asyncio and on uvloop.

Never blocks, never reads more than its limits allow to be in flight, unsent or staged, and never
lets a fault of its client reach another connection. A reply that comes after the end goes nowhere;
`on_idle` tells when the last one came, so that whoever must know that no request of this client
can take effect any more can wait for it.

Everything here happens on the loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from nbdserver.buffers import CHUNK_BYTES, ByteBudget, Chunk, ChunkPool
from nbdserver.errors import ClientError, ClientStalled, LocalError
from nbdserver.export import Backend, ExportInfo
from nbdserver.protocol import NBD_CMD_READ, PAYLOAD_BYTES_MAX
from nbdserver.replies import Data, ReplyQueue
from nbdserver.transmission import Request, RequestReader, error_reply, success_header

log = logging.getLogger("nbdserver")

LAST_LOOK_BYTES = 64 << 10  # read and thrown away before closing


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one client may have going on before its socket is not read any further."""

    requests_in_flight: int = 128
    bytes_in_flight: int = 64 << 20  # payloads and data to be read
    unsent_bytes: int = 16 << 20  # replies that the client does not take
    buffer_bytes: int = 128 << 20  # receive buffers held by requests or waiting for payload
    spare_buffer_bytes: int = 4 << 20
    payload_stall_s: float = 30.0  # without a byte of a payload that holds a large buffer

    def __post_init__(self) -> None:
        if self.bytes_in_flight < PAYLOAD_BYTES_MAX or self.buffer_bytes < 2 * PAYLOAD_BYTES_MAX:
            raise ValueError("limits below one request of the largest size")
        if self.requests_in_flight < 1 or self.unsent_bytes < 1:
            raise ValueError("limits that would stop every request")


class State(Enum):
    """OPEN reads and answers, FINISHING only answers, CLOSED does neither."""

    OPEN = auto()
    FINISHING = auto()
    CLOSED = auto()


class Connection:
    """Drives `sock` for `export`; the connection owns the socket and closes it.

    `leftover` is what was received beyond the handshake. `on_idle` is called once, when the
    connection is closed and none of its requests is in flight any more.
    """

    __slots__ = (
        "_backend",
        "_budget",
        "_charged_bytes",
        "_closed",
        "_continue_scheduled",
        "_descriptor",
        "_in_budget_queue",
        "_in_turn",
        "_leftover",
        "_limits",
        "_loop",
        "_pool",
        "_read_bytes_in_flight",
        "_reader",
        "_reading",
        "_replies",
        "_sock",
        "_stall_timer",
        "_state",
        "_writing",
        "bytes_in_flight",
        "bytes_read",
        "bytes_received",
        "bytes_written",
        "errors",
        "export",
        "on_idle",
        "peer_name",
        "requests",
        "requests_in_flight",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        export: ExportInfo,
        backend: Backend,
        leftover: bytes = b"",
        limits: ConnectionLimits | None = None,
        peer_name: str = "client",
        budget: ByteBudget | None = None,
    ) -> None:
        self.export = export
        self.peer_name = peer_name
        self.on_idle: Callable[[Connection], None] | None = None
        self.requests_in_flight = 0
        self.bytes_in_flight = 0
        self.requests = self.errors = 0
        self.bytes_read = self.bytes_written = self.bytes_received = 0
        self._loop = loop
        self._sock = sock
        self._descriptor = sock.fileno()
        self._backend = backend
        self._limits = limits or ConnectionLimits()
        self._budget = budget or ByteBudget()
        self._pool = ChunkPool(
            self._budget, self._limits.buffer_bytes, self._limits.spare_buffer_bytes
        )
        self._reader = RequestReader(export, self._pool, self)
        self._leftover = leftover
        self._state = State.OPEN
        self._closed = False
        self._in_turn = False
        self._reading = self._writing = False
        self._continue_scheduled = self._in_budget_queue = False
        self._stall_timer: asyncio.TimerHandle | None = None
        self._replies = ReplyQueue()
        self._read_bytes_in_flight = 0
        self._charged_bytes = 0

    @property
    def state(self) -> State:
        """Where in its life the connection is."""
        return self._state

    @property
    def unsent_bytes(self) -> int:
        """Replies that the socket has not taken yet."""
        return self._replies.unsent_bytes

    def start(self) -> None:
        """Begin to serve."""
        self._sock.setblocking(False)
        if self._leftover:
            self._schedule_continue()
        else:
            self._read_on()

    def finish(self) -> None:
        """Answer what was received, then close."""
        if self._state is State.OPEN:
            self._state = State.FINISHING
            self._read_off()
            self._close_if_finished()

    def abandon(self, reason: str = "abandoned") -> None:
        """Close now and answer nothing: the client sees silence and a closed connection."""
        self._close(reason)

    # What a backend calls.

    def reply(
        self,
        request: Request,
        error: int = 0,
        data: Data | Sequence[Data] | None = None,
        hold: Chunk | None = None,
    ) -> None:
        """Queue the one answer to `request` and give up its hold on its chunk.

        `error` is a Linux errno. `data` is what a READ asked for, `request.length` bytes in one
        piece or several; it must stay unchanged until it is sent. If it lies in a chunk, `hold`
        is released then. Raises LocalError for an answered request or data of another length.
        """
        if request.connection is not self:
            raise LocalError("a request was answered twice, or on another connection")
        is_read = request.command == NBD_CMD_READ
        if is_read and not error and not self._closed:
            self._replies.add_data(request.cookie, data, request.length, hold)
        else:
            if error:
                self.errors += 1
            if hold is not None:
                hold.release()
            if not self._closed:
                cookie = request.cookie
                self._replies.add(error_reply(error, cookie) if error else success_header(cookie))
        request.connection = None
        self.requests_in_flight -= 1
        chunk = request.chunk
        if chunk is not None:
            self.bytes_in_flight -= request.length
            chunk.release()
        elif is_read:
            self.bytes_in_flight -= request.length
            self._read_bytes_in_flight -= request.length
        if self._closed and not self.requests_in_flight:
            self._idle()

    def send_replies(self) -> None:
        """Send what was queued; to be called once after a batch of replies."""
        if self._closed:
            return
        if self._replies.pieces and not self._writing:
            self._send()
        if self._in_turn:
            return
        if not self._reading:
            self._arrange(progressed=True)
        if self._state is State.FINISHING:
            self._close_if_finished()

    # Receiving.

    def _on_readable(self) -> None:
        """One turn: the loop's callback."""
        room = self._reader.room()
        if room is None:
            self._wait_for_buffer()
            return
        if self._leftover:
            count = min(len(self._leftover), len(room))
            room[:count] = self._leftover[:count]
            self._leftover = self._leftover[count:]
        else:
            try:
                count = self._sock.recv_into(room)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._close(f"receiving failed: {error.strerror}")
                return
            if not count:
                self._end_of_stream()
                return
        self.bytes_received += count
        self._reader.received(count)
        self._turn()

    def _turn(self) -> None:
        """Take requests, submit them, send what was answered."""
        reader, limits, budget = self._reader, self._limits, self._budget
        read_room = budget.limit_bytes - budget.used_bytes
        if read_room < CHUNK_BYTES and not self._charged_bytes:
            read_room = CHUNK_BYTES
        try:
            requests = reader.take_requests(
                limits.requests_in_flight - self.requests_in_flight,
                limits.bytes_in_flight - self.bytes_in_flight,
                read_room,
            )
        except ClientError as error:
            self._drop(error)
            return
        refusals = reader.refusals
        progressed = bool(requests or refusals)
        if refusals:
            self._replies.add_all(refusals)
            self.requests += len(refusals)
            self.errors += reader.refused
            reader.refused = 0
            refusals.clear()
        if requests:
            self._submit(requests)
        if self._replies.pieces and not self._writing:
            self._send()
        if self._closed:
            return
        if reader.disconnect_asked:
            self._leftover = b""
            self.finish()
        else:
            self._arrange(progressed)
        if self._state is State.FINISHING:
            self._close_if_finished()

    def _submit(self, requests: list[Request]) -> None:
        reader = self._reader
        read_bytes = reader.taken_read_bytes
        self.requests += len(requests)
        self.requests_in_flight += len(requests)
        self.bytes_in_flight += reader.taken_bytes
        self.bytes_read += read_bytes
        self.bytes_written += reader.taken_bytes - read_bytes
        if read_bytes:
            self._read_bytes_in_flight += read_bytes
            self._recharge()
        self._in_turn = True
        try:
            self._backend.submit(self, requests)
        except BaseException:
            # A bug in the backend: nobody can say which requests it took. This client is left
            # without an answer, so that it re-sends elsewhere; the error goes on to the loop.
            self._close("the backend failed")
            raise
        finally:
            self._in_turn = False

    def _arrange(self, progressed: bool) -> None:
        """Read on, take more of what is buffered, or wait until something is answered."""
        if self._closed:
            return
        reader, limits = self._reader, self._limits
        blocked = (
            self.requests_in_flight >= limits.requests_in_flight
            or self.bytes_in_flight >= limits.bytes_in_flight
            or self._replies.unsent_bytes > limits.unsent_bytes
        )
        if reader.stopped_early or blocked or self._leftover:
            self._read_off()
            if blocked:
                return
            if progressed or (self._leftover and not reader.stopped_early):
                self._schedule_continue()
            elif not self.requests_in_flight and not self._replies.pieces:
                self._wait_for_budget()
        elif self._state is State.OPEN:
            if not self._reading:
                self._read_on()
            if self._stall_timer is None and reader.waits_for_large_payload:
                self._watch_for_stall()

    def _schedule_continue(self) -> None:
        if not self._continue_scheduled and not self._closed:
            self._continue_scheduled = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        """Go on where limits stopped the last turn."""
        self._continue_scheduled = False
        if self._closed:
            return
        self._pool.on_return = None
        if self._reader.stopped_early:
            self._turn()
        elif self._leftover:
            self._on_readable()
        else:
            self._arrange(progressed=True)

    def _wait_for_buffer(self) -> None:
        """No buffer is to be had: read again when one of ours, or anybody's bytes, come back."""
        self._read_off()
        self._pool.on_return = self._schedule_continue
        self._wait_for_budget()

    def _wait_for_budget(self) -> None:
        if not self._in_budget_queue:
            self._in_budget_queue = True
            self._budget.wait(self._budget_may_do)

    def _budget_may_do(self) -> None:
        self._in_budget_queue = False
        self._schedule_continue()

    def _watch_for_stall(self) -> None:
        """A payload that holds a large buffer must keep coming while it is asked for."""
        self._stall_timer = self._loop.call_later(
            self._limits.payload_stall_s, self._check_stall, self.bytes_received
        )

    def _check_stall(self, mark: int) -> None:
        self._stall_timer = None
        if not self._reader.waits_for_large_payload:
            return
        if self._reading and self.bytes_received == mark:
            seconds = self._limits.payload_stall_s
            self._drop(ClientStalled(f"no byte of an announced payload for {seconds:g} s"))
        else:
            self._watch_for_stall()

    def _read_on(self) -> None:
        self._reading = True
        self._loop.add_reader(self._descriptor, self._on_readable)

    def _read_off(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._descriptor)

    # Sending.

    def _send(self) -> None:
        """Send until done or the socket is full; then the loop calls again."""
        replies = self._replies
        try:
            replies.send_to(self._sock)
        except OSError as error:
            self._close(f"sending failed: {error.strerror}")
            return
        if replies.pieces:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._descriptor, self._on_writable)
        elif self._writing:
            self._writing = False
            self._loop.remove_writer(self._descriptor)
        if self._charged_bytes or replies.pieces:
            self._recharge()

    def _on_writable(self) -> None:
        self._send()
        if not self._reading:
            self._arrange(progressed=True)
        if self._state is State.FINISHING:
            self._close_if_finished()

    def _recharge(self) -> None:
        """Tell the shared budget what this client's reads and unsent replies hold now."""
        held = self._read_bytes_in_flight + self._replies.unsent_bytes
        change = held - self._charged_bytes
        self._charged_bytes = held
        if change > 0:
            self._budget.force(change)
        elif change:
            self._budget.give(-change)

    # The end.

    def _end_of_stream(self) -> None:
        if self._reader.in_mid_request:
            log.info(
                "%s: left in the middle of a request; nothing of it is applied", self.peer_name
            )
        self.finish()

    def _close_if_finished(self) -> None:
        if (
            self._closed
            or self.requests_in_flight
            or self._replies.pieces
            or self._leftover
            or self._reader.stopped_early
        ):
            return
        try:
            # The replies must not be lost to the reset that closing with unread bytes causes.
            self._sock.shutdown(socket.SHUT_WR)
            self._sock.recv(LAST_LOOK_BYTES)
        except OSError:
            pass  # The client is gone already, or has sent nothing more.
        self._close("finished")

    def _drop(self, error: ClientError) -> None:
        log.warning("%s: dropped: %s", self.peer_name, error)
        self._close(str(error))

    def _close(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        self._state = State.CLOSED
        self._read_off()
        if self._writing:
            self._loop.remove_writer(self._descriptor)
            self._writing = False
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self._sock.close()
        self._leftover = b""
        self._replies.discard()
        self._reader.close()
        self._pool.close()
        self._budget.give(self._charged_bytes)
        self._charged_bytes = 0
        log.debug("%s: closed: %s", self.peer_name, reason)
        self._backend.disconnected(self)
        if not self.requests_in_flight:
            self._idle()

    def _idle(self) -> None:
        on_idle, self.on_idle = self.on_idle, None
        if on_idle is not None:
            on_idle(self)

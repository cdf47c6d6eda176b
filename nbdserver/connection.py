"""One client in transmission: a non-blocking socket, a RequestReader and a Backend.

One turn per wake-up: one receive, every complete request in it, one `backend.submit`, one send of
what was answered meanwhile. Plain reader and writer callbacks of the loop; nothing is awaited and
no task or future exists, so that it runs the same on asyncio and on uvloop.

Never blocks, never reads more than its limits allow to be in flight, unsent or staged, and never
lets a fault of its client, or an error of ours met while serving it, reach another connection. A
reply that comes after the end goes nowhere; `on_idle` tells when the last one came, so that whoever
must know that no request of this client can take effect any more can wait for it.

Everything here happens on the loop's thread.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Final

from nbdserver.answering import AnsweringHalf
from nbdserver.buffers import CHUNK_BYTES, ByteBudget, ChunkPool
from nbdserver.chunked_replies import ExtendedReplies, StructuredReplies
from nbdserver.client_log import client_log
from nbdserver.counters import End, TransmissionCounters
from nbdserver.errors import ClientError, ClientStalled
from nbdserver.export import Backend, ExportInfo
from nbdserver.extended_headers import ExtendedRequestReader
from nbdserver.file_data import FileFailed
from nbdserver.limits import Limits
from nbdserver.replies import ReplyQueue
from nbdserver.requests import Request
from nbdserver.terms import ReplyStyle, Terms
from nbdserver.transmission import RequestReader
from nbdserver.watch import ClientWatches, Watch

log = logging.getLogger("nbdserver")

_READERS: Final[Mapping[ReplyStyle, type[RequestReader]]] = {
    ReplyStyle.SIMPLE: RequestReader,
    ReplyStyle.STRUCTURED: RequestReader,
    ReplyStyle.EXTENDED: ExtendedRequestReader,
}
_QUEUES: Final[Mapping[ReplyStyle, type[ReplyQueue]]] = {
    ReplyStyle.SIMPLE: ReplyQueue,
    ReplyStyle.STRUCTURED: StructuredReplies,
    ReplyStyle.EXTENDED: ExtendedReplies,
}


class State(Enum):
    """OPEN reads and answers, FINISHING only answers, CLOSED does neither."""

    OPEN = auto()
    FINISHING = auto()
    CLOSED = auto()


class Connection(AnsweringHalf):
    """Drives `sock` for `export`; the connection owns the socket and closes it.

    `leftover` is what was received beyond the handshake; `wire` is the client's own connection if
    `sock` carries what another process decrypts of it. `on_idle` is called once, when the
    connection is closed and none of its requests is in flight any more. `tells_holes` says whether
    a READ may be answered with holes told apart, so that looking for them is worth it.
    """

    __slots__ = (
        "_backend",
        "_backend_broke",
        "_continue_scheduled",
        "_in_budget_queue",
        "_in_turn",
        "_limits",
        "_pool",
        "_reader",
        "_state",
        "_watches",
        "bytes_read",
        "bytes_received",
        "bytes_written",
        "export",
        "on_idle",
        "peer_name",
        "requests",
        "tells_holes",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        export: ExportInfo,
        backend: Backend,
        leftover: bytes = b"",
        limits: Limits | None = None,
        peer_name: str = "client",
        budget: ByteBudget | None = None,
        terms: Terms | None = None,
        counters: TransmissionCounters | None = None,
        wire: socket.socket | None = None,
    ) -> None:
        terms = terms or Terms()
        replies = _QUEUES[terms.style]()
        super().__init__(loop, sock, leftover, replies, budget or ByteBudget(), counters, wire)
        self.export = export
        self.peer_name = peer_name
        self.on_idle: Callable[[Connection], None] | None = None
        self.tells_holes = terms.style is not ReplyStyle.SIMPLE
        self.requests = 0
        self.bytes_read = self.bytes_written = self.bytes_received = 0
        self._backend = backend
        self._limits = limits or Limits()
        self._pool = ChunkPool(
            self._budget, self._limits.buffer_bytes, self._limits.spare_buffer_bytes
        )
        self._reader = _READERS[terms.style](export, self._pool, self, terms)
        self._state = State.OPEN
        self._backend_broke = self._in_turn = False
        self._continue_scheduled = self._in_budget_queue = False
        self._watches = self._make_watches()

    @property
    def state(self) -> State:
        """Where in its life the connection is."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether its socket is closed; requests may still be in flight."""
        return self._closed

    @property
    def may_still_act(self) -> bool:
        """Whether a request of this client is, or may yet be, at work in the backend."""
        if self._state is State.OPEN:
            return True
        unparsed = bool(self._leftover) or self._reader.stopped_early
        return self.requests_in_flight > 0 or (not self._closed and unparsed)

    @property
    def client_has_left(self) -> bool:
        """Whether the client said or shows that it sends nothing more, read or not yet read."""
        return self._state is not State.OPEN or self._peer_is_gone()

    def start(self) -> None:
        """Begin to serve."""
        if self._closed:
            return
        self._sock.setblocking(False)
        if self._limits.idle_s:
            self._watches.idle.start()
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

    def abandon(self, reason: str = "abandoned", limit: str = "") -> None:
        """Close now and answer nothing: the client sees silence and a closed connection.

        `limit` is the name of the limit for which that is done, if it is for one.
        """
        if limit and not self._closed:
            self._met(limit)
        self._close(reason, End.ABANDONED)

    def fail(self, bug: Exception, requests: Sequence[Request] = ()) -> None:
        """An error of ours, met by this client: it is closed without an answer, and it is loud.

        `requests`, none of them answered, are counted as done.
        """
        log.error("%s: closed by an error of this server", self.peer_name, exc_info=bug)
        self._close(f"an error of this server: {bug}", End.BUG)
        for request in requests:
            self._done(request)

    def send_replies(self) -> None:
        """Send what was queued; to be called once after a batch of replies."""
        try:
            self._send_replies()
        except Exception as bug:  # ours; it ends this client and no other
            self._guard(bug)

    def _send_replies(self) -> None:
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
        try:
            self._receive()
        except Exception as bug:  # ours; it ends this client and no other
            self._guard(bug)

    def _guard(self, bug: Exception) -> None:
        """To be called where an exception was caught. One of the backend's is its owner's."""
        if self._backend_broke:
            raise bug
        self.fail(bug)

    def _receive(self) -> None:
        room = self._reader.room()
        if room is None:
            self._wait_for_buffer()
            return
        try:
            count = self._receive_into(room)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._broke("receiving", error)
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
                limits.in_flight_requests - self.requests_in_flight,
                limits.in_flight_bytes - self.bytes_in_flight,
                read_room,
            )
        except ClientError as error:
            self._drop(error)
            return
        refusals = reader.refusals
        progressed = bool(requests or refusals)
        if refusals:
            self._answer_refused()
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

    def _answer_refused(self) -> None:
        refusals, replies = self._reader.refusals, self._replies
        self.requests += len(refusals)
        for request, fault in refusals:
            if fault.error:
                self.errors += 1
                replies.add_error(request, fault.error, fault.text, fault.offset)
            else:
                replies.add_success(request)
        refusals.clear()

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
            self._backend_broke = True
            self._close("the backend failed", End.BUG)
            raise
        finally:
            self._in_turn = False

    def _arrange(self, progressed: bool) -> None:
        """Read on, take more of what is buffered, or wait until something is answered."""
        if self._closed:
            return
        reader, limits, budget = self._reader, self._limits, self._budget
        if self._writing:
            # Nobody reserved bytes for the answers to statuses and to what was refused.
            self._recharge()
        blocked = (
            (self.requests_in_flight >= limits.in_flight_requests and "in_flight_requests")
            or (self.bytes_in_flight >= limits.in_flight_bytes and "in_flight_bytes")
            or (self._replies.unsent_bytes > limits.unsent_bytes and "unsent_bytes")
            or (self._writing and budget.used_bytes > budget.limit_bytes and "total_bytes")
        )
        if reader.stopped_early or blocked or self._leftover:
            self._read_off()
            if blocked:
                self._waits(blocked)
                return
            if progressed or (self._leftover and not reader.stopped_early):
                self._schedule_continue()
                return
            # The next request does not fit beside those in flight.
            self._waits("total_bytes" if reader.stopped_by_reads else "in_flight_bytes")
            if not self.requests_in_flight and not self._replies.pieces:
                self._wait_for_budget()
        elif self._state is State.OPEN:
            if not self._reading:
                self._read_on()
            if reader.waits_for_large_payload:
                self._watches.payload.start()

    def _schedule_continue(self) -> None:
        if not self._continue_scheduled and not self._closed:
            self._continue_scheduled = True
            self._loop.call_soon(self._continue)

    def _continue(self) -> None:
        """Go on where limits stopped the last turn: the loop's callback."""
        try:
            self._go_on()
        except Exception as bug:  # ours; it ends this client and no other
            self._guard(bug)

    def _go_on(self) -> None:
        self._continue_scheduled = False
        if self._closed:
            return
        self._pool.on_return = None
        if self._reader.stopped_early:
            self._turn()
        elif self._leftover:
            self._receive()
        else:
            self._arrange(progressed=True)

    def _wait_for_buffer(self) -> None:
        """No buffer is to be had: read again when one of ours, or anybody's bytes, come back."""
        self._read_off()
        self._waits(self._pool.short_of)
        self._pool.on_return = self._schedule_continue
        self._wait_for_budget()

    def _wait_for_budget(self) -> None:
        if not self._in_budget_queue:
            self._in_budget_queue = True
            self._budget.wait(self._budget_may_do)

    def _budget_may_do(self) -> None:
        self._in_budget_queue = False
        self._schedule_continue()

    # What the client must go on with.

    def _make_watches(self) -> ClientWatches:
        loop, limits = self._loop, self._limits

        def stalled(limit: str, what: str) -> Callable[[], None]:
            period_s = getattr(limits, limit)

            def end() -> None:
                self._met(limit)
                self._drop(ClientStalled(f"{what} for {period_s:g} s"), End.STALLED)

            return end

        def idle() -> None:
            self._met("idle_s")
            self._close("idle", End.IDLE)

        no_payload = stalled("payload_stall_s", "no byte of an announced payload")
        none_taken = stalled("reply_stall_s", "took none of its replies")
        return ClientWatches(
            Watch(loop, limits.payload_stall_s, self._payload_progress, no_payload),
            Watch(loop, limits.reply_stall_s, self._reply_progress, none_taken),
            Watch(loop, limits.idle_s, self._progress, idle),
        )

    def _payload_progress(self) -> object | None:
        if not self._reader.waits_for_large_payload:
            return None
        # It can only send while it is asked to.
        return self.bytes_received if self._reading else object()

    def _reply_progress(self) -> object | None:
        if not self._replies.pieces:
            return None
        # It may take its time for as long as nobody waits for the bytes that it holds.
        return self._replies.sent_bytes if self._budget.contended else object()

    def _progress(self) -> object:
        return object() if self.requests_in_flight or self._replies.pieces else self.bytes_received

    # Sending.

    def _send(self) -> None:
        try:
            if self._send_queued():
                self._watches.replies.start()
        except FileFailed as error:  # after part of its reply, so that no error can be answered
            log.error("%s: closed: its data cannot be read: %s", self.peer_name, error.strerror)
            self._close(f"reading failed: {error.strerror}", End.FILE_FAILED)
        except OSError as error:
            self._broke("sending", error)
        else:
            if self._charged_bytes or self._replies.pieces:
                self._recharge()

    def _on_writable(self) -> None:
        """The socket takes more: the loop's callback."""
        try:
            self._send()
            if not self._reading:
                self._arrange(progressed=True)
            if self._state is State.FINISHING:
                self._close_if_finished()
        except Exception as bug:  # ours; it ends this client and no other
            self._guard(bug)

    # The end.

    def _end_of_stream(self) -> None:
        if self._reader.in_mid_request:
            client_log.info(
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
        self._shut_down()
        self._close("finished", End.FINISHED)

    def _broke(self, what: str, error: OSError) -> None:
        if error.errno == errno.ETIMEDOUT:
            # The kernel's word for a client that acknowledged nothing for as long as it may.
            self._met("half_open_s")
        self._close(f"{what} failed: {error.strerror}", End.HUNG_UP)

    def _drop(self, error: ClientError, end: End = End.VIOLATION) -> None:
        client_log.warning("%s: dropped: %s", self.peer_name, error)
        self._close(str(error), end)

    def _close(self, reason: str, end: End) -> None:
        if self._closed:
            return
        self._closed = True
        self._state = State.CLOSED
        self._watches.stop()
        self._close_socket()
        self._reader.close()
        self._pool.close()
        self._budget.give(self._charged_bytes)
        self._charged_bytes = 0
        log.debug("%s: closed: %s", self.peer_name, reason)
        if self._counters is not None:
            self._counters.ended(self, end)
        self._backend.disconnected(self)
        if not self.requests_in_flight:
            self._idle()

    def _idle(self) -> None:
        on_idle, self.on_idle = self.on_idle, None
        if on_idle is not None:
            on_idle(self)

"""The answering half of a connection: what a backend calls, and what is in flight until it does.

Owns the counts of requests and bytes in flight and of limits that were met, and this client's
charge on the shared budget. A request is answered exactly once, on the connection it came from; an
answer after the end goes nowhere but is counted, and the last one makes the connection idle.
"""

from __future__ import annotations

import asyncio
import socket
from abc import abstractmethod
from collections.abc import Mapping, Sequence

from nbdserver.buffers import ByteBudget, Chunk
from nbdserver.client_socket import ClientSocket
from nbdserver.counters import TransmissionCounters
from nbdserver.errors import LocalError
from nbdserver.file_data import FILE_DATA_TURN_BYTES_MAX, FileData
from nbdserver.protocol import NBD_CMD_READ
from nbdserver.replies import Data, Extents, Part, ReplyQueue
from nbdserver.requests import Request


class AnsweringHalf(ClientSocket):
    """Base of `Connection`."""

    __slots__ = (
        "_budget",
        "_charged_bytes",
        "_closed",
        "_counters",
        "_read_bytes_in_flight",
        "bytes_in_flight",
        "errors",
        "limit_waits",
        "requests_in_flight",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        leftover: bytes,
        replies: ReplyQueue,
        budget: ByteBudget,
        counters: TransmissionCounters | None,
        wire: socket.socket | None = None,
    ) -> None:
        super().__init__(loop, sock, leftover, replies, wire)
        self._budget = budget
        self._charged_bytes = 0
        self._closed = False
        self._counters = counters
        self._read_bytes_in_flight = 0
        self.requests_in_flight = 0
        self.bytes_in_flight = 0
        self.errors = 0
        self.limit_waits = 0

    @property
    def may_hide_its_end(self) -> bool:
        """Whether the client may have left, and cannot show it before more of it is read."""
        # One that is gone with answers left to take shows that by a reset.
        return not (self._closed or self._writing) and self._hides_its_end()

    def reply(
        self,
        request: Request,
        error: int = 0,
        data: Data | Sequence[Data] | None = None,
        hold: Chunk | None = None,
        text: str = "",
        at: int | None = None,
    ) -> None:
        """Queue the one answer to `request` and give up its hold on its chunk.

        `error` is a Linux errno; `text` says why and `at` is the first byte at fault, both told to
        clients that can be told. `data` is what a READ asked for, `request.length` bytes in one
        piece or several; it must stay unchanged until it is sent. If it lies in a chunk, `hold`
        is released then. Raises LocalError for an answered request or data of another length.
        """
        if request.connection is not self:
            raise LocalError("a request was answered twice, or on another connection")
        try:
            if self._closed or error:
                if hold is not None:
                    hold.release()
                if error:
                    self.errors += 1
                    if not self._closed:
                        self._replies.add_error(request, error, text, at)
            elif request.command == NBD_CMD_READ:
                self._replies.add_data(request, data, hold)
            else:
                self._replies.add_success(request)
        finally:
            self._done(request)

    def sends_at_once(self, length: int) -> bool:
        """Whether a reply of so many bytes is likely to be with the socket at the end of this turn;
        what it does not take costs the turn a copy."""
        return not self._writing and self._replies.unsent_bytes + length <= FILE_DATA_TURN_BYTES_MAX

    def reply_file(self, request: Request, data: FileData) -> None:
        """As `reply` with data, which lies in a file and in the page cache. Only for a connection
        that sends at once, and `send_replies` has to follow before anything is waited for."""
        if request.connection is not self or self._writing:
            raise LocalError("a request was answered twice, or on another connection, or too early")
        try:
            if not self._closed:
                self._replies.add_file(request, data)
        finally:
            self._done(request)

    def reply_done(self, requests: Sequence[Request], first: int = 0) -> int:
        """Queue the success of requests that bring nothing back, for as many from `first` on as
        are of this connection; return the index behind them. LocalError if that is none."""
        if requests[first].connection is not self:
            raise LocalError("a request was answered twice, or on another connection")
        add_success, done, closed = self._replies.add_success, self._done, self._closed
        for index in range(first, len(requests)):
            request = requests[index]
            if request.connection is not self:
                return index
            if not closed:
                add_success(request)
            done(request)
        return len(requests)

    def reply_sparse(
        self, request: Request, parts: Sequence[Part], hold: Chunk | None = None
    ) -> None:
        """As `reply` with data, for a READ that met holes: data, and lengths of holes, in order."""
        if request.connection is not self:
            raise LocalError("a request was answered twice, or on another connection")
        try:
            if not self._closed:
                self._replies.add_parts(request, parts, hold)
            elif hold is not None:
                hold.release()
        finally:
            self._done(request)

    def reply_status(self, request: Request, statuses: Mapping[int, Extents]) -> None:
        """Queue the answer to a BLOCK_STATUS: for every context that it asks about, by id, the
        (length, status) of consecutive ranges from the request's offset on."""
        if request.connection is not self:
            raise LocalError("a request was answered twice, or on another connection")
        try:
            if not self._closed:
                self._replies.add_status(request, statuses)
        finally:
            self._done(request)

    def _done(self, request: Request) -> None:
        """The request is answered, or will never be."""
        request.connection = None
        self.requests_in_flight -= 1
        chunk = request.chunk
        if chunk is not None:
            self.bytes_in_flight -= request.length
            chunk.release()
        elif request.command == NBD_CMD_READ:
            self.bytes_in_flight -= request.length
            self._read_bytes_in_flight -= request.length
        if self._closed and not self.requests_in_flight:
            self._idle()

    def _recharge(self) -> None:
        """Tell the shared budget what this client's reads and unsent replies hold now."""
        held = self._read_bytes_in_flight + self._replies.unsent_bytes
        change = held - self._charged_bytes
        self._charged_bytes = held
        if change > 0:
            self._budget.force(change)
        elif change:
            self._budget.give(-change)

    def _waits(self, limit: str) -> None:
        """The client is not read because of the limit of that name."""
        self.limit_waits += 1
        self._met(limit)

    def _met(self, limit: str) -> None:
        if self._counters is not None:
            self._counters.limits[limit] += 1

    @abstractmethod
    def _idle(self) -> None:
        """The connection is closed and its last request is done."""

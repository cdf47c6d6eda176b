"""Answering client reads: from the page cache inside the turn, from the disk in a thread.

A read that fails is answered by nobody: its client sends it again where the data can be read
(design §7). Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from nbdserver.connection import Connection
from nbdserver.transmission import Request
from repl.core.volume import Volume
from repl.store.backing import Backing
from repl.store.iothreads import IoThreads


class Reader:
    """Carries out `Outbox.reads`; a disk error goes to `failed`."""

    def __init__(
        self,
        volume: Volume,
        backing: Backing,
        threads: IoThreads,
        failed: Callable[[str], None],
        run_again: Callable[[Callable[[], None]], None],
    ) -> None:
        self._volume = volume
        self._backing = backing
        self._threads = threads
        self._failed = failed
        self._run_again = run_again

    def read(self, request: Request, answered: set[Connection]) -> None:
        """Answer now, and note in `answered` whose replies are to be sent, or start to read."""
        connection = request.connection
        assert connection is not None
        buffer = bytearray(request.length)
        try:
            cached = self._backing.preadv_cached(buffer, request.offset)
        except OSError as error:
            self._could_not(request, error)
            return
        if cached:
            connection.reply(request, data=buffer)
            answered.add(connection)
            return
        self._threads.run(
            self._backing.preadv,
            [buffer],
            request.offset,
            done=lambda _result, error: self._done(request, buffer, error),
        )

    def _done(self, request: Request, buffer: bytearray, error: Exception | None) -> None:
        connection = request.connection
        if connection is None:
            return
        if error is not None:
            failure = error
            self._run_again(lambda: self._could_not(request, failure))
            return
        connection.reply(request, data=buffer)
        connection.send_replies()

    def _could_not(self, request: Request, error: Exception) -> None:
        self._failed(f"read: {error}")
        self._volume.forget(request)

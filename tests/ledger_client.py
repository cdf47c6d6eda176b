"""A libnbd client that writes with many requests in flight and keeps a `Ledger`.

It runs in a thread of its own (libnbd lets other threads run while it waits). It never writes a
block that has a write in flight unless `overlapping` is set, so that the book stays sharp. When its
connection dies, what was unanswered is left open in the book; then it ends, or with `reconnect`
it comes back until it is stopped, as a client with a retry filter does: to the same address, or
to each of several in turn, so that it follows a volume from node to node.

An error *reply* is kept in `error_replies`: no failover may ever produce one.
"""

from __future__ import annotations

import errno
import itertools
import random
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from tests import libnbd
from tests.ledger import Ledger

#: Pause between two attempts to connect.
RECONNECT_PAUSE_S = 0.05
#: How long `stop` waits for the answers of what is in flight.
DRAIN_DEADLINE_S = 60.0
WAIT_DEADLINE_S = 60.0


class LedgerClient:
    """One connection that writes random runs until stopped. Use as a context manager.

    depth: requests in flight. run_blocks: longest run of one write. flush_every: a FLUSH after so
    many writes (0: never). fua_every: every n-th write carries FUA (0: never). zero_every: every
    n-th write is a WRITE_ZEROES (0: never). region: the range of blocks to write.
    """

    def __init__(
        self,
        ledger: Ledger,
        uri: str | Sequence[str],
        *,
        seed: int = 0,
        depth: int = 32,
        run_blocks: int = 4,
        flush_every: int = 0,
        fua_every: int = 0,
        zero_every: int = 0,
        region: range | None = None,
        overlapping: bool = False,
        reconnect: bool = False,
    ) -> None:
        self.ledger = ledger
        self._uris = (uri,) if isinstance(uri, str) else tuple(uri)
        self.acknowledged = 0
        self.flushes = 0
        self.connections = 0
        self.error_replies: list[str] = []
        self.connection_losses: list[str] = []
        self._nbd = libnbd.load()
        self._random = random.Random(f"{ledger.seed}/{seed}")
        self.depth = depth
        self._run_blocks = run_blocks
        self._flush_every = flush_every
        self._fua_every = fua_every
        self._zero_every = zero_every
        self._region = region if region is not None else range(ledger.block_count)
        self._overlapping = overlapping
        self._reconnect = reconnect
        self._busy: set[int] = set()
        self._open_requests = 0
        self._issued = 0
        self._flush_pending = False
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="ledger client", daemon=True)

    # -- for the test ----------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to write; return at once."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Send no more, wait for the answers, disconnect. Raises what the thread failed with."""
        self._stop.set()
        self.join(DRAIN_DEADLINE_S)

    def join(self, deadline_s: float = WAIT_DEADLINE_S) -> None:
        """Wait until the client has ended, by `stop` or because its connection died."""
        self._thread.join(deadline_s)
        assert not self._thread.is_alive(), f"the client still waits: {self._situation()}"
        if self._failure is not None:
            raise self._failure

    def wait_acknowledged(self, more: int, deadline_s: float = WAIT_DEADLINE_S) -> None:
        """Wait until `more` further writes were acknowledged."""
        goal = self.acknowledged + more
        deadline = time.monotonic() + deadline_s
        while self.acknowledged < goal:
            if not self._thread.is_alive():
                if self._failure is not None:
                    raise self._failure
                raise AssertionError(f"the client ended early: {self._situation()}")
            assert time.monotonic() < deadline, (
                f"{goal - self.acknowledged} writes short of {more}: {self._situation()}"
            )
            time.sleep(0.005)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if kind is None:
            self.join(DRAIN_DEADLINE_S)
        else:
            # The test has failed already; what the client adds would only hide why.
            self._thread.join(5)

    def _situation(self) -> str:
        return (
            f"{self.acknowledged} acknowledged, {self._open_requests} in flight, "
            f"{self.connections} connections, losses {self.connection_losses[-3:]}, "
            f"error replies {self.error_replies[:3]}"
        )

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            for uri in itertools.cycle(self._uris):
                if self._stop.is_set():
                    return
                handle = self._nbd.NBD()
                try:
                    handle.connect_uri(uri)
                except self._nbd.Error as error:
                    self.connection_losses.append(f"connect: {error}")
                    if not self._reconnect:
                        return
                    self._stop.wait(RECONNECT_PAUSE_S)
                    continue
                self.connections += 1
                self._serve_connection(handle)
                del handle
                if not self._reconnect:
                    return
        except BaseException as error:  # carried to the test by `join`
            self._failure = error

    def _serve_connection(self, handle: Any) -> None:
        open_versions: set[int] = set()
        try:
            while not (self._stop.is_set() and self._open_requests == 0):
                while not self._stop.is_set() and self._open_requests < self.depth:
                    if not self._issue(handle, open_versions):
                        break
                if handle.aio_is_dead() or handle.aio_is_closed():
                    raise self._nbd.Error("connection closed by the server")
                handle.poll(100)
            handle.shutdown()
        except self._nbd.Error as error:
            self.connection_losses.append(str(error))
        finally:
            # The socket goes with the last reference to the handle, which `_run` drops.
            for version in open_versions:
                self.ledger.leave_open(version)
            self._busy.clear()
            self._open_requests = 0
            self._flush_pending = False

    def _issue(self, handle: Any, open_versions: set[int]) -> bool:
        """Send one request; return False if no free run of blocks was found."""
        if self._flush_every and self._issued % self._flush_every == self._flush_every - 1:
            if not self._flush_pending:
                self._issue_flush(handle)
            self._issued += 1
            return True
        run = self._choose_run()
        if run is None:
            return False
        self._issued += 1
        zeroes = bool(self._zero_every) and self._issued % self._zero_every == 0
        fua = bool(self._fua_every) and self._issued % self._fua_every == 0
        version = self.ledger.begin(run.start, len(run), zeroes=zeroes)
        open_versions.add(version)
        self._busy.update(run)
        self._open_requests += 1
        block_bytes = self.ledger.block_bytes
        answered = self._answered(run, version, open_versions)
        flags = self._nbd.CMD_FLAG_FUA if fua else 0
        if zeroes:
            length = len(run) * block_bytes
            handle.aio_zero(length, run.start * block_bytes, completion=answered, flags=flags)
        else:
            # libnbd keeps what it is given until the answer; its own Buffer it would keep for ever.
            data = self.ledger.payload(version)
            handle.aio_pwrite(data, run.start * block_bytes, completion=answered, flags=flags)
        return True

    def _answered(self, run: range, version: int, open_versions: set[int]) -> Callable[[Any], int]:
        def completed(error: Any) -> int:
            if version not in open_versions:
                return 1
            if error.value == 0:
                self.ledger.acknowledge(version)
                self.acknowledged += 1
            else:
                # When a connection dies, libnbd ends its requests with ENOTCONN, which no server
                # can send (it is none of NBD's error numbers): that is no reply.
                if error.value != errno.ENOTCONN:
                    self.error_replies.append(f"write of {run}: errno {error.value}")
                self.ledger.leave_open(version)
            open_versions.discard(version)
            self._busy.difference_update(run)
            self._open_requests -= 1
            return 1

        return completed

    def _issue_flush(self, handle: Any) -> None:
        def completed(error: Any) -> int:
            if error.value == 0:
                self.flushes += 1
            elif error.value != errno.ENOTCONN:
                self.error_replies.append(f"flush: errno {error.value}")
            self._flush_pending = False
            self._open_requests -= 1
            return 1

        self._flush_pending = True
        self._open_requests += 1
        handle.aio_flush(completion=completed)

    def _choose_run(self) -> range | None:
        for _ in range(16):
            length = self._random.randint(1, min(self._run_blocks, len(self._region)))
            start = self._random.randrange(self._region.start, self._region.stop - length + 1)
            run = range(start, start + length)
            if self._overlapping or self._busy.isdisjoint(run):
                return run
        return None


def judge_over_nbd(ledger: Ledger, uri: str) -> None:
    """Read every block through the export and judge it. Raises `LedgerViolated`."""
    nbd = libnbd.load()
    handle = nbd.NBD()
    handle.connect_uri(uri)
    try:
        chunk_blocks = (1 << 20) // ledger.block_bytes
        cached: dict[int, bytes] = {}

        def read_block(number: int) -> bytes:
            first = number - number % chunk_blocks
            if first not in cached:
                blocks = min(chunk_blocks, ledger.block_count - first)
                cached.clear()
                cached[first] = bytes(
                    handle.pread(blocks * ledger.block_bytes, first * ledger.block_bytes)
                )
            start = (number - first) * ledger.block_bytes
            return cached[first][start : start + ledger.block_bytes]

        ledger.judge_or_raise(read_block, uri)
    finally:
        handle.shutdown()

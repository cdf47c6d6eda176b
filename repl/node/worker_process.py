"""One volume's worker process, as its supervisor sees it: started, watched, asked, replaced.

Owns the process, its channel, the requests in flight and the last status it pushed. A worker that
exits is started again with a growing delay; one that sends nothing for `silent_s` is killed first.
The supervisor's own thread must never wait for a worker: requests have deadlines, messages are
queued without blocking, the end of the process is an event (pidfd), and SIGKILL works on a stopped
process too. What the volume's state means is the worker's business; nothing of it is decided here.

The messages are listed in `repl/node/README.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Final

from repl import errors
from repl.errors import Refused, ReplError, TimedOut
from repl.events import event
from repl.node.channel import Channel, Message, channel_pair
from repl.node.logs import log_event, logger
from repl.node.volume_status import VolumeObject, unanswered_volume
from repl.own_program import own_environment, own_program

#: A silent worker is looked at this often within its limit. Each look counts once, however late it
#: came, so that a supervisor that was itself stopped for an hour does not kill healthy workers.
WATCH_STEPS: Final = 5
#: After this many looks in vain the worker is shown as silent; after WATCH_STEPS it is killed.
SHOWN_SILENT_STEPS: Final = 1
STATUS_TIMEOUT_S: Final = 1.0
#: How long a request waits for a worker that is being started, within its own deadline.
READY_WAIT_S: Final = 10.0
#: A worker that closed its channel is about to end; it may still print why.
CHANNEL_GRACE_S: Final = 2.0
WORKER_COMMAND: Final = own_program("repl.node.worker")


@dataclass(frozen=True, slots=True)
class WorkerTimes:
    """How long what may take, in seconds."""

    silent_s: float = 10.0
    #: Until the first message; starting Python and reading large maps on a busy machine is slow.
    start_s: float = 30.0
    stop_s: float = 15.0
    #: For the kernel to end a process after SIGKILL; longer means that it is stuck in I/O.
    kill_s: float = 5.0
    backoff_first_s: float = 0.1
    backoff_max_s: float = 5.0
    #: A worker that ran this long gets the first delay again.
    backoff_reset_s: float = 10.0


class WorkerState(enum.Enum):
    """The life of a worker; the value is what status shows."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    SILENT = "silent"
    RESTARTING = "restarting"
    STOPPING = "stopping"


TRANSITIONS: Final[Mapping[WorkerState, frozenset[WorkerState]]] = {
    WorkerState.STOPPED: frozenset({WorkerState.STARTING}),
    WorkerState.STARTING: frozenset(
        {WorkerState.RUNNING, WorkerState.RESTARTING, WorkerState.STOPPING}
    ),
    WorkerState.RUNNING: frozenset(
        {WorkerState.SILENT, WorkerState.RESTARTING, WorkerState.STOPPING}
    ),
    WorkerState.SILENT: frozenset(
        {WorkerState.RUNNING, WorkerState.RESTARTING, WorkerState.STOPPING}
    ),
    WorkerState.RESTARTING: frozenset({WorkerState.STARTING, WorkerState.STOPPING}),
    WorkerState.STOPPING: frozenset({WorkerState.STOPPED}),
}


@dataclass(slots=True)
class _Run:
    """One process, from its start to its end."""

    process: subprocess.Popen[bytes]
    channel: Channel
    started_s: float
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    #: The watcher is to look now: the process ended, its channel broke, or it is to stop.
    attention: asyncio.Event = field(default_factory=asyncio.Event)
    heard: bool = False
    #: It has pushed a status, so that what it says of the volume counts.
    up: bool = False
    heard_since_look: bool = False


class WorkerProcess:
    """Keeps one volume's worker alive and talks to it. Used on the loop's thread only."""

    def __init__(
        self,
        settings: Message,
        unknown: VolumeObject,
        *,
        command: Sequence[str] = WORKER_COMMAND,
        times: WorkerTimes | None = None,
        on_event: Callable[[Message], None] | None = None,
    ) -> None:
        """`settings` is the first message to the worker, `unknown` its status until it speaks."""
        self.name: str = settings["volume"]["name"]
        self.state = WorkerState.STOPPED
        self.starts = 0
        self._settings = settings
        self._command = tuple(command)
        self._times = times or WorkerTimes()
        self._on_event = on_event or partial(log_event, logger("worker").bind(volume=self.name))
        self._last_volume = unknown
        self._problem: ReplError | None = self._silence("its worker process has not started yet")
        self._run: _Run | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_asked = asyncio.Event()
        self._numbers = count(1)
        self._pending: dict[int, asyncio.Future[Message]] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._log = logger("worker").bind(volume=self.name)

    def remember(self, key: str, value: Any) -> None:
        """Give a later worker this with the volume's settings."""
        self._settings["volume"][key] = value

    # Life.

    def start(self) -> None:
        """Start the worker and keep one running until `stop`."""
        assert self._task is None, "a worker is started once"
        self._task = asyncio.create_task(self._keep_running(), name=f"worker {self.name}")

    async def stop(self) -> None:
        """Ask the worker to stop cleanly; kill it when that takes longer than `stop_s`."""
        if self._task is None:
            return
        self._stop_asked.set()
        if self._run is not None:
            self._run.attention.set()
        await self._task

    @property
    def pid(self) -> int | None:
        return self._run.process.pid if self._run is not None else None

    @property
    def answers(self) -> bool:
        """Whether the worker runs and was heard lately."""
        return self.state is WorkerState.RUNNING

    # Status.

    def last_volume(self) -> VolumeObject:
        """Return the last status that the worker pushed, with a `problem` while it is silent."""
        volume = self._last_volume
        if self._problem is not None:
            volume = unanswered_volume(volume, self._problem)
        return volume | {
            "worker_pid": self.pid,
            "worker_state": self.state.value,
            "worker_starts_total": self.starts,
        }

    async def ask_volume(self) -> VolumeObject:
        """Return the status as the worker gives it now, or `last_volume` when it does not answer.

        Only the first request to a worker that hangs waits `STATUS_TIMEOUT_S`; from then on it is
        known to be silent until it says something.
        """
        if self.answers:
            try:
                self._last_volume = await self.request("status", {}, STATUS_TIMEOUT_S)
            except TimedOut:
                if self.state is WorkerState.RUNNING:
                    self._fell_silent()
            except ReplError as error:
                return self.last_volume() | {"problem": error.to_json()}
        return self.last_volume()

    async def changed(self, timeout_s: float) -> float:
        """Wait until the worker's status or state was heard of again, or for `timeout_s`.

        Returns how long that took, in seconds.
        """
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        waiter = loop.create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait((waiter,), timeout=timeout_s)
        finally:
            self._waiters.discard(waiter)
        return loop.time() - begun_s

    # Messages.

    async def request(self, verb: str, args: Message, timeout_s: float) -> Message:
        """Return the worker's result. Raises the error it answered, or WORKER_SILENT, TIMED_OUT."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        run = await self._ready(min(timeout_s, READY_WAIT_S))
        number = next(self._numbers)
        reply: asyncio.Future[Message] = loop.create_future()
        self._pending[number] = reply
        try:
            message = {"kind": "request", "id": number, "verb": verb, "args": args}
            if not run.channel.send(message):
                raise self._silence("its worker process takes no more messages")
            async with asyncio.timeout_at(deadline_s):
                return await reply
        except TimeoutError:
            if self.state is WorkerState.RUNNING:
                raise TimedOut(
                    f"{self.name} did not finish {verb} within {timeout_s:g} s",
                    "its worker is alive and may still finish it",
                    f"replctl status {self.name}",
                ) from None
            raise self._silence(f"its worker did not answer within {timeout_s:g} s") from None
        finally:
            self._pending.pop(number, None)

    def pass_socket(self, message: Message, *sockets: socket.socket) -> bool:
        """Give the worker copies of `sockets` with `message`; false when it cannot be given any."""
        run = self._run
        fds = [sock.fileno() for sock in sockets]
        return self.answers and run is not None and run.channel.send(message, *fds)

    async def _ready(self, timeout_s: float) -> _Run:
        """Return the current run once its process can be sent messages."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        while self.state in (WorkerState.STARTING, WorkerState.RESTARTING):
            left_s = deadline_s - loop.time()
            if left_s <= 0:
                break
            await self.changed(left_s)
        if self.state in (WorkerState.STOPPING, WorkerState.STOPPED):
            raise Refused(
                f"{self.name} is being stopped",
                "the daemon is stopping or has not started yet",
                "start the daemon again",
                code="SHUTTING_DOWN",
            )
        if self._run is None or not self._run.up:
            raise self._problem or self._silence("its worker process is not running")
        return self._run

    def _received(self, run: _Run, message: Message, _fds: list[int]) -> None:
        if run is not self._run:
            return
        run.heard_since_look = run.heard = True
        if self.state is WorkerState.SILENT:
            self._up(run)
        match message:
            case {"kind": "status", "volume": dict(volume)}:
                self._last_volume = volume
                if self.state is WorkerState.STARTING:
                    self._up(run)
                    pid = run.process.pid
                    self._tell("WORKER_STARTED", "The worker is up.", pid=pid)
                self._tell_waiters()
            case {"kind": "reply", "id": int(number)}:
                self._answered(number, message)
            case {"kind": "event", "event": dict(said)}:
                self._on_event(said)
            case _:
                self._log.error("The worker sent what nobody understands.", message=repr(message))

    def _up(self, run: _Run) -> None:
        run.up = True
        self._problem = None
        self._enter(WorkerState.RUNNING)

    def _answered(self, number: int, message: Message) -> None:
        reply = self._pending.pop(number, None)
        if reply is None or reply.done():
            return
        match message:
            case {"ok": True, "result": dict(result)}:
                reply.set_result(result)
            case {"ok": False, "error": dict(error)}:
                reply.set_exception(errors.from_json(error))
            case _:
                reply.set_exception(ReplError(f"{self.name}: its worker's answer has no result"))

    # The process.

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        delay_s = self._times.backoff_first_s
        while not self._stop_asked.is_set():
            self._problem = self._silence("its worker process is being started")
            self._enter(WorkerState.STARTING)
            started_s = loop.time()
            ended = await self._run_once()
            if self._stop_asked.is_set():
                self._log.info("The worker has stopped.", ended=ended)
                break
            if loop.time() - started_s >= self._times.backoff_reset_s:
                delay_s = self._times.backoff_first_s
            self._problem = self._silence(f"its worker process {ended}; it is being restarted")
            self._enter(WorkerState.RESTARTING)
            text = f"The worker {ended}; it is started again."
            self._tell("WORKER_ENDED", text, ended=ended, delay_s=delay_s)
            await _set_within(self._stop_asked, delay_s)
            delay_s = min(2 * delay_s, self._times.backoff_max_s)
        if self.state is not WorkerState.STOPPING:
            self._enter(WorkerState.STOPPING)
        self._problem = self._silence("the daemon is stopping")
        self._enter(WorkerState.STOPPED)

    async def _run_once(self) -> str:
        """Start a process, watch it to its end and return how it ended, as a verb phrase."""
        loop = asyncio.get_running_loop()
        ours, theirs = channel_pair()
        try:
            with theirs:
                process = self._spawn(theirs.fileno())
        except OSError as error:
            ours.close()
            return f"could not be started: {error.strerror}"
        run = _Run(process, Channel(ours, loop), loop.time())
        run.channel.on_message = lambda message, fds: self._received(run, message, fds)
        run.channel.on_close = lambda _reason: run.attention.set()
        pidfd = os.pidfd_open(process.pid)

        def ended() -> None:
            loop.remove_reader(pidfd)
            run.exited.set()
            run.attention.set()

        loop.add_reader(pidfd, ended)
        self._run = run
        self.starts += 1
        try:
            run.channel.send(self._settings)
            return await self._watch(run)
        finally:
            self._run = None
            loop.remove_reader(pidfd)
            os.close(pidfd)
            run.channel.close()
            if process.poll() is None:
                process.kill()
            self._fail_requests()

    def _spawn(self, channel_fd: int) -> subprocess.Popen[bytes]:
        """Start the worker. It shares our process group, so that killing that ends it too."""
        environment = own_environment()
        environment.pop("NOTIFY_SOCKET", None)
        return subprocess.Popen(
            [*self._command, "--channel-fd", str(channel_fd)],
            stdin=subprocess.DEVNULL,
            pass_fds=(channel_fd,),
            env=environment,
        )

    async def _watch(self, run: _Run) -> str:
        silent_steps = 0
        while not run.exited.is_set():
            if self._stop_asked.is_set():
                return await self._stop_run(run)
            if run.channel.closed:
                if await _set_within(run.exited, CHANNEL_GRACE_S):
                    break
                await self._end_run(run)
                return "closed its channel without ending, and was killed"
            limit_s = self._times.silent_s if run.heard else self._times.start_s
            run.heard_since_look = False
            await _set_within(run.attention, limit_s / WATCH_STEPS)
            silent_steps = 0 if run.heard_since_look else silent_steps + 1
            if run.attention.is_set():
                continue
            if silent_steps >= SHOWN_SILENT_STEPS and self.state is WorkerState.RUNNING:
                self._fell_silent()
            if silent_steps >= WATCH_STEPS:
                await self._end_run(run)
                return f"said nothing for {limit_s:g} s and was killed"
        return _how_ended(run.process.wait())

    async def _stop_run(self, run: _Run) -> str:
        self._enter(WorkerState.STOPPING)
        run.channel.send({"kind": "stop"})
        if not await _set_within(run.exited, self._times.stop_s):
            self._log.error("The worker did not stop in time.", waited_s=self._times.stop_s)
        return await self._end_run(run)

    async def _end_run(self, run: _Run) -> str:
        """Kill the process if it has not ended, and wait until the kernel says that it has."""
        if not run.exited.is_set():
            run.process.kill()
        while not await _set_within(run.exited, self._times.kill_s):
            self._log.error(
                "SIGKILL does not end the worker: the kernel holds it, most likely in disk I/O.",
                pid=run.process.pid,
            )
            if self._stop_asked.is_set():
                return "was left behind, stuck in the kernel"
        return _how_ended(run.process.wait())

    def _fail_requests(self) -> None:
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(
                    self._silence("its worker process ended; whether this was done is unknown")
                )
        self._pending.clear()

    # Small steps.

    def _enter(self, state: WorkerState) -> None:
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        self.state = state
        self._tell_waiters()

    def _tell_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _tell(self, code: str, text: str, **fields: Any) -> None:
        self._on_event(event(code, text, fields)._asdict())

    def _fell_silent(self) -> None:
        self._problem = self._silence("its worker process does not answer")
        self._enter(WorkerState.SILENT)
        self._tell("WORKER_SILENT", "The worker does not answer.")

    def _silence(self, why: str) -> ReplError:
        return TimedOut(
            f"{self.name}: {why}",
            "the volume's worker process does not answer; a new one takes over by itself",
            f"replctl status {self.name}",
            code="WORKER_SILENT",
        )


async def _set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for `event`, at most `timeout_s`; return whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()


def _how_ended(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"

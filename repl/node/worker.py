"""`python -m repl.node.worker`: the process that owns one volume (design §3).

Started by the supervisor with one end of a channel and nothing else; dies with it. Turns channel
messages into calls of `ServedVolume` and pushes status, which is also the heartbeat. An exception
that nothing foresaw ends the process loudly: it is restarted and recovers as from any crash.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gc
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

from nbdserver import terms
from repl.errors import ReplError
from repl.events import ERROR, Note
from repl.node.channel import Channel, MessageTooBig, die_with_parent
from repl.node.event_loop import new_event_loop
from repl.node.served_volume import ServedVolume
from repl.node.volume_clients import Arrived

HEARTBEAT_S = 0.5
#: So many young objects make the garbage collector look for cycles. Requests make none, and their
#: objects are many.
YOUNG_OBJECTS_MAX = 20_000
EXIT_BUG = 70
EXIT_METADATA = 71


class Worker:
    """The channel's end in the worker."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._channel = Channel(sock, loop, self._on_message, self._on_close)
        self._volume: ServedVolume | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._push_scheduled = False
        self.finished: asyncio.Future[int] = loop.create_future()

    def _on_close(self, _reason: str) -> None:
        # The supervisor is gone: workers die with it, as in a crash of the node.
        os._exit(0)

    def _on_message(self, message: dict[str, Any], fds: list[int]) -> None:
        kind = message["kind"]
        if kind == "settings":
            self._open(message)
            return
        volume = self._volume
        assert volume is not None, "settings come first"
        if kind == "request":
            self._spawn(self._answer(volume, message))
        elif not fds and kind in ("client", "peer"):
            # This process is out of descriptors: the kernel delivered the message without.
            self._event(Note(ERROR, f"a {kind} connection was lost: out of file descriptors"))
        elif kind == "client":
            sock = socket.socket(fileno=fds.pop(0))
            # Of a client that speaks TLS: its own connection, beside the plaintext of it.
            wire = socket.socket(fileno=fds.pop(0)) if fds else None
            agreed = terms.from_json(message["agreed"])
            leftover = base64.b64decode(message["leftover"])
            volume.take_client(Arrived(sock, wire, agreed, leftover, message["peer_name"]))
        elif kind == "peer":
            volume.take_peer(socket.socket(fileno=fds.pop(0)))
        elif kind == "stop":
            self._spawn(self._stop(volume))
        else:
            raise AssertionError(f"the supervisor sent an unknown message {kind!r}")

    def _open(self, settings: dict[str, Any]) -> None:
        self._volume = ServedVolume(
            self._loop,
            settings,
            on_change=self._push_soon,
            on_event=self._event,
            on_fatal=self._fatal,
        )
        self._volume.open()
        self._heartbeat()

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            die_of(error)

    async def _answer(self, volume: ServedVolume, message: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"kind": "reply", "id": message["id"]}
        try:
            reply |= {"ok": True, "result": await volume.request(message["verb"], message["args"])}
        except ReplError as error:
            reply |= {"ok": False, "error": error.to_json()}
        try:
            self._channel.send(reply)
        except MessageTooBig as error:
            failure = ReplError("The answer is too long to be passed on.", str(error))
            self._channel.send(
                {"kind": "reply", "id": message["id"], "ok": False, "error": failure.to_json()}
            )

    async def _stop(self, volume: ServedVolume) -> None:
        await volume.stop()
        self._channel.send({"kind": "status", "volume": volume.status()})
        await self._channel.drained()
        if not self.finished.done():
            self.finished.set_result(0)

    def _heartbeat(self) -> None:
        if self._volume is not None:
            self._volume.look()
        self._push()
        self._loop.call_later(HEARTBEAT_S, self._heartbeat)

    def _push_soon(self) -> None:
        if not self._push_scheduled:
            self._push_scheduled = True
            self._loop.call_soon(self._push)

    def _push(self) -> None:
        self._push_scheduled = False
        if self._volume is not None and self._channel.queued < 4:
            self._channel.send({"kind": "status", "volume": self._volume.status()})

    def _event(self, note: Note) -> None:
        event = {"time_s": time.time(), **note._asdict()}
        self._channel.send({"kind": "event", "event": event})

    def _fatal(self, reason: str) -> None:
        print(f"worker: stopping the volume: {reason}", file=sys.stderr, flush=True)
        os._exit(EXIT_METADATA)


def die_of(error: BaseException) -> None:
    """Our bug: end the process at once, loudly, before it can acknowledge anything."""
    traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()
    os._exit(EXIT_BUG)


def _loop_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    die_of(error if error is not None else RuntimeError(str(context.get("message"))))


def main(argv: list[str] | None = None) -> int:
    """Run until the supervisor says stop or is gone; return the exit status."""
    parser = argparse.ArgumentParser(prog="repl.node.worker")
    parser.add_argument("--channel-fd", type=int, required=True)
    arguments = parser.parse_args(argv)
    die_with_parent()
    # What the modules hold stays for ever, and is looked at no more.
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, 20, 20)
    # The supervisor decides when to stop; a signal to the whole process group is its alone.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    loop.set_exception_handler(_loop_exception)
    worker = Worker(loop, socket.socket(fileno=arguments.channel_fd))
    try:
        return loop.run_until_complete(worker.finished)
    finally:
        with contextlib.suppress(RuntimeError):
            loop.close()


if __name__ == "__main__":
    sys.exit(main())

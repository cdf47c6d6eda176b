"""A worker program that speaks the channel and serves nothing, for tests of the supervisor.

Its role lives in files of the state directory, so that a test sees what a restarted one resumes:
`NAME.primary` makes it serve, `NAME.pending` makes a resume pending. Every client and peer that it
is given gets a greeting (what came with the socket) and then its own bytes back.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from repl.errors import Refused
from repl.node.channel import Channel, Message, die_with_parent

HEARTBEAT_S = 0.1


class FakeWorker:
    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._channel = Channel(sock, self._loop, self._received, self._closed)
        self._settings: Message = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.done = asyncio.Event()
        self._silent = False

    def _path(self, kind: str) -> Path:
        return Path(self._settings["state_dir"]) / f"{self._settings['volume']['name']}.{kind}"

    def volume(self) -> Message:
        volume = self._settings["volume"]
        primary, pending = self._path("primary").exists(), self._path("pending").exists()
        serving = primary and not pending
        peer = self._settings["peer"]
        return {
            "name": volume["name"],
            "size_bytes": volume["size_bytes"],
            "role": "primary" if serving else "secondary",
            "disk_state": "up-to-date",
            "generation": {"counter": 1, "id": "0001"},
            "serving": serving,
            "clients": len(self._tasks),
            "peers": [
                {
                    "name": peer["name"],
                    "connection_state": "connected",
                    "disk_state": "up-to-date",
                    "replication_state": "established",
                    "role": "primary",
                    "out_of_sync_bytes": 4096,
                    "resync": None,
                }
            ]
            if peer
            else [],
            "export": {
                "serving": serving,
                "pending": pending,
                "reason": "" if serving else f"{volume['name']} is secondary",
                "primary": peer["name"] if peer else None,
                "read_only": False,
            },
            "problem": None,
            "worker_pid": os.getpid(),
            "why": "",
            "next": "",
        }

    async def heartbeat(self) -> None:
        while not self.done.is_set():
            if self._settings and not self._silent:
                self._push()
            await asyncio.sleep(HEARTBEAT_S)

    def _push(self) -> None:
        self._channel.send({"kind": "status", "volume": self.volume()})

    def _closed(self, _reason: str) -> None:
        self.done.set()

    def _received(self, message: Message, fds: list[int]) -> None:
        match message["kind"]:
            case "settings":
                self._settings = message
                self._push()
            case "request":
                self._request(message["id"], message["verb"], message["args"])
            case "client":
                leftover = base64.b64decode(message["leftover"])
                self._serve(
                    fds.pop(), message["agreed"]["export"]["name"].encode() + b"|" + leftover
                )
            case "peer":
                self._serve(fds.pop(), message["from"].encode() + b"|")
            case "stop":
                self._path("stopped").touch()
                self.done.set()

    def _request(self, number: int, verb: str, args: Message) -> None:
        result: Any = {}
        match verb:
            case "status":
                result = self.volume()
            case "promote" if args.get("lose_data"):
                refusal = Refused(
                    "r0 may not be promoted", "because", "replctl wait", code="ALREADY"
                )
                self._channel.send(
                    {"kind": "reply", "id": number, "ok": False, "error": refusal.to_json()}
                )
                return
            case "promote":
                self._path("primary").touch()
            case "demote":
                self._path("primary").unlink(missing_ok=True)
            case "echo":
                result = args
            case "settings":
                result = self._settings
            case "never":
                return
            case "silence":
                self._silent = True
            case "exit":
                sys.exit(3)
            case "event":
                self._channel.send({"kind": "event", "event": args})
            case "resync-pause":
                result = {"volume": {"resync_order": {"paused": True, "by": args["by"]}}}
            case "metadata-dump":
                result = {"text": "superblock"}
            case _:
                result = {"verb": verb, "args": args}
        self._channel.send({"kind": "reply", "id": number, "ok": True, "result": result})
        if not self._silent:
            self._push()

    def _serve(self, fd: int, greeting: bytes) -> None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        task = asyncio.create_task(self._echo(sock, greeting))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _echo(self, sock: socket.socket, greeting: bytes) -> None:
        with sock:
            await self._loop.sock_sendall(sock, greeting)
            while data := await self._loop.sock_recv(sock, 4096):
                await self._loop.sock_sendall(sock, data)


async def serve(channel_fd: int) -> None:
    worker = FakeWorker(socket.socket(fileno=channel_fd))
    heartbeat = asyncio.create_task(worker.heartbeat())
    await worker.done.wait()
    heartbeat.cancel()


if __name__ == "__main__":
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel-fd", type=int, required=True)
    asyncio.run(serve(parser.parse_args().channel_fd))

"""`replctl` and the daemon's real control server understand each other, verb by verb."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from repl.control.server import ControlServer
from repl.errors import NoSuchThing, Refused
from tests.cli import recorded
from tests.cli.conftest import Operator


class RecordingBackend:
    """One volume, r0; it records what it is told and refuses to disconnect."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, Any]]] = []

    async def status(self) -> dict[str, Any]:
        return self.last_status()

    def last_status(self) -> dict[str, Any]:
        return recorded.status(recorded.cut_off())

    async def volume(self, name: str) -> dict[str, Any]:
        if name != "r0":
            raise NoSuchThing(f"There is no volume {name}.", "it has r0", "replctl status")
        return recorded.cut_off()

    async def request(
        self, name: str, verb: str, args: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        await self.volume(name)
        self.requests.append((name, verb, args))
        if verb == "disconnect":
            raise Refused("r0 stays connected.", "a test", "nothing", code="VOLUME_BUSY")
        if verb == "splitbrain":
            return recorded.split_brain_shown()
        return {"text": "generation 3"} if verb == "metadata-dump" else {}


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[RecordingBackend]:
    recording = RecordingBackend()
    loop = asyncio.new_event_loop()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "control.sock"))
    listener.listen()
    listener.setblocking(False)
    server = ControlServer(listener, recording)
    loop.run_until_complete(server.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield recording
    asyncio.run_coroutine_threadsafe(server.close(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def replctl(
    backend: RecordingBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Operator:
    return Operator(str(tmp_path / "control.sock"), capsys)


@pytest.mark.parametrize(
    ("arguments", "request_seen"),
    [
        (
            ["promote", "r0"],
            ("promote", {"peer_dead": None, "lose_data": False, "accept_half_copied": False}),
        ),
        (
            ["promote", "r0", "--peer-dead", "beta", "--lose-data", "r0", "--accept-half-copied"],
            ("promote", {"peer_dead": "beta", "lose_data": True, "accept_half_copied": True}),
        ),
        (["demote", "r0", "--drop-clients"], ("demote", {"drop_clients": True})),
        (["connect", "r0"], ("connect", {"peer": None})),
        (["connect", "r0", "beta"], ("connect", {"peer": "beta"})),
        (["volume", "adopt", "r0"], ("adopt", {"discard": False})),
        (
            ["volume", "adopt", "r0", "--discard", "--confirm", "r0"],
            ("adopt", {"discard": True}),
        ),
        (["metadata", "dump", "r0"], ("metadata-dump", {})),
        (["splitbrain", "show", "r0"], ("splitbrain", {})),
        (["continue", "r0"], ("continue", {})),
        (["resync", "r0", "pause"], ("resync-pause", {})),
        (["resync", "r0", "resume"], ("resync-resume", {})),
        (["resync", "r0", "limit", "5MB/s"], ("resync-limit", {"rate_bytes_per_s": 5_000_000})),
        (["resync", "r0", "limit", "none"], ("resync-limit", {"rate_bytes_per_s": 0})),
        (["resync", "r0", "--full", "--from", "beta"], ("resync-full", {"source": "beta"})),
    ],
)
def test_every_verb_arrives_as_it_was_meant(
    backend: RecordingBackend,
    replctl: Operator,
    arguments: list[str],
    request_seen: tuple[str, dict[str, Any]],
) -> None:
    result = replctl(*arguments)
    assert result.exit_status == 0, result.err
    verb, meant = request_seen
    # Who gives an order is added by the server, from the socket; a question has no giver.
    by = {} if verb in ("metadata-dump", "splitbrain") else {"by": f"uid {os.getuid()}"}
    assert backend.requests == [("r0", verb, meant | by)]


def test_a_choice_looks_first_and_then_orders(backend: RecordingBackend, replctl: Operator) -> None:
    result = replctl("splitbrain", "resolve", "r0", "--keep", "beta", "--confirm", "r0")
    assert result.exit_status == 0, result.err
    assert backend.requests == [
        ("r0", "splitbrain", {}),
        ("r0", "splitbrain-resolve", {"keep": "beta", "by": f"uid {os.getuid()}"}),
    ]


def test_questions_are_answered(replctl: Operator) -> None:
    assert json.loads(replctl("--json", "status").out) == recorded.status(recorded.cut_off())
    assert replctl("status", "--check").exit_status == 10
    assert "repld 0." in replctl("version").out
    assert replctl("wait", "r0", "--for", "primary", "--timeout", "0").exit_status == 6


def test_errors_keep_their_words_and_status(replctl: Operator) -> None:
    refused = replctl("disconnect", "r0")
    assert refused.exit_status == 5
    assert refused.err == "r0 stays connected.  [VOLUME_BUSY]\nWhy   a test\nNext  nothing\n"
    for arguments in (["promote", "r9"], ["metadata", "dump", "r9"], ["status", "r9"]):
        assert replctl(*arguments).exit_status == 4

"""The control API over its Unix socket: routes, errors in JSON, timeouts, and bugs that stay small.

The backend is a recording one; what a real daemon answers is tests/node's business.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

import repl
from repl import build
from repl.control.schema import BODY_BYTES_MAX, QUESTIONS, VERBS, JsonObject
from repl.control.server import ControlServer
from repl.errors import NoSuchThing, Refused, TimedOut
from repl.node.listeners import listen_unix

DEADLINE_S = 30.0
VOLUME = {"name": "r0", "role": "primary"}


class RecordingBackend:
    """Answers volume r0 and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, JsonObject, float]] = []
        self.failure: Exception | None = None

    async def status(self) -> JsonObject:
        return {
            "node": "alpha",
            "version": repl.__version__,
            "build": build.kind(),
            "volumes": [VOLUME],
        }

    def last_status(self) -> JsonObject:
        raise NotImplementedError

    async def volume(self, name: str) -> JsonObject:
        if name != "r0":
            raise NoSuchThing(
                f"there is no volume {name}", "it is not configured", "replctl status"
            )
        return VOLUME

    async def request(self, name: str, verb: str, args: JsonObject, timeout_s: float) -> JsonObject:
        await self.volume(name)
        self.asked.append((name, verb, args, timeout_s))
        if self.failure is not None:
            raise self.failure
        return {"did": verb}


class Caller:
    """Sends requests; returns status and body."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, path: str) -> tuple[int, Any]:
        async with self._session.get(f"http://repld{path}") as answer:
            return answer.status, await answer.json()

    async def post(self, path: str, body: bytes = b"") -> tuple[int, Any]:
        async with self._session.post(f"http://repld{path}", data=body) as answer:
            return answer.status, await answer.json()


@asynccontextmanager
async def served(folder: Path, backend: RecordingBackend) -> AsyncIterator[Caller]:
    listener = listen_unix(str(folder / "control.sock"), 0o600, "[node] control")
    server = ControlServer(listener.sock, backend)
    await server.start()
    connector = aiohttp.UnixConnector(str(folder / "control.sock"))
    try:
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Caller(session)
    finally:
        await server.close()
        listener.close()
    assert not (folder / "control.sock").exists()


def run(scenario: Callable[[], Awaitable[None]], loop: Any = uvloop.new_event_loop) -> None:
    async def within_deadline() -> None:
        async with asyncio.timeout(DEADLINE_S):
            await scenario()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(within_deadline())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_status_version_and_volume_are_served(tmp_path: Path, loop: Any) -> None:
    async def scenario() -> None:
        async with served(tmp_path, RecordingBackend()) as caller:
            assert await caller.get("/v1/version") == (
                200,
                {"version": repl.__version__, "build": build.kind()},
            )
            code, status = await caller.get("/v1/status")
            assert (code, status["volumes"]) == (200, [VOLUME])
            assert await caller.get("/v1/volumes/r0") == (200, VOLUME)

    run(scenario, loop)


def test_every_verb_is_forwarded_with_complete_arguments_and_its_timeout(tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = RecordingBackend()
        async with served(tmp_path, backend) as caller:
            for name, verb in VERBS.items():
                code, body = await caller.post(f"/v1/volumes/r0/{name}", b"{}")
                assert (code, body) == (200, {"did": verb.request})
                assert backend.asked.pop() == (
                    "r0",
                    verb.request,
                    {key: expected.default for key, expected in verb.fields.items()}
                    | {"by": f"uid {os.getuid()}"},
                    verb.timeout_s,
                )
            code, _ = await caller.post("/v1/volumes/r0/demote", b'{"drop_clients": true}')
            assert backend.asked.pop()[2] == {"drop_clients": True, "by": f"uid {os.getuid()}"}
            for path, question in QUESTIONS.items():
                assert (await caller.get(f"/v1/volumes/r0/{path}"))[0] == 200
                assert backend.asked.pop() == ("r0", question.request, {}, question.timeout_s)
            assert (await caller.get("/v1/volumes/r0/secrets"))[0] == 405

    run(scenario)


def test_errors_of_the_backend_keep_their_code_and_get_their_status(tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = RecordingBackend()
        async with served(tmp_path, backend) as caller:
            for failure, expected in (
                (Refused("no", "because", "try", code="DEMOTE_CLIENTS"), 409),
                (TimedOut("late"), 504),
                (TimedOut("gone", code="WORKER_SILENT"), 503),
            ):
                backend.failure = failure
                code, body = await caller.post("/v1/volumes/r0/demote")
                assert (code, body) == (expected, {"error": failure.to_json()})
            code, body = await caller.get("/v1/volumes/r9")
            assert (code, body["error"]["code"]) == (404, "NO_SUCH_VOLUME")

    run(scenario)


def test_requests_of_another_form_are_usage_errors_and_reach_no_volume(tmp_path: Path) -> None:
    async def scenario() -> None:
        backend = RecordingBackend()
        async with served(tmp_path, backend) as caller:
            for path, body, expected in (
                ("/v1/volumes/r0/promote", b'{"force": true}', 400),
                ("/v1/volumes/r0/promote", b"not json", 400),
                ("/v1/volumes/r0/destroy", b"{}", 400),
                ("/v1/status", b"{}", 405),
                ("/v2/status", b"{}", 404),
                ("/v1/volumes/r0/promote", b" " * (BODY_BYTES_MAX + 1), 413),
            ):
                code, answer = await caller.post(path, body)
                assert (code, answer["error"]["code"]) == (expected, "USAGE"), path
                assert answer["error"]["next"]
            assert backend.asked == []

    run(scenario)


def test_bug_ends_one_request_and_the_next_is_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        backend = RecordingBackend()
        backend.failure = ZeroDivisionError("oops")
        async with served(tmp_path, backend) as caller:
            code, body = await caller.post("/v1/volumes/r0/promote")
            assert (code, body["error"]["code"]) == (500, "UNEXPECTED")
            assert "oops" in body["error"]["what"]
            assert (await caller.get("/v1/status"))[0] == 200
        assert "ZeroDivisionError" in caplog.text

    run(scenario)


def test_close_does_not_wait_for_a_caller_that_keeps_its_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        listener = listen_unix(str(tmp_path / "control.sock"), 0o600, "[node] control")
        server = ControlServer(listener.sock, RecordingBackend())
        await server.start()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "control.sock"))
        writer.write(b"GET /v1/version HTTP/1.1\r\nHost: repld\r\n\r\n")
        assert b"200" in await reader.readline()
        await server.close()
        listener.close()
        assert json.loads((await reader.read()).rpartition(b"\r\n\r\n")[2])["version"]
        writer.close()

    run(scenario)

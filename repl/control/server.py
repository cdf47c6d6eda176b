"""The control API: HTTP with JSON on a Unix socket. Routes only.

Owns how a request reaches the backend and how its answer or error is written. It must never
decide anything about a volume, and never wait without a bound: every verb has its timeout
(`schema.VERBS`). Who may connect is decided by the socket's permission bits alone.

    GET  /v1/version
    GET  /v1/status
    GET  /v1/volumes/NAME
    GET  /v1/volumes/NAME/{metadata|splitbrain}
    GET  /v1/events[?after=N][&volume=NAME][&follow=1]                  NDJSON; see events.py
    POST /v1/volumes/NAME/VERB      VERB: one of schema.VERBS; body: a JSON object
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

import repl
from repl import build
from repl.control.events import EventSource, EventStreams
from repl.control.schema import (
    BODY_BYTES_MAX,
    CALLER_KEY,
    QUESTIONS,
    VERBS,
    Backend,
    error_object,
    http_status,
    parse_body,
)
from repl.errors import ReplError, UsageError

#: `struct ucred` of unix(7).
_CREDENTIALS: Final = struct.Struct("=iII")
#: How long answers under way may take once the server closes.
CLOSE_TIMEOUT_S: Final = 2.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_log = logging.getLogger("repl.control")


class ControlServer:
    """Serves `backend` on a listening Unix socket, from `start` to `close`."""

    def __init__(
        self, sock: socket.socket, backend: Backend, events: EventSource | None = None
    ) -> None:
        self._sock = sock
        self._backend = backend
        self.streams = EventStreams(events) if events is not None else None
        self._server: asyncio.AbstractServer | None = None
        self._runner = web.AppRunner(
            self._application(), access_log=None, shutdown_timeout=CLOSE_TIMEOUT_S
        )

    async def start(self) -> None:
        await self._runner.setup()
        assert self._runner.server is not None, "a runner that is set up has a server"
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._runner.server, sock=self._sock)

    async def close(self) -> None:
        """Answer what is under way, for `CLOSE_TIMEOUT_S` at most, and close. Idempotent."""
        if self._server is not None:
            self._server.close()
        if self.streams is not None:
            self.streams.close()
        await self._runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(middlewares=[_errors_as_json], client_max_size=BODY_BYTES_MAX)
        application.add_routes(
            [
                web.get("/v1/version", self._version),
                web.get("/v1/status", self._status),
                web.get("/v1/volumes/{name}", self._volume),
                web.get(f"/v1/volumes/{{name}}/{{question:{'|'.join(QUESTIONS)}}}", self._question),
                web.post("/v1/volumes/{name}/{verb}", self._verb),
            ]
        )
        if self.streams is not None:
            application.add_routes([web.get("/v1/events", self._events)])
        return application

    async def _events(self, request: web.Request) -> web.StreamResponse:
        assert self.streams is not None
        volume = request.query.get("volume")
        if volume:
            # A volume that does not exist has no events, and never will: say so.
            await self._backend.volume(volume)
        return await self.streams.serve(request)

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response({"version": repl.__version__, "build": build.kind()})

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(await self._backend.status())

    async def _volume(self, request: web.Request) -> web.Response:
        return web.json_response(await self._backend.volume(request.match_info["name"]))

    async def _question(self, request: web.Request) -> web.Response:
        name, verb = request.match_info["name"], QUESTIONS[request.match_info["question"]]
        return web.json_response(
            await self._backend.request(name, verb.request, {}, verb.timeout_s)
        )

    async def _verb(self, request: web.Request) -> web.Response:
        name, verb_name = request.match_info["name"], request.match_info["verb"]
        verb = VERBS.get(verb_name)
        if verb is None:
            raise UsageError(
                f"there is no verb {verb_name!r}",
                f"a volume can be told to: {', '.join(VERBS)}",
                "replctl --help",
            )
        args = parse_body(verb_name, await request.read()) | {CALLER_KEY: caller_of(request)}
        return web.json_response(
            await self._backend.request(name, verb.request, args, verb.timeout_s)
        )


def caller_of(request: web.Request) -> str:
    """Return who is at the other end, as the kernel says (SO_PEERCRED): "uid 0"; "" if unknown."""
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.family != socket.AF_UNIX:
        return ""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(data)
    return f"uid {uid}"


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ReplError as error:
        return _error_response(error, http_status(error))
    except web.HTTPException as refusal:
        return _error_response(_of_http(request, refusal), refusal.status)
    except Exception as bug:  # A barrier that ends one request only:
        # its caller is told, the log has the trace, the volumes and other requests go on.
        _log.exception("A control request failed: %s %s", request.method, request.path)
        return _error_response(
            ReplError(
                f"{request.method} {request.path} failed: {type(bug).__name__}: {bug}",
                "this is a bug; the daemon's log has the details",
                "journalctl -u repld",
            ),
            500,
        )


def _of_http(request: web.Request, refusal: web.HTTPException) -> ReplError:
    return UsageError(
        f"{request.method} {request.path}: {refusal.reason}",
        "the control API has no such path, or takes the request in another form",
        "replctl --help",
    )


def _error_response(error: ReplError, status: int) -> web.Response:
    return web.json_response(error_object(error), status=status)

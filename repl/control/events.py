"""`GET /v1/events`: the node's events as NDJSON, one object a line, and on request as they come.

    ?after=N      only events with a higher number; without it, everything that is kept
    ?volume=NAME  only that volume's
    ?follow=1     stay, and send each event as it comes; an empty line now and then shows life

Owns how events reach a reader. It must never hold an event back from others or the daemon for a
reader that is slow: a follower that the ring has passed gets an `EVENTS_LOST` line in place of what
it missed, and its stream ends; it may come back with `after`. What events mean is
`repl/events.py`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, Final, NamedTuple, Protocol

from aiohttp import web

from repl.errors import Refused, UsageError
from repl.events import EVENTS

JsonObject = dict[str, Any]

#: Followers at one time; more are refused.
FOLLOWERS_MAX: Final = 32
#: Events written before the reader's socket is looked at again.
BATCH_EVENTS: Final = 128
#: A follower without events gets an empty line this often, and is noticed when it has gone.
ALIVE_S: Final = 5.0
#: A follower that reads nothing for this long is cut off.
STUCK_S: Final = 60.0
NUMBER_MAX: Final = (1 << 63) - 1


class Batch(NamedTuple):
    """Events, the number up to which the ring was looked at, and whether some are gone."""

    events: list[JsonObject]
    cursor: int
    lost: bool


class EventSource(Protocol):
    """Where the events are kept."""

    @property
    def last_number(self) -> int:
        """The newest event's number, 0 before the first."""

    @property
    def dropped_number(self) -> int:
        """The highest number that is not kept any more."""

    def after(self, number: int, volume: str | None, limit: int) -> Batch:
        """Return at most `limit` events with higher numbers."""

    async def wait(self, number: int, timeout_s: float) -> None:
        """Return when there is an event after `number`, or after `timeout_s`."""


class EventStreams:
    """All readers of one source."""

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._closing = asyncio.Event()
        self.followers = 0
        #: Followers whose stream ended because they were too slow.
        self.dropped = 0

    def close(self) -> None:
        """End the streams of all followers."""
        self._closing.set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        query = request.query
        after, volume = _number(query.get("after")), query.get("volume") or None
        follow = query.get("follow", "0") not in ("", "0", "false")
        if follow and self.followers >= FOLLOWERS_MAX:
            raise Refused(
                f"{FOLLOWERS_MAX} readers follow the events already.",
                "each of them costs the daemon memory",
                "ask without --follow, or end one of them",
                code="EVENTS_FOLLOWERS",
            )
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        response.enable_chunked_encoding()
        self.followers += follow
        try:
            await response.prepare(request)
            # A reader that went away in the middle is no error.
            with contextlib.suppress(ConnectionError):
                await self._send(request, response, after, volume, follow)
                await response.write_eof()
        finally:
            self.followers -= follow
        return response

    async def _send(
        self,
        request: web.Request,
        response: web.StreamResponse,
        after: int | None,
        volume: str | None,
        follow: bool,
    ) -> None:
        source = self._source
        cursor = source.dropped_number if after is None else after
        begun = False
        while not self._closing.is_set():
            batch = source.after(cursor, volume, BATCH_EVENTS)
            if batch.lost:
                await self._write(request, response, [_gap(cursor, source)])
                if begun:
                    self.dropped += 1
                    return
                cursor, begun = source.dropped_number, True
                continue
            begun = True
            if batch.events:
                await self._write(request, response, batch.events)
            if batch.cursor != cursor:
                cursor = batch.cursor
            elif not follow:
                return
            else:
                await self._pause(request, response, cursor)

    async def _pause(self, request: web.Request, response: web.StreamResponse, cursor: int) -> None:
        """Wait for the next event, the end of the server, or the next sign of life."""
        waiting = asyncio.ensure_future(self._source.wait(cursor, ALIVE_S))
        closing = asyncio.ensure_future(self._closing.wait())
        try:
            await asyncio.wait((waiting, closing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            closing.cancel()
        if self._source.last_number == cursor and not self._closing.is_set():
            await self._write(request, response, [])

    async def _write(
        self, request: web.Request, response: web.StreamResponse, events: list[JsonObject]
    ) -> None:
        text = "".join(json.dumps(event) + "\n" for event in events) or "\n"
        try:
            async with asyncio.timeout(STUCK_S):
                await response.write(text.encode())
        except TimeoutError as stuck:
            self.dropped += 1
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionError("the follower reads nothing") from stuck


def _gap(cursor: int, source: EventSource) -> JsonObject:
    """Return the line that stands for events which this reader will not get."""
    severity, _ = EVENTS["EVENTS_LOST"]
    beyond = cursor > source.last_number
    text = (
        f"number {cursor} was never given here: the numbers began anew"
        if beyond
        else f"events after number {cursor} up to {source.dropped_number} are not kept any more"
    )
    return {
        "number": source.dropped_number,
        "time_s": None,
        "volume": "",
        "code": "EVENTS_LOST",
        "severity": severity,
        "text": text,
        "fields": {"after": cursor, "up_to": source.dropped_number},
    }


def _number(text: str | None) -> int | None:
    if text is None or text == "":
        return None
    if not (text.isascii() and text.isdigit() and int(text) <= NUMBER_MAX):
        raise UsageError(
            f"after={text!r} is no event's number.",
            "a number is written in digits",
            "replctl events",
        )
    return int(text)

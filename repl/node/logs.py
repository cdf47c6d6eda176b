"""The daemon's log: structlog over the standard library's logging, to stderr.

Owns the format (text for people and the journal, or one JSON object a line) and the limit on
repeated messages. One sentence an event; facts that a machine may want are fields beside it.
It must never fail the caller: a reader of stderr that went away costs the lines, nothing else.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Final, Literal, cast

import structlog

LogFormat = Literal["text", "json"]

#: The same message is written at most once in this time; the next line says how many were not.
REPEAT_INTERVAL_S: Final = 5.0
#: Keys remembered by one limiter; whoever makes up more of them only loses counts of old ones.
REPEAT_KEYS_MAX: Final = 1024


def configure(log_format: LogFormat) -> None:
    """Send everything, that of the libraries too, to stderr in `log_format`."""
    renderer: Any
    if log_format == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if log_format == "json":
        shared.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    # A stderr that is gone (a restarted journal) would otherwise print tracebacks to itself.
    logging.raiseExceptions = False
    logging.getLogger("nbdserver").addFilter(_RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def logger(part: str) -> structlog.stdlib.BoundLogger:
    """Return a logger whose lines carry `part`, the concept that speaks."""
    return cast(structlog.stdlib.BoundLogger, structlog.get_logger("repl").bind(part=part))


def log_event(log: structlog.stdlib.BoundLogger, said: dict[str, Any]) -> None:
    """Write an event, or a line without a code, at its level and with its fields."""
    write = {"warning": log.warning, "error": log.error}.get(said.get("level", ""), log.info)
    facts = dict(said.get("fields") or {})
    facts |= {key: said[key] for key in ("code", "time_s") if said.get(key)}
    write(str(said.get("text", "")), **facts)


class RepeatLimit:
    """Decides whether a message that may come a thousand times a second is written now."""

    def __init__(
        self,
        interval_s: float = REPEAT_INTERVAL_S,
        keys_max: int = REPEAT_KEYS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval_s = interval_s
        self._keys_max = keys_max
        self._clock = clock
        #: key -> (time of the last line, how many were held back since); oldest line first.
        self._seen: dict[str, tuple[float, int]] = {}

    def admit(self, key: str) -> int | None:
        """Return how many messages of `key` were held back before this one; None holds it back."""
        now = self._clock()
        last = self._seen.get(key)
        if last is not None and now - last[0] < self._interval_s:
            self._seen[key] = (last[0], last[1] + 1)
            return None
        self._seen.pop(key, None)
        self._seen[key] = (now, 0)
        if len(self._seen) > self._keys_max:
            del self._seen[next(iter(self._seen))]
        return last[1] if last is not None else 0

    def write(self, log: Callable[..., Any], key: str, text: str, **fields: Any) -> None:
        """Write `text` through `log` (a bound method such as `logger.warning`) if it is time."""
        held_back = self.admit(key)
        if held_back is None:
            return
        if held_back:
            fields["repeated"] = held_back
        log(text, **fields)


class _RepeatFilter(logging.Filter):
    """Limits repeated lines of a library, whose first argument is by custom who is concerned."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = RepeatLimit()

    def filter(self, record: logging.LogRecord) -> bool:
        rest = record.args[1:] if isinstance(record.args, tuple) else record.args
        return self._limit.admit(f"{record.msg} {rest}") is not None

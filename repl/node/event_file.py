"""Events on disk, so that those of yesterday, or from before a restart, can still be asked for.

`STATE_DIR/events.ndjson` holds one event a line, `events.1.ndjson` the ones before it; together
they are bounded. Appending is a matter of a thread: a disk that hangs delays nobody, and costs only
events. Nothing is synced: a loss of power may take the newest lines, and a torn last line is passed
over. No decision rests on this file.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from repl.events import EVENTS

FILE_NAME: Final = "events.ndjson"
OLDER_NAME: Final = "events.1.ndjson"
#: A file of this size becomes the older one.
FILE_BYTES_MAX: Final = 1 << 20
#: Events that wait for the disk; more are not stored.
WAITING_MAX: Final = 1024
#: After an unclean stop the newest numbers are unknown; none is ever given twice.
SKIPPED_NUMBERS: Final = 1000
#: How long a stop waits for a disk that hangs.
CLOSE_TIMEOUT_S: Final = 2.0

Event = dict[str, Any]


class EventFile:
    """The events of one state directory. `keep` is called on the loop's thread."""

    def __init__(self, state_dir: str, *, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self._path = Path(state_dir) / FILE_NAME
        self._older = Path(state_dir) / OLDER_NAME
        self._file_bytes_max = file_bytes_max
        self._waiting: queue.Queue[Event | None] = queue.Queue(WAITING_MAX)
        #: Events that could not be stored: the disk hangs, is full, or failed.
        self.lost = 0
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def load(self, events_max: int) -> tuple[list[Event], int]:
        """Return the newest events that are stored, and the number to go on from."""
        events = [*_read(self._older), *_read(self._path)][-events_max:]
        if not events:
            return [], 0
        last: int = events[-1]["number"]
        clean = events[-1]["code"] == "DAEMON_STOPPED"
        return events, last if clean else last + SKIPPED_NUMBERS

    def start(self) -> None:
        """Begin to store what is kept."""
        self._thread.start()

    def keep(self, event: Event) -> None:
        """Store an event, some time soon, if that is possible."""
        try:
            self._waiting.put_nowait(event)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Store what waits, for `CLOSE_TIMEOUT_S` at most."""
        if not self._thread.is_alive():
            return
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
            self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while (event := self._waiting.get()) is not None:
            batch = [event]
            with contextlib.suppress(queue.Empty):
                while (more := self._waiting.get_nowait()) is not None:
                    batch.append(more)
                self._write(batch)
                return
            self._write(batch)

    def _write(self, batch: list[Event]) -> None:
        data = "".join(json.dumps(event) + "\n" for event in batch).encode()
        try:
            with self._path.open("ab") as file:
                if file.tell() and not _ends_a_line(self._path):
                    data = b"\n" + data
                file.write(data)
                full = file.tell() >= self._file_bytes_max
            if full:
                os.replace(self._path, self._older)
        except OSError:
            # The log has them all the same; a full disk is shown by what needs it.
            self.lost += len(batch)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _read(path: Path) -> Iterator[Event]:
    """Yield the events of a file that are whole and known; numbers must ascend."""
    try:
        text = path.read_bytes()[-2 * FILE_BYTES_MAX :].decode("utf-8", "replace")
    except OSError:
        return
    number = 0
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if _is_event(event) and event["number"] > number:
                number = event["number"]
                yield event


def _is_event(event: Any) -> bool:
    return (
        isinstance(event, dict)
        and type(event.get("number")) is int
        and 0 < event["number"] < 1 << 62
        and event.get("code") in EVENTS
        and all(isinstance(event.get(key), str) for key in ("volume", "severity", "text"))
        and isinstance(event.get("fields"), dict)
        and isinstance(event.get("time_s"), int | float)
    )

"""`replctl wait VOL --for STATE`: return when it is so, or say why it is not.

The daemon is asked again and again. One that stops answering is given some time, because a restart
of the daemon is no reason to give up; one that does not answer at first may be just starting and is
given a moment.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from typing import Any

import click

from repl import units
from repl.cli import health, names, progress
from repl.cli.client import READ_TIMEOUT_S
from repl.cli.draw import is_unicode
from repl.cli.output import Session, one_line, pass_session, write
from repl.cli.snapshot import Volume, read_volume
from repl.errors import DaemonUnreachable, NoSuchThing, TimedOut

POLL_INTERVAL_S = 0.25
PROGRESS_INTERVAL_S = 3.0
"""Between two plain progress lines, where a line cannot be redrawn."""
UNREACHABLE_GRACE_S = 15.0
STARTING_GRACE_S = 3.0
REQUEST_TIMEOUT_MIN_S = 0.5


class Duration(click.ParamType[float]):
    """Seconds, or a text like "1m30s"."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the seconds; a text that is no duration is a usage error."""
        try:
            return units.parse_duration(str(value))
        except units.UnitInvalid as refusal:
            self.fail(str(refusal), param, ctx)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether the awaited state is there; if not, why and what would bring it."""

    reached: bool
    why: str = ""
    next_step: str = ""


@click.command()
@click.argument("name", metavar="VOL", type=names.VOLUME)
@click.option(
    "--for",
    "state",
    type=click.Choice(["connected", "in-sync", "promotable", "primary"]),
    required=True,
    help="The state to wait for.",
)
@click.option("--timeout", "timeout_s", metavar="S", type=Duration(), help="Give up after S.")
@click.option("--progress", "plain", is_flag=True, help="Print progress lines off a terminal too.")
@pass_session
def wait(session: Session, name: str, state: str, timeout_s: float | None, plain: bool) -> None:
    """Wait until VOL is in a state.

    Exit status 6 if that takes longer than --timeout.
    """
    started_s = time.monotonic()
    with _ProgressLine(plain) as line:
        volume = _wait(session, name, state, timeout_s, line)
    waited_s = round(time.monotonic() - started_s, 3)
    if session.as_json:
        session.object({"volume": volume.name, "reached": state, "waited_s": waited_s})
    else:
        session.say(f"{name} is {state}.")


def _wait(
    session: Session, name: str, state: str, timeout_s: float | None, line: _ProgressLine
) -> Volume:
    now_s = last_contact_s = time.monotonic()
    deadline_s = None if timeout_s is None else now_s + timeout_s
    answer: Answer | None = None
    while True:
        left_s = READ_TIMEOUT_S if deadline_s is None else deadline_s - now_s
        request_timeout_s = max(min(left_s, READ_TIMEOUT_S), REQUEST_TIMEOUT_MIN_S)
        try:
            volume = read_volume(session.client.volume(name, request_timeout_s))
        except DaemonUnreachable as failure:
            grace_s = STARTING_GRACE_S if answer is None else UNREACHABLE_GRACE_S
            past_deadline = deadline_s is not None and time.monotonic() >= deadline_s
            if past_deadline or time.monotonic() - last_contact_s > grace_s:
                raise
            unreachable = Answer(False, failure.what, failure.next_step)
            answer = answer and unreachable
        else:
            last_contact_s = time.monotonic()
            answer = judge(volume, state)
            if answer.reached:
                return volume
            line.show(volume)
        now_s = time.monotonic()
        if deadline_s is not None and now_s >= deadline_s:
            raise TimedOut(
                f"{name} is not {state} after {units.format_duration(timeout_s or 0.0)}.",
                answer.why if answer else "",
                (answer.next_step if answer else "") or f"replctl status {name}",
            )
        time.sleep(
            POLL_INTERVAL_S if deadline_s is None else min(POLL_INTERVAL_S, deadline_s - now_s)
        )


def judge(volume: Volume, state: str) -> Answer:
    """Return whether `volume` is in `state`. A state that can never come raises NoSuchThing."""
    finding = health.judge_volume(volume)
    why, next_step = volume.why or f"{volume.name}: {finding.sentence}", volume.next_step
    if volume.problem is not None:
        return Answer(False, volume.problem.what, volume.problem.next_step)
    promotable = volume.promotable
    if state == "primary":
        if promotable is not None and not volume.resume_pending:
            next_step = promotable.next_step or f"replctl promote {volume.name}"
        return Answer(volume.role == "primary", f"its role is {volume.role}", next_step)
    if state == "promotable":
        if promotable is None:
            return Answer(False, "the daemon does not say whether it can be promoted", next_step)
        return Answer(promotable.ok, promotable.reason, promotable.next_step)
    if not volume.peers:
        raise NoSuchThing(
            f"{volume.name} has no peer, so it can never be {state}.",
            "its configuration names no peer",
            f"replctl status {volume.name}",
            code="NO_SUCH_PEER",
        )
    if state == "connected":
        return Answer(
            all(peer.connection_state == "connected" for peer in volume.peers), why, next_step
        )
    return Answer(volume.is_in_sync, why, next_step)


class _ProgressLine:
    """The progress of a running resync on stderr: one redrawn line, or plain lines now and then."""

    def __init__(self, plain: bool) -> None:
        self._stream = sys.stderr
        self._is_terminal = self._stream.isatty()
        self._plain = plain
        self._shown_cells = 0
        self._next_plain_s = 0.0

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._shown_cells:
            self._redraw("")
            self._stream.write("\r")
            self._stream.flush()

    def show(self, volume: Volume) -> None:
        """Show the first resync of `volume`, if there is one and somebody reads it."""
        running = [(peer, peer.resync) for peer in volume.peers if peer.resync is not None]
        if not running or not (self._is_terminal or self._plain):
            return
        peer, resync = running[0]
        words = one_line(progress.line(peer, resync, is_unicode(self._stream)))
        if self._is_terminal:
            self._redraw(f"{volume.name}  {words}")
        elif time.monotonic() >= self._next_plain_s:
            self._next_plain_s = time.monotonic() + PROGRESS_INTERVAL_S
            write(self._stream, f"{volume.name}  {one_line(progress.describe(peer, resync))}")
            self._stream.flush()

    def _redraw(self, text: str) -> None:
        cells = text[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + cells + " " * (self._shown_cells - len(cells)))
        self._stream.flush()
        self._shown_cells = len(cells)

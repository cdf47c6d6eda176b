"""`replctl events [VOL] [--follow]`: what happened, and what happens.

A follower stays through restarts of the daemon: it asks again after the last number that it saw,
and a gap is shown as a gap.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from typing import Any

import click

from repl.cli import names
from repl.cli.output import Session, one_line, pass_session, write_data
from repl.errors import DaemonUnreachable

#: Shown without --after and --last.
LAST_SHOWN = 100
LAST_SHOWN_FOLLOWING = 10
RETRY_INTERVAL_S = 1.0
_COLOURS = {"warning": "yellow", "error": "red"}


@click.command()
@click.argument("volume", metavar="[VOL]", type=names.VOLUME, required=False)
@click.option("--follow", is_flag=True, help="Go on as events come, until interrupted.")
@click.option(
    "--after", metavar="N", type=click.IntRange(0), help="Only events with a higher number."
)
@click.option("--last", metavar="N", type=click.IntRange(0), help="Only the newest N at first.")
@pass_session
def events(
    session: Session, volume: str | None, follow: bool, after: int | None, last: int | None
) -> None:
    """Show the events of VOL, or of the node and all its volumes.

    With the global --json one object; with --follow one object a line.
    """
    if last is None and after is None:
        last = LAST_SHOWN_FOLLOWING if follow else LAST_SHOWN
    found = list(session.client.events(after, volume, follow=False))
    cursor = max([after or 0, *(_number(event) for event in found)])
    if last is not None:
        found = found[-last:] if last else []
    if not follow and session.as_json:
        session.object({"events": found})
        return
    for event in found:
        _show(session, event)
    if follow:
        _follow(session, volume, cursor)


def _follow(session: Session, volume: str | None, cursor: int) -> None:
    """Show events for ever; a daemon that is away is waited for."""
    away = False
    while True:
        try:
            for event in session.client.events(cursor, volume, follow=True):
                away = False
                cursor = _number(event)
                _show(session, event)
        except DaemonUnreachable as failure:
            if not away:
                away = True
                session.say(f"{one_line(failure.what)} Waiting for it.")
        time.sleep(RETRY_INTERVAL_S)


def _number(event: dict[str, Any]) -> int:
    number = event.get("number")
    return number if isinstance(number, int) else 0


def _show(session: Session, event: dict[str, Any]) -> None:
    write_data(json.dumps(event) if session.as_json else line(event, sys.stdout.isatty()))


def line(event: dict[str, Any], coloured: bool = False) -> str:
    """Return an event as one line: number, local time, severity, volume, code, sentence."""
    severity = one_line(str(event.get("severity", "")))
    shown = f"{severity:<7}"
    if coloured and severity in _COLOURS:
        shown = click.style(shown, fg=_COLOURS[severity])
    text = one_line(str(event.get("text", "")))
    suppressed = event.get("suppressed")
    if suppressed:
        text += f"  (and {suppressed} more like it before)"
    volume = one_line(str(event.get("volume") or "-"))
    code = one_line(str(event.get("code", "")))
    return f"{_number(event):>6}  {_time(event.get('time_s'))}  {shown}  {volume}  {code}  {text}"


def _time(time_s: object) -> str:
    if isinstance(time_s, int | float) and not isinstance(time_s, bool):
        try:
            moment = datetime.fromtimestamp(time_s)
        except (OverflowError, ValueError, OSError):
            return " " * 19
        return moment.isoformat(sep=" ", timespec="seconds")
    return " " * 19

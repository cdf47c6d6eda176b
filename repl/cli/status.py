"""`replctl status [VOL] [--check]`: what is, how bad it is, and what to do about it."""

from __future__ import annotations

import difflib
import sys
from typing import Any

import click

from repl.cli import health, names
from repl.cli.draw import picture
from repl.cli.output import Session, one_line, pass_session
from repl.cli.snapshot import Node, read_node
from repl.errors import NoSuchThing


@click.command()
@click.argument("volume", metavar="[VOL]", type=names.VOLUME, required=False)
@click.option("--check", is_flag=True, help="Print one line; exit 0 ok, 10 degraded, 11 critical.")
@pass_session
def status(session: Session, volume: str | None, check: bool) -> int:
    """Show the volumes, and what to do next.

    The verdict comes first: OK, DEGRADED or CRITICAL.
    """
    answer = session.client.status()
    if volume is not None:
        answer = _only(answer, volume)
    node = read_node(answer)
    if check:
        return _check(session, node)
    if session.as_json:
        session.object(answer)
    else:
        session.data(picture(node, sys.stdout))
    return 0


def _check(session: Session, node: Node) -> int:
    level, line = health.check_line(node)
    if session.as_json:
        findings = {volume.name: health.judge_volume(volume) for volume in node.volumes}
        session.object(
            {
                "node": node.name,
                "level": level.name.lower(),
                "exit_status": level.value,
                "sentence": line,
                "volumes": [
                    {"name": name, "level": found.level.name.lower(), "sentence": found.sentence}
                    for name, found in findings.items()
                ],
            }
        )
    else:
        session.data(one_line(line))
    return level.value


def _only(answer: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the same status with just the volume `name`; raises NoSuchThing with what exists."""
    volumes = [item for item in answer.get("volumes", []) if isinstance(item, dict)]
    found = [item for item in volumes if item.get("name") == name]
    if found:
        return {**answer, "volumes": found}
    existing = sorted(str(item.get("name")) for item in volumes)
    close = difflib.get_close_matches(name, existing, n=1)
    raise NoSuchThing(
        f"There is no volume {name} on this node.",
        f"it has {', '.join(existing)}" if existing else "it has no volumes at all",
        f"replctl status {close[0]}" if close else "see them all:  replctl status",
    )

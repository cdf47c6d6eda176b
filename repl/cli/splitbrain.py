"""`replctl splitbrain show` and `resolve`: both histories side by side, and the choice of one.

Both commands may be run on either node and say the same there. What the daemon answers is read
without trust, as the status is.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from repl import units
from repl.cli import names
from repl.cli.confirm import confirm_by_name
from repl.cli.output import Session, one_line, pass_session
from repl.errors import NoSuchThing, Refused

#: How a generation came to be, as people say it.
_MADE = {
    "first-contact": "both copies met as new",
    "adopted": "adopted as the volume's data",
    "promoted": "promoted",
    "alone": "went on alone",
    "joined": "a copy joined",
    "peer-dead": "promoted with --peer-dead",
    "data-lost": "promoted with --lose-data",
}
CLIENTS_SHOWN = 4


@click.group(no_args_is_help=False)
def splitbrain() -> None:
    """Look at two copies that were written apart, and keep one."""


@splitbrain.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@pass_session
def show(session: Session, volume: str) -> None:
    """Show where the copies of VOL parted and what each side did since."""
    found = session.client.splitbrain(volume)
    if session.as_json:
        session.object(found)
    elif found.get("split_brain") is True:
        session.data("\n".join(_picture(found)))
    else:
        session.data(
            f"{volume} is not in a split-brain: {_text(found, 'why') or 'no reason given'}."
        )
        if _text(found, "next"):
            session.data(f"Next    {_text(found, 'next')}")


@splitbrain.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@click.option(
    "--keep",
    metavar="NODE",
    type=names.NODE,
    required=True,
    help="The node whose copy is kept; what only the other one has is given up.",
)
@click.option("--confirm", metavar="VOL", help="The volume's name, repeated.")
@pass_session
def resolve(session: Session, volume: str, keep: str, confirm: str | None) -> None:
    """Keep one copy of VOL and overwrite what differs on the other one."""
    found = session.client.splitbrain(volume)
    _check(volume, keep, found)
    if confirm is None and found.get("split_brain") is not True:
        # Nobody is asked to confirm what cannot be done; a script hears it from the daemon.
        raise Refused(
            f"{volume} is not in a split-brain.",
            _text(found, "why"),
            _text(found, "next"),
            code="NOT_SPLIT",
        )
    command = f"replctl splitbrain resolve {volume} --keep {keep} --confirm {volume}"
    confirm_by_name(volume, confirm, command, lambda: _stake(volume, keep, found))
    reply = session.client.act(volume, "splitbrain-resolve", {"keep": keep})
    session.done(reply, f"{keep} is kept.")


def _check(volume: str, keep: str, found: dict[str, Any]) -> None:
    """Refuse a node that has no copy before anything else is asked."""
    nodes = [name for name in (_text(found, "node"), _text(found, "peer")) if name]
    if keep not in nodes:
        raise NoSuchThing(
            f"{volume} has no copy on {keep}.",
            f"its copies are on: {', '.join(nodes) or 'unknown nodes'}",
            f"replctl splitbrain show {volume}",
            code="NO_SUCH_PEER",
        )


def _stake(volume: str, keep: str, found: dict[str, Any]) -> str:
    """What a choice costs, before the name is asked for."""
    lost = [side for side in _sides(found) if _text(side, "node") != keep]
    names_lost = ", ".join(_text(side, "node") for side in lost)
    return "\n".join(
        [
            *_picture(found),
            f"You keep {keep}: what only {names_lost} has of {volume} since the fork is "
            "overwritten, for good.",
        ]
    )


def _picture(found: dict[str, Any]) -> list[str]:
    volume, sides = _text(found, "volume"), _sides(found)
    nodes = [_text(side, "node") for side in sides]
    lines = [f"{volume} is in a split-brain: {' and '.join(nodes)} were written apart."]
    fork = found.get("fork")
    if isinstance(fork, dict):
        lines.append(
            f"Fork    generation {_count(fork, 'counter')} is the last that both copies hold "
            f"({_made(fork)}, {_moment(fork)})"
        )
    for side in sides:
        lines += ["", *_side(side)]
    lines += ["", f"Differ  {_difference(found)}"]
    if _text(found, "why"):
        lines.append(f"Why     {_text(found, 'why')}")
    choices = "   or   ".join(
        f"replctl splitbrain resolve {volume} --keep {node}" for node in nodes
    )
    step = _text(found, "next")
    showing = f"replctl splitbrain show {volume}"
    lines.append(f"Next    {choices if step in ('', showing) else step}")
    if step in ("", showing) and any(_text(side, "role") == "primary" for side in sides):
        lines.append(
            f"        first, on the one to be given up: replctl demote {volume} --drop-clients"
        )
    return lines


def _side(side: dict[str, Any]) -> list[str]:
    changed = side.get("changed_bytes_at_most")
    amount = "nobody knows where it changed"
    if isinstance(changed, int) and not isinstance(changed, bool) and changed >= 0:
        amount = f"changed {units.format_size(changed)} at most"
    head = f"{_text(side, 'node'):<7} {_text(side, 'role')}, {_text(side, 'disk_state')}"
    marks = [
        text
        for key, text in (
            ("kept", "it is kept: that was chosen and stored"),
            ("agreed", "it agreed to be given up"),
        )
        if side.get(key) is True
    ]
    return [
        f"{head}{_clients(side)}; {amount}",
        *(f"        {text}" for text in marks),
        *(f"        {_generation(entry)}" for entry in _tables(side, "generations")),
        *_left_out(side),
    ]


def _clients(side: dict[str, Any]) -> str:
    count, listed = side.get("clients"), side.get("client_names")
    if not isinstance(count, int):
        return ""
    found = listed if isinstance(listed, list) else []
    known = [one_line(name) for name in found if isinstance(name, str)][:CLIENTS_SHOWN]
    more = ", ..." if count > len(known) > 0 else ""
    shown = f" ({', '.join(known)}{more})" if known else ""
    return f", {count} client{'s' * (count != 1)}{shown}"


def _left_out(side: dict[str, Any]) -> list[str]:
    count = side.get("generations_left_out")
    return [f"        and {count} between them"] if isinstance(count, int) and count > 0 else []


def _generation(entry: dict[str, Any]) -> str:
    permit = _text(entry, "permit")
    why = f": {permit}" if permit else ""
    wrote = "answered writes" if entry.get("answered") is True else "answered no write"
    return (
        f"{_moment(entry)}  {_made(entry)}{why}  (generation {_count(entry, 'counter')}, {wrote})"
    )


def _made(entry: dict[str, Any]) -> str:
    origin = _text(entry, "origin")
    return _MADE.get(origin, origin or "made in an unknown way")


def _difference(found: dict[str, Any]) -> str:
    most, size = found.get("differing_bytes_at_most"), found.get("size_bytes")
    if not isinstance(most, int) or not isinstance(size, int) or min(most, size) < 0:
        return "nobody knows how much"
    if found.get("differing_known_from_maps") is not True:
        return f"nobody knows where: all {units.format_size(size)} are compared by digest"
    return (
        f"at most {units.format_size(most)} of {units.format_size(size)}: the blocks that either "
        "side changed; of those, only what really differs is copied"
    )


def _moment(entry: dict[str, Any]) -> str:
    found = entry.get("made_at_s")
    try:
        moment = datetime.fromtimestamp(float(found)).astimezone()  # type: ignore[arg-type]
    except (TypeError, OverflowError, ValueError, OSError):
        return "at an unknown time"
    return moment.isoformat(sep=" ", timespec="seconds")


def _text(fields: dict[str, Any], key: str) -> str:
    found = fields.get(key)
    return one_line(found) if isinstance(found, str) else ""


def _count(fields: dict[str, Any], key: str) -> str:
    found = fields.get(key)
    return str(found) if isinstance(found, int) else "?"


def _sides(found: dict[str, Any]) -> list[dict[str, Any]]:
    return _tables(found, "sides")


def _tables(fields: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = fields.get(key)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []

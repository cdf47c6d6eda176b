"""`replctl volume adopt`: what to do with a copy of unknown origin."""

from __future__ import annotations

import click

from repl.cli import names
from repl.cli.confirm import confirm_by_name
from repl.cli.output import Session, one_line, pass_session
from repl.cli.snapshot import read_volume
from repl.errors import UsageError


@click.group(no_args_is_help=False)
def volume() -> None:
    """Rarer things to do with a volume."""


@volume.command()
@click.argument("name", metavar="VOL", type=names.VOLUME)
@click.option("--discard", is_flag=True, help="Make this copy fresh: it will be overwritten.")
@click.option("--confirm", metavar="VOL", help="With --discard: the volume's name, repeated.")
@pass_session
def adopt(session: Session, name: str, discard: bool, confirm: str | None) -> None:
    """Say that the data in VOL's backing on this node is the volume's data.

    With --discard say the opposite: give this copy up, so that it is filled from the peer.
    """
    if confirm is not None and not discard:
        raise UsageError(
            "--confirm goes with --discard.",
            "adopting a copy as it is loses nothing and needs no confirmation",
            f"replctl volume adopt {name}",
        )
    if discard:
        command = f"replctl volume adopt {name} --discard --confirm {name}"
        confirm_by_name(name, confirm, command, lambda: _stake(session, name))
    reply = session.client.act(name, "adopt", {"discard": discard})
    meaning = "fresh; it will be overwritten" if discard else "the data of the volume"
    session.done(reply, f"The copy of {name} on this node is now {meaning}.")


def _stake(session: Session, name: str) -> str:
    found = read_volume(session.client.volume(name))
    lines = [f"Everything in the backing of {name} on this node will be overwritten."]
    if found.problem is not None:
        lines.append(f"Why   {one_line(found.problem.what)}")
    peers = ", ".join(f"{p.name} ({p.connection_state}, {p.disk_state})" for p in found.peers)
    lines.append(f"It is filled from: {one_line(peers) or 'nobody, this volume has no peer'}.")
    return "\n".join(lines)

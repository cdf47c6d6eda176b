"""`replctl connect` and `replctl disconnect`: the link of a volume to its peer."""

from __future__ import annotations

import click

from repl.cli import names
from repl.cli.output import Session, pass_session


@click.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@click.argument("peer", metavar="[PEER]", type=names.NODE, required=False)
@pass_session
def connect(session: Session, volume: str, peer: str | None) -> None:
    """Let VOL connect to its peer again.

    With PEER only to that one.
    """
    reply = session.client.act(volume, "connect", {"peer": peer})
    session.done(reply, f"{volume} connects to {peer or 'its peers'}.")


@click.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@click.argument("peer", metavar="[PEER]", type=names.NODE, required=False)
@pass_session
def disconnect(session: Session, volume: str, peer: str | None) -> None:
    """Cut VOL from its peer until `connect`, or until repld is started again.

    What changes meanwhile is remembered, and copied when they are connected again.
    """
    reply = session.client.act(volume, "disconnect", {"peer": peer})
    session.done(reply, f"{volume} is disconnected from {peer or 'its peers'}.")

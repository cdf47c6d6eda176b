"""`replctl continue`: let a frozen primary go on without its peer."""

from __future__ import annotations

import click

from repl.cli import names
from repl.cli.output import Session, pass_session


@click.command("continue")
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@pass_session
def continue_(session: Session, volume: str) -> None:
    """Let VOL go on without its peer, where alone = "ask".

    The peer's copy is left behind from now on, and brought up to date when it is back. Who said so
    is stored.
    """
    reply = session.client.act(volume, "continue", {})
    session.done(reply, f"{volume} goes on without its peer.")

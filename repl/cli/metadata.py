"""`replctl metadata dump`: a volume's metadata as text, as the daemon describes it."""

from __future__ import annotations

import json

import click

from repl.cli import names
from repl.cli.output import Session, pass_session, printable


@click.group(no_args_is_help=False)
def metadata() -> None:
    """Look into a volume's metadata."""


@metadata.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@pass_session
def dump(session: Session, volume: str) -> None:
    """Print generations, maps and intents of VOL; ask the running daemon for them."""
    answer = session.client.metadata(volume)
    text = answer.get("text")
    if session.as_json:
        session.object(answer)
    elif isinstance(text, str):
        session.data(printable(text.rstrip("\n")))
    else:
        session.data(json.dumps(answer, indent=2))

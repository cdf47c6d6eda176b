"""`replctl version`: both sides' versions, with or without a daemon."""

from __future__ import annotations

import click

from repl import __version__
from repl.cli.output import Session, one_line, pass_session
from repl.errors import ReplError


@click.command()
@pass_session
def version(session: Session) -> None:
    """Print the versions of replctl and repld."""
    daemon: str | None = None
    why = ""
    try:
        daemon = str(session.client.version().get("version", "unknown"))
    except ReplError as failure:
        # Not having a daemon is no failure here: the question was answered for this side.
        why = failure.what
    if session.as_json:
        session.object({"replctl": __version__, "repld": daemon})
        return
    session.data(f"replctl {__version__}")
    if daemon is not None:
        session.data(f"repld {one_line(daemon)}")
    else:
        session.say(why)

"""`replctl version`: both sides' versions, with or without a daemon."""

from __future__ import annotations

import click

from repl import __version__
from repl import build as installed
from repl.cli.output import Session, one_line, pass_session
from repl.errors import ReplError


@click.command()
@pass_session
def version(session: Session) -> None:
    """Print the versions of replctl and repld.

    And whether the hot path of this installation, and the one that runs, is compiled.
    """
    daemon: str | None = None
    build = why = ""
    try:
        said = session.client.version()
        daemon, build = str(said.get("version", "unknown")), str(said.get("build", ""))
    except ReplError as failure:
        # Not having a daemon is no failure here: the question was answered for this side.
        why = failure.what
    if session.as_json:
        session.object(
            {
                "replctl": __version__,
                "replctl_build": installed.kind(),
                "repld": daemon,
                "build": build or None,
            }
        )
        return
    session.data(f"replctl {__version__} ({installed.kind()})")
    if daemon is not None:
        session.data(f"repld {one_line(f'{daemon} ({build})' if build else daemon)}")
    else:
        session.say(why)

"""`replctl config check FILE`: would a daemon start with this file? It needs no daemon."""

from __future__ import annotations

import click

from repl.cli.output import Session, pass_session
from repl.config import load_config


@click.group(no_args_is_help=False)
def config() -> None:
    """Work with configuration files."""


@config.command()
@click.argument("file", metavar="FILE", type=click.Path())
@pass_session
def check(session: Session, file: str) -> None:
    """Check FILE and conf.d/*.toml beside it; name every mistake at once."""
    found = load_config(file)
    if session.as_json:
        session.object(
            {
                "file": file,
                "valid": True,
                "node": found.node.name,
                "peers": list(found.peers),
                "volumes": [
                    {"name": volume.name, "size_bytes": volume.size_bytes, "peers": volume.peers}
                    for volume in found.volumes.values()
                ],
            }
        )
        return
    volumes = ", ".join(found.volumes) or "none"
    peers = ", ".join(found.peers) or "none"
    session.data(f"{file} is valid: node {found.node.name}; volumes {volumes}; peers {peers}.")

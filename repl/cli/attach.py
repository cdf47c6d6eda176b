"""`replctl attach` and `replctl detach`: a volume as a block device of this node."""

from __future__ import annotations

import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import click

from repl.attach.attaching import Attachments, not_primary
from repl.attach.lifeline import DEAD_AFTER_S
from repl.attach.machine import Machine
from repl.attach.ways import NAMES
from repl.cli import names
from repl.cli.daemon_volumes import DaemonVolumes
from repl.cli.output import Session, one_line, pass_session
from repl.cli.wait import Duration
from repl.errors import NoSuchThing, Refused, ReplError, UsageError
from repl.own_program import own_environment, own_program

dead_after_option = click.option(
    "--dead-after",
    "dead_after_s",
    metavar="S",
    type=Duration(),
    default=str(DEAD_AFTER_S),
    show_default=True,
    help="Take the device away when the daemon is gone for so long.",
)


def attachments(session: Session) -> Attachments:
    """Return this node's attachments: they lie beside the daemon's control socket."""
    control = Path(absolute(session.client.socket_path))
    return Attachments(control.parent, Machine(), partial(_start_guardian, control))


def absolute(path: str) -> str:
    """Return the whole path. Raises UsageError where the folder that it starts from is gone."""
    try:
        # Not tidied: `..` behind a symbolic link leads elsewhere.
        return str(Path(path).absolute())
    except OSError as error:
        raise UsageError(
            f"{path!r} leads nowhere: the folder that this command runs in is gone.",
            f"it cannot be asked for: {error.strerror}",
            "change to another folder:  cd /   or give a path that begins with /",
        ) from error


def _start_guardian(control: Path, order: dict[str, Any]) -> subprocess.Popen[bytes]:
    """Start a guardian in a session of its own; it answers on `stdout`."""
    process = subprocess.Popen(
        own_program("repl.cli.guardian"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Under systemd its log is the journal.
        stderr=None if "JOURNAL_STREAM" in os.environ else subprocess.DEVNULL,
        start_new_session=True,
        env=own_environment(),
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({**order, "control": str(control)}).encode() + b"\n")
    process.stdin.close()
    return process


way_option = click.option(
    "--way",
    type=click.Choice(NAMES),
    help="How to attach; by default the best that there is.",
)


@click.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@dead_after_option
@way_option
@pass_session
def attach(session: Session, volume: str, dead_after_s: float, way: str | None) -> None:
    """Make VOL a block device of this node and print its path.

    If it is one already, that path is printed. The volume must be primary here.
    """
    here = attachments(session)
    here.check_allowed()
    with here.locked(volume):
        found = here.find(volume)
        if found is None:
            volumes = DaemonVolumes(session.client)
            role = volumes.role(volume)
            if role != "primary":
                raise not_primary(volume, role, f"replctl promote {volume}")
            found = here.attach(volume, volumes.address(volume), "attach", dead_after_s, way or "")
    if session.as_json:
        session.object(
            {
                "volume": volume,
                "device": found.device,
                "way": found.way,
                "new": found.new,
                "frozen": found.frozen or None,
            }
        )
        return
    session.data(found.device)
    if found.frozen:
        session.say(f"{volume} is frozen: {one_line(found.frozen)}.")


@click.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@click.option("--force", is_flag=True, help="Cut it off, even if it is in use or frozen.")
@pass_session
def detach(session: Session, volume: str, force: bool) -> None:
    """Give back the block device of VOL on this node.

    Refused while it is mounted or in use. With --force what is not written yet is lost.
    """
    here = attachments(session)
    here.check_allowed()
    with here.locked(volume, force=force):
        try:
            here.detach(volume, force=force)
        except Refused as refusal:
            if refusal.code == "NOT_ATTACHED":
                _check_known(session, volume)
            raise
    session.done({"volume": volume, "detached": True}, f"{volume} is detached.")


def _check_known(session: Session, volume: str) -> None:
    """Raise NoSuchThing for a volume that a running daemon does not have."""
    try:
        session.client.volume(volume)
    except NoSuchThing:
        raise
    except ReplError:
        # It cannot be asked; what is to be said is about this node's devices anyhow.
        return

"""`replctl mount` and `replctl umount`: a volume as a filesystem of this node, in one command."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import click

from repl.attach.filesystems import MAKERS
from repl.attach.machine import ENDING_SIGNALS, Machine
from repl.attach.mounting import Mounting, Wish
from repl.attach.unmounting import Unmounting
from repl.cli import names
from repl.cli.attach import absolute, attachments, dead_after_option, way_option
from repl.cli.daemon_volumes import DaemonVolumes
from repl.cli.output import Session, pass_session, printable, write
from repl.cli.role import vouching
from repl.errors import UsageError


class Directory(click.ParamType[str]):
    """A path that can be printed; whether a directory is there is looked at later."""

    name = "directory"

    def convert(self, value: object, param: object, ctx: object) -> str:
        """Return the absolute path; raises UsageError."""
        path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else str(value)
        if not path or not path.isprintable():
            raise UsageError(
                f"{path!r} cannot be a directory.",
                "it is empty or has control characters in it",
                "replctl mount VOL /srv/data",
            )
        return os.path.normpath(absolute(path))


@click.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@click.argument("directory", metavar="DIR", type=Directory())
@click.option("--promote", is_flag=True, help="Make this node the primary if it is not.")
@click.option(
    "--peer-dead",
    metavar="NODE",
    type=names.NODE,
    help="With --promote: vouch that NODE is stopped, as for `replctl promote`.",
)
@click.option(
    "--mkfs", type=click.Choice(sorted(MAKERS)), help="Make a filesystem if VOL is blank."
)
@click.option("--options", metavar="OPTIONS", default="", help="Options for mount(8).")
@dead_after_option
@way_option
@pass_session
def mount(
    session: Session,
    volume: str,
    directory: str,
    promote: bool,
    peer_dead: str | None,
    mkfs: str | None,
    options: str,
    dead_after_s: float,
    way: str | None,
) -> None:
    """Mount the filesystem on VOL at DIR: promote, attach, check, mount.

    If a step fails, what was done before it is undone.
    """
    if peer_dead is not None and not promote:
        raise UsageError(
            "--peer-dead needs --promote.",
            "it vouches for a promotion",
            f"replctl mount {volume} {directory} --promote --peer-dead {peer_dead}",
        )
    wish = Wish(volume, directory, mkfs or "", options, promote, peer_dead, dead_after_s, way or "")
    if peer_dead is not None:
        write(sys.stderr, vouching(session, volume, peer_dead))
    with _ended_by_signals():
        done = _mounting(session).mount(wish)
    session.done(
        dataclasses.asdict(done),
        printable(
            f"{volume} ({done.filesystem}) is mounted on {done.directory}, as {done.device}."
        ),
    )


@click.command()
@click.argument("directory", metavar="DIR", type=Directory())
@click.option("--demote", is_flag=True, help="Make this node a secondary of the volume afterwards.")
@click.option("--force", is_flag=True, help="Cut it off, even if it is in use or frozen.")
@pass_session
def umount(session: Session, directory: str, demote: bool, force: bool) -> None:
    """Unmount the volume at DIR, and detach it if `replctl mount` attached it.

    With --force what is not written yet is lost.
    """
    with _ended_by_signals():
        done = _unmounting(session).umount(directory, demote=demote, force=force)
    sentence = f"{done.volume} is unmounted from {done.directory}"
    sentence += ", detached" if done.detached else ", still attached"
    sentence += ", and secondary on this node." if done.demoted else "."
    if done.lost:
        sentence += f" What was not written yet is lost: {done.lost}."
    session.done(dataclasses.asdict(done), printable(sentence))


def _mounting(session: Session) -> Mounting:
    volumes = DaemonVolumes(session.client)
    return Mounting(attachments(session), volumes, Machine(), _undisturbed, session.say)


def _unmounting(session: Session) -> Unmounting:
    return Unmounting(attachments(session), DaemonVolumes(session.client), Machine())


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let every signal that ends a command be followed by the undoing, as Ctrl-C is."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handlers(interrupt):
        yield


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal end what must be finished; all of it has time limits of its own."""
    with _handlers(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handlers(handler: object) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in ENDING_SIGNALS}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)

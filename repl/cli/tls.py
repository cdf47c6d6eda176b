"""`replctl tls init | show`: certificates by which nodes know each other. No daemon is needed."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import click

from repl.cli.output import Session, pass_session
from repl.config import NAME_PATTERN, NAME_RULE
from repl.errors import Refused, ReplError, UsageError

DAYS_DEFAULT = 3650
DAYS_MAX = 36500


@click.group(no_args_is_help=False)
def tls() -> None:
    """Make and show the certificates by which nodes know each other."""


@tls.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@click.option(
    "--days",
    type=click.IntRange(1, DAYS_MAX),
    default=DAYS_DEFAULT,
    show_default=True,
    help="How long the certificates are good.",
)
@pass_session
def init(session: Session, folder: Path, nodes: tuple[str, ...], days: int) -> None:
    """Make an authority in DIR, and a certificate and key for each NODE.

    An authority that is in DIR already signs the new ones. Nothing that exists is overwritten.
    """
    for node in nodes:
        if not NAME_PATTERN.fullmatch(node):
            raise UsageError(
                f"{node!r} is not usable as a node's name.",
                f"a name is {NAME_RULE}",
                "name the nodes as in their configurations:  replctl tls init DIR alpha beta",
            )
    made = _make(folder, list(dict.fromkeys(nodes)), days)
    if session.as_json:
        session.object({"folder": str(folder), "files": made})
        return
    for name in made:
        session.data(str(folder / name))
    session.say(
        "Copy ca.crt, and each node's own .crt and .key, to its node; keep ca.key away from all "
        "of them.\nIn its configuration:  [tls]  certificate = …/NODE.crt  key = …/NODE.key  "
        "authority = …/ca.crt"
    )


@tls.command()
@click.argument("file", metavar="CERTIFICATE", type=click.Path(path_type=Path))
@pass_session
def show(session: Session, file: Path) -> None:
    """Show whose CERTIFICATE this is, until when, and its fingerprint."""
    from repl.authority import fingerprint_of_pem, names_of_pem

    data = _read(file)
    try:
        fingerprint, (names, until) = fingerprint_of_pem(data), names_of_pem(data)
    except ValueError as failure:
        raise UsageError(
            f"{file} holds no certificate.", str(failure), "replctl tls init DIR NODE..."
        ) from failure
    if session.as_json:
        session.object(
            {"names": names, "valid_until": until.isoformat(), "fingerprint": fingerprint}
        )
        return
    session.data(f"names        {', '.join(names) or 'none'}")
    session.data(f"valid until  {until:%Y-%m-%d %H:%M} UTC")
    session.data(f"fingerprint  {fingerprint}")


def _make(folder: Path, nodes: list[str], days: int) -> list[str]:
    """Write what is missing; return the names of the files written."""
    from repl.authority import Authority

    now = datetime.datetime.now(datetime.UTC)
    certificate, key = folder / "ca.crt", folder / "ca.key"
    taken = [name for node in nodes for name in _files_of(node) if (folder / name).exists()]
    if taken:
        raise Refused(
            f"{folder / taken[0]} exists already.",
            "nothing that exists is overwritten: a node may be using it",
            f"name only new nodes, or take away its files:  rm {folder / taken[0]}",
            code="TLS_FILE_EXISTS",
        )
    files: dict[str, tuple[bytes, int]] = {}
    if certificate.exists():
        try:
            authority = Authority.load(_read(certificate), _read(key))
        except ValueError as failure:
            raise UsageError(
                f"The authority in {folder} cannot be used.",
                str(failure),
                "bring back its ca.crt and ca.key, or begin in an empty folder",
            ) from failure
    else:
        authority = Authority.new(now, days)
        pem, key_pem = authority.pem()
        files = {"ca.crt": (pem, 0o644), "ca.key": (key_pem, 0o600)}
    for node in nodes:
        pem, key_pem = authority.certify(node, now, days)
        crt, own_key = _files_of(node)
        files |= {crt: (pem, 0o644), own_key: (key_pem, 0o600)}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, (data, mode) in files.items():
            _write_new(folder / name, data, mode)
    except OSError as failure:
        raise _unusable(failure, folder) from failure
    return list(files)


def _files_of(node: str) -> tuple[str, str]:
    return f"{node}.crt", f"{node}.key"


def _write_new(path: Path, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(fd, "wb") as stream:
        stream.write(data)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as failure:
        raise _unusable(failure, path) from failure


def _unusable(failure: OSError, path: Path) -> ReplError:
    where = failure.filename or path
    return UsageError(
        f"Cannot use {where}.",
        failure.strerror or str(failure),
        f"check the path and its permissions:  ls -ld {where}",
    )

"""`replctl tls init | client | show`: certificates by which nodes know each other and their NBD
clients. No daemon is needed."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repl.cli.output import Session, pass_session
from repl.config import NAME_PATTERN, NAME_RULE
from repl.errors import Refused, ReplError, UsageError

if TYPE_CHECKING:
    from repl.authority import Authority

DAYS_DEFAULT = 3650
DAYS_MAX = 36500


@click.group(no_args_is_help=False)
def tls() -> None:
    """Make and show the certificates by which nodes know each other and their NBD clients."""


_days = click.option(
    "--days",
    type=click.IntRange(1, DAYS_MAX),
    default=DAYS_DEFAULT,
    show_default=True,
    help="How long the certificates are good.",
)


@tls.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("nodes", metavar="NODE...", nargs=-1, required=True)
@click.option(
    "--host",
    "hosts",
    metavar="NODE=HOST",
    multiple=True,
    help="A host name or IP address by which NBD clients reach NODE. May be repeated.",
)
@_days
@pass_session
def init(
    session: Session, folder: Path, nodes: tuple[str, ...], hosts: tuple[str, ...], days: int
) -> None:
    """Make an authority in DIR, and a certificate and key for each NODE.

    An authority that is in DIR already signs the new ones. Nothing that exists is overwritten.
    """
    for node in nodes:
        _check_name(node, "a node's name", "replctl tls init DIR alpha beta")
    made = _make(folder, list(dict.fromkeys(nodes)), _by_node(nodes, hosts), days)
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
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@_days
@pass_session
def client(session: Session, folder: Path, names: tuple[str, ...], days: int) -> None:
    """Make a certificate and key for each NBD client NAME, by the authority in DIR.

    Each gets a folder DIR/NAME that is what libnbd (tls-certificates=) and qemu (tls-creds-x509,
    dir=) take. A volume is for some clients only by  clients = ["NAME"]  in its configuration.
    """
    for name in names:
        _check_name(name, "a client's name", "replctl tls client DIR backup")
    made = _make_clients(folder, list(dict.fromkeys(names)), days)
    if session.as_json:
        session.object({"folder": str(folder), "files": made})
        return
    for path in made:
        session.data(str(folder / path))
    session.say(
        f"Copy the folder {folder / names[0]} to its client, and nobody else. There, for example:  "
        f"nbdinfo 'nbds://NODE:10809/VOLUME?tls-certificates=…/{names[0]}'"
    )


def _check_name(name: str, what: str, example: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"{name!r} is not usable as {what}.",
            f"a name is {NAME_RULE}",
            f"name each as in the configuration:  {example}",
        )


def _by_node(nodes: Sequence[str], hosts: Sequence[str]) -> dict[str, list[str]]:
    """The hosts of each node. No certificate may name a node that it is not of."""
    found: dict[str, list[str]] = {}
    for text in hosts:
        node, _, host = text.partition("=")
        if node not in nodes or not host.isascii() or not host or host in set(nodes) - {node}:
            raise UsageError(
                f"{text!r} does not say by which host a node is reached.",
                "it is NODE=HOST, with a NODE of this command and a HOST that is no other node",
                "replctl tls init DIR alpha beta --host alpha=10.0.0.1 --host beta=10.0.0.2",
            )
        found.setdefault(node, []).append(host)
    return found


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


def _make(folder: Path, nodes: list[str], hosts: dict[str, list[str]], days: int) -> list[str]:
    """Write what is missing; return the names of the files written."""
    from repl.authority import Authority

    now = datetime.datetime.now(datetime.UTC)
    _refuse_taken(folder, [name for node in nodes for name in _files_of(node)])
    files: dict[str, tuple[bytes, int]] = {}
    if (folder / "ca.crt").exists():
        authority = _load_authority(folder)
    else:
        authority = Authority.new(now, days)
        pem, key_pem = authority.pem()
        files = {"ca.crt": (pem, 0o644), "ca.key": (key_pem, 0o600)}
    for node in nodes:
        pem, key_pem = authority.certify(node, now, days, hosts.get(node, ()))
        crt, own_key = _files_of(node)
        files |= {crt: (pem, 0o644), own_key: (key_pem, 0o600)}
    _write_all(folder, files)
    return list(files)


def _make_clients(folder: Path, names: list[str], days: int) -> list[str]:
    """Write a folder for each client; return the paths of the files written, below `folder`."""
    authority = _load_authority(folder)
    now = datetime.datetime.now(datetime.UTC)
    # Programs tell a client from a node of the same name; people might not.
    _refuse_taken(folder, [taken for name in names for taken in (name, f"{name}.crt")])
    own, _ = authority.pem()
    files: dict[str, tuple[bytes, int]] = {}
    for name in names:
        pem, key_pem = authority.certify_client(name, now, days)
        files |= {
            f"{name}/ca-cert.pem": (own, 0o644),
            f"{name}/client-cert.pem": (pem, 0o644),
            f"{name}/client-key.pem": (key_pem, 0o600),
        }
    _write_all(folder, files)
    return list(files)


def _refuse_taken(folder: Path, names: list[str]) -> None:
    taken = [name for name in names if (folder / name).exists()]
    if taken:
        raise Refused(
            f"{folder / taken[0]} exists already.",
            "nothing that exists is overwritten: somebody may be using it",
            f"name only new ones, or take this away:  rm -r {folder / taken[0]}",
            code="TLS_FILE_EXISTS",
        )


def _load_authority(folder: Path) -> Authority:
    from repl.authority import Authority

    try:
        return Authority.load(_read(folder / "ca.crt"), _read(folder / "ca.key"))
    except ValueError as failure:
        raise UsageError(
            f"The authority in {folder} cannot be used.",
            str(failure),
            "bring back its ca.crt and ca.key, or begin in an empty folder",
        ) from failure


def _write_all(folder: Path, files: dict[str, tuple[bytes, int]]) -> None:
    try:
        for name, (data, mode) in files.items():
            (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write_new(folder / name, data, mode)
    except OSError as failure:
        raise _unusable(failure, folder) from failure


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

"""The configuration of a node: what `repld --config FILE` runs with (design §11).

It owns the meaning of every key and the rules between keys, and turns the files into frozen
settings. All mistakes are reported at once, each with its file, its key and what is wrong.
Importing this module is cheap: pydantic is loaded only when a file is read (`repl/config_file.py`).
Nothing here creates, changes or opens a file for writing, or resolves a host name.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbdserver import limits as nbd_limits
from nbdserver.admission import TlsMode
from nbdserver.limits import LimitInvalid, Limits
from repl import units
from repl.addresses import Address, parse_address
from repl.errors import ConfigInvalid
from repl.tls_files import TlsFiles, problem_of

if TYPE_CHECKING:
    from repl.config_file import FileContents, KeyPath

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
NAME_RULE = "1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
PEERS_PER_VOLUME_MAX = 1
ADDRESSES_PER_PEER_MAX = 4
UNIX_PATH_BYTES_MAX = 107
SIZE_BYTES_MIN = 1 << 20
SIZE_BYTES_MAX = 2**63 - 1
BLOCK_BYTES = 4096
RATE_BYTES_PER_S_MAX = 1 << 60
STATE_DIR_DEFAULT = "/var/lib/repl"
CONTROL_DEFAULT = "/run/repl/repld.sock"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    name: str
    state_dir: str
    control: str
    listen: Address | None
    metrics: Address | None
    insecure: bool


@dataclass(frozen=True, slots=True)
class NbdSettings:
    """`when_secondary` is "refuse" or "hold": what an NBD client of a secondary gets.

    With `tls` clients may, or over TCP must, begin TLS, and must then show a certificate of the
    authority of `[tls]` unless `tls_verify_clients` is false.

    Limits on single clients hold for each; `clients` and `total_bytes` for each volume; those on
    handshakes and held clients for the node.
    """

    socket: str | None
    listen: Address | None
    when_secondary: str
    limits: Limits = field(default_factory=Limits)
    tls: TlsMode = TlsMode.OFF
    tls_verify_clients: bool = True


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """`fingerprint` is the SHA-256 of the peer's certificate in hexadecimal, or empty."""

    name: str
    addresses: tuple[Address, ...]
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    name: str
    size_bytes: int
    backing: str
    peers: tuple[str, ...]
    #: Reserve the backing file's whole space at start, so that it never runs out of room.
    preallocate: bool = False
    #: "continue" or "ask" when the peer is lost; bytes per second that copies have, 0 for no limit.
    alone: str = "continue"
    resync_rate_bytes_max: int = 0
    #: Names of certificates that NBD clients over TCP must have one of; empty: any will do.
    clients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TimeoutSettings:
    peer_timeout_s: float = 5.0
    reconnect_grace_s: float = 1.0
    connect_timeout_s: float = 2.0
    ping_interval_s: float = 1.0
    worker_timeout_s: float = 10.0
    reconnect_backoff_max_s: float = 2.0


TIMEOUT_BOUNDS_S: dict[str, tuple[float, float]] = {
    "peer_timeout_s": (0.1, 600.0),
    "reconnect_grace_s": (0.0, 60.0),
    "connect_timeout_s": (0.1, 60.0),
    "ping_interval_s": (0.05, 60.0),
    "worker_timeout_s": (2.0, 600.0),
    "reconnect_backoff_max_s": (0.1, 300.0),
}
"""Smallest and largest value of each timeout; a worker reports every second, so it needs two."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything `repld` was told. Paths are absolute; all rules of this module hold."""

    file: str
    node: NodeSettings
    nbd: NbdSettings
    peers: dict[str, PeerSettings] = field(default_factory=dict)
    volumes: dict[str, VolumeSettings] = field(default_factory=dict)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    tls: TlsFiles | None = None


def load_config(path: str | os.PathLike[str]) -> Config:
    """Return the settings of the file at `path` and of `conf.d/*.toml` beside it.

    Raises ConfigInvalid: CONFIG_UNREADABLE when a file cannot be read, else CONFIG_INVALID with
    every problem found, one per line of `why`.
    """
    from repl.config_file import read_files

    file = os.fspath(path)
    contents = read_files(file)
    reader = _Reader(contents, Path(os.path.abspath(file)).parent)
    config = reader.config()
    problems = contents.problems
    if problems:
        counted = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigInvalid(
            f"Cannot use the configuration {file}: {counted}.",
            "\n".join(problems),
            f"correct it, then:  replctl config check {file}",
        )
    return config


class _Reader:
    """Reads what the files say into settings; a value that breaks a rule becomes a placeholder.

    Placeholders let the other rules go on; they never leave `load_config`, because whoever makes
    one has recorded a problem.
    """

    def __init__(self, contents: FileContents, folder: Path) -> None:
        self._contents = contents
        self._folder = folder
        self._insecure = contents.table("node").get("insecure") is True

    def config(self) -> Config:
        """Return the settings; valid only if no problem was recorded."""
        config = Config(
            self._contents.file,
            self._node(),
            self._nbd(),
            {name: self._peer(name) for name in self._contents.table("peers")},
            {name: self._volume(name) for name in self._contents.table("volumes")},
            self._timeouts(),
            self._tls(),
        )
        self._check_peers(config)
        self._check_volumes(config)
        self._check_listeners(config)
        self._check_nbd_tls(config)
        return config

    def _complain(self, path: KeyPath, sentence: str) -> None:
        self._contents.complain(path, sentence)

    def _node(self) -> NodeSettings:
        table = self._contents.table("node")
        if "name" in table:
            self._check_name(("node", "name"), table["name"])
        return NodeSettings(
            name=table.get("name", ""),
            state_dir=self._path(("node", "state_dir"), table, STATE_DIR_DEFAULT) or "",
            control=self._socket(("node", "control"), table, CONTROL_DEFAULT) or "",
            listen=self._address(("node", "listen"), table),
            metrics=self._address(("node", "metrics"), table),
            insecure=self._insecure,
        )

    def _nbd(self) -> NbdSettings:
        table = self._contents.table("nbd")
        if "nbd" in self._contents.values and not {"socket", "listen"} & table.keys():
            self._complain(("nbd",), 'needs socket = "/run/repl/nbd.sock", or listen, or both')
        return NbdSettings(
            socket=self._socket(("nbd", "socket"), table, None),
            listen=self._address(("nbd", "listen"), table),
            when_secondary=table.get("when_secondary", "refuse"),
            limits=self._nbd_limits(),
            tls=TlsMode(table.get("tls", "off")),
            tls_verify_clients=table.get("tls_verify_clients", True),
        )

    def _nbd_limits(self) -> Limits:
        given: dict[str, float] = {}
        for name, value in self._contents.table("nbd", "limits").items():
            path = ("nbd", "limits", name)
            if isinstance(value, bool) or not isinstance(value, int | float | str):
                self._complain(path, 'must be a number, or text like "64MiB"')
                continue
            try:
                given[name] = nbd_limits.parse(name, str(value))
            except LimitInvalid as refusal:
                self._complain(path, str(refusal))
        return nbd_limits.make(given)

    def _tls(self) -> TlsFiles | None:
        if "tls" not in self._contents.values:
            return None
        table = self._contents.table("tls")
        paths = {
            key: self._path(("tls", key), table, None) or ""
            for key in ("certificate", "key", "authority")
        }
        settings = TlsFiles(**paths)
        if all(paths.values()):
            problem = problem_of(settings)
            if problem is not None:
                key, sentence = problem
                self._complain(("tls", key), sentence)
        return settings

    def _peer(self, name: str) -> PeerSettings:
        path = ("peers", name)
        table = self._contents.table(*path)
        self._check_name(path, name)
        if "address" in table and "addresses" in table:
            self._complain(path, "has both address and addresses; keep one of them")
        elif not table.keys() & {"address", "addresses"}:
            self._complain(path, 'needs  address = "10.0.0.2:7790"')
        key = "address" if "address" in table else "addresses"
        texts = [table["address"]] if "address" in table else table.get("addresses", [])
        if key in table and not 1 <= len(texts) <= ADDRESSES_PER_PEER_MAX:
            self._complain(
                (*path, key), f"must hold 1 to {ADDRESSES_PER_PEER_MAX} addresses, not {len(texts)}"
            )
        found = [self._checked_address((*path, key), text) for text in texts]
        usable = tuple(address for address in found if address is not None)
        return PeerSettings(name, usable, self._fingerprint((*path, "fingerprint"), table))

    def _fingerprint(self, path: KeyPath, table: dict[str, Any]) -> str:
        """Return it in lower case without colons, as `replctl tls show` prints it."""
        plain = str(table.get("fingerprint", "")).replace(":", "").lower()
        if plain and not re.fullmatch(r"[0-9a-f]{64}", plain):
            self._complain(path, "must be a SHA-256 of 64 hexadecimal digits; replctl tls show")
        if plain and "tls" not in self._contents.values:
            self._complain(path, "has a meaning only with a [tls] table")
        return plain

    def _volume(self, name: str) -> VolumeSettings:
        path = ("volumes", name)
        table = self._contents.table(*path)
        self._check_name(path, name)
        return VolumeSettings(
            name=name,
            size_bytes=self._size((*path, "size"), table["size"]) if "size" in table else 0,
            backing=self._path((*path, "backing"), table, None) or "",
            peers=tuple(table.get("peers", ())),
            preallocate=table.get("preallocate", False),
            alone=table.get("alone", "continue"),
            resync_rate_bytes_max=self._rate((*path, "resync_rate_limit"), table),
            clients=tuple(table.get("clients") or ()),
        )

    def _timeouts(self) -> TimeoutSettings:
        given: dict[str, float] = {}
        for key, value in self._contents.table("timeouts").items():
            low_s, high_s = TIMEOUT_BOUNDS_S[key]
            if low_s <= value <= high_s:
                given[key] = float(value)
            else:
                self._complain(
                    ("timeouts", key), f"must be {low_s:g} to {high_s:g} seconds, not {value}"
                )
        return dataclasses.replace(TimeoutSettings(), **given)

    def _check_name(self, path: KeyPath, name: str) -> None:
        if not NAME_PATTERN.fullmatch(name):
            self._complain(path, f"the name {name!r} is not usable; a name is {NAME_RULE}")

    def _size(self, path: KeyPath, value: Any) -> int:
        if isinstance(value, str):
            try:
                value = units.parse_size(value)
            except units.UnitInvalid as refusal:
                self._complain(path, str(refusal))
                return 0
        if isinstance(value, bool) or not isinstance(value, int):
            self._complain(path, 'must be text like "10GiB" or a whole number of bytes')
        elif not SIZE_BYTES_MIN <= value <= SIZE_BYTES_MAX:
            self._complain(path, f"must be 1MiB to 2**63-1 bytes, not {value}")
        elif value % BLOCK_BYTES:
            lower, upper = value - value % BLOCK_BYTES, value - value % BLOCK_BYTES + BLOCK_BYTES
            self._complain(
                path, f"{value} is not a multiple of {BLOCK_BYTES}; near it are {lower} and {upper}"
            )
        else:
            return value
        return 0

    def _rate(self, path: KeyPath, table: dict[str, Any]) -> int:
        """Return bytes per second, 0 where the key is not given."""
        try:
            rate = units.parse_rate(table[path[-1]]) if path[-1] in table else None
        except units.UnitInvalid as refusal:
            self._complain(path, str(refusal))
            return 0
        if rate is not None and not 1 <= rate <= RATE_BYTES_PER_S_MAX:
            self._complain(path, f"must be 1 to 2**60 bytes per second, not {rate}")
        return rate or 0

    def _path(self, path: KeyPath, table: dict[str, Any], default: str | None) -> str | None:
        """Return an absolute path; a relative one starts at the main file's folder."""
        text: str | None = table.get(path[-1], default)
        if text is None:
            return None
        if not text or "\0" in text:
            self._complain(path, "must be a path, not empty and without NUL")
            return None
        return os.fspath(self._folder / text)

    def _socket(self, path: KeyPath, table: dict[str, Any], default: str | None) -> str | None:
        found = self._path(path, table, default)
        if found is not None and len(os.fsencode(found)) > UNIX_PATH_BYTES_MAX:
            self._complain(
                path,
                f"{found} has {len(os.fsencode(found))} bytes; "
                f"the path of a Unix socket has {UNIX_PATH_BYTES_MAX} at most",
            )
        return found

    def _address(self, path: KeyPath, table: dict[str, Any]) -> Address | None:
        return self._checked_address(path, table[path[-1]]) if path[-1] in table else None

    def _checked_address(self, path: KeyPath, text: str) -> Address | None:
        try:
            address = parse_address(text)
        except ValueError as failure:
            self._complain(path, str(failure))
            return None
        tls = "tls" in self._contents.values
        encrypted = tls and (path == ("node", "listen") or path[0] == "peers")
        ways = "[node] insecure = true"
        if path == ("nbd", "listen"):
            encrypted = self._contents.table("nbd").get("tls") == "required"
            ways += ', or [nbd] tls = "required"'
        if not address.is_loopback and not self._insecure and not encrypted:
            self._complain(
                path,
                f"{address} is beyond loopback: plaintext is only allowed on loopback "
                f"unless {ways}",
            )
        return address

    def _check_nbd_tls(self, config: Config) -> None:
        nbd = config.nbd
        if nbd.tls is not TlsMode.OFF and "tls" not in self._contents.values:
            self._complain(
                ("nbd", "tls"), f'"{nbd.tls.value}" needs the certificates of a [tls] table'
            )
        for volume in config.volumes.values():
            path = ("volumes", volume.name, "clients")
            if volume.clients and nbd.tls is TlsMode.OFF:
                self._complain(path, 'needs [nbd] tls = "required" (or "allowed")')
            elif volume.clients and not nbd.tls_verify_clients:
                self._complain(
                    path, "needs [nbd] tls_verify_clients = true: else nobody has a name"
                )
            if not all(volume.clients):
                self._complain(path, "a client's name is not empty")

    def _check_peers(self, config: Config) -> None:
        for peer in config.peers.values():
            path = ("peers", peer.name)
            if peer.name == config.node.name:
                self._complain(path, "is this node's own name; a node is not its own peer")
            for address in peer.addresses:
                if config.node.listen is not None and address.reaches(config.node.listen):
                    self._complain(
                        path, f"{address} is this node's own listen address {config.node.listen}"
                    )

    def _check_volumes(self, config: Config) -> None:
        for volume in config.volumes.values():
            path = ("volumes", volume.name, "peers")
            if len(volume.peers) > PEERS_PER_VOLUME_MAX:
                self._complain(
                    path,
                    f"names {len(volume.peers)} peers; this release supports at most "
                    f"{PEERS_PER_VOLUME_MAX} peer per volume",
                )
            for peer in volume.peers:
                if peer not in config.peers:
                    self._complain(path, f"names {peer!r}, but there is no [peers.{peer}] table")
        needs_listen = any(volume.peers for volume in config.volumes.values())
        if needs_listen and config.node.listen is None and not self._reported("node.listen"):
            self._complain(
                ("node", "listen"), 'required by volumes with a peer; add  listen = "0.0.0.0:7790"'
            )
        taken: dict[object, str] = {}
        for volume in config.volumes.values():
            for identity in _backing_identities(volume.backing):
                other = taken.setdefault(identity, volume.name)
                if other != volume.name:
                    self._complain(
                        ("volumes", volume.name, "backing"),
                        f"{volume.backing} is the backing of volume {other} too; "
                        "each volume needs its own",
                    )
                    break

    def _check_listeners(self, config: Config) -> None:
        sockets = (("nbd.socket", config.nbd.socket), ("node.control", config.node.control))
        if sockets[0][1] and sockets[0][1] == sockets[1][1]:
            self._complain(("nbd", "socket"), "is the same socket as node.control")
        listeners = [
            (("node", "listen"), config.node.listen),
            (("node", "metrics"), config.node.metrics),
            (("nbd", "listen"), config.nbd.listen),
        ]
        for index, (path, address) in enumerate(listeners):
            for other_path, other in listeners[:index]:
                if address is not None and other is not None and address.collides(other):
                    self._complain(path, f"{address} is taken by {'.'.join(other_path)} = {other}")

    def _reported(self, key: str) -> bool:
        return any(f": {key}: " in line for line in self._contents.problems)


def _backing_identities(backing: str) -> Iterator[object]:
    """Yield everything by which two spellings of one backing are recognised."""
    if not backing:
        return
    yield backing
    yield os.path.realpath(backing)
    try:
        found = os.stat(backing)
    except OSError:
        # A backing that does not exist yet is created later; one that cannot be looked at is
        # reported by the worker that opens it.
        return
    yield (found.st_dev, found.st_ino)

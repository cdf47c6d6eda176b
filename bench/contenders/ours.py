"""This project: a pair of `repld`, one `repld` alone, and the bare `python -m nbdserver FILE`."""

from __future__ import annotations

import contextlib
import enum
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.certificates import server_certificates, unverified
from bench.contender import Contender, Kind, Place, Served
from bench.processes import ContenderBroke, accepts, running
from repl.build import COMPILED, INTERPRETED
from tests.daemon import PORTS, ROOT, DeadlineMissed, Node, VolumeSpec
from tests.pair import is_in_sync

VOLUME = "r0"
#: This tree with its hot path compiled, as an installation has it (deploy/setup/compile.sh).
COMPILED_ROOT = ROOT / "build/compiled"


def product_root() -> Path:
    """Return the folder of what is measured: the compiled build, or without one the sources."""
    return COMPILED_ROOT if (COMPILED_ROOT / "compiled-stamp").exists() else ROOT


def build_of(root: Path) -> str:
    """Return which build of the hot path a tree holds, as `repl.build` names it."""
    return COMPILED if any((root / "repl/core").glob("*.so")) else INTERPRETED


def commit_of(root: Path) -> str:
    """Return the commit of a checkout, with a `+` if its files differ from it."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "no commit"


class Tls(enum.Enum):
    """What is encrypted."""

    NOWHERE = enum.auto()
    PEERS = enum.auto()
    EVERYWHERE = enum.auto()


class Repl(Contender):
    """Two nodes that mirror, or one alone; from this checkout or from another one."""

    kind = Kind.OURS

    def __init__(
        self,
        key: str,
        title: str,
        *,
        replicated: bool,
        tls: Tls = Tls.NOWHERE,
        root: Path | None = None,
    ) -> None:
        self.key = key
        self.title = title
        self.replicated = replicated
        self._tls = tls
        self._root = root or product_root()

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return f"{commit_of(self._root)}, {build_of(self._root)}"

    @contextlib.contextmanager
    def serve(self, place: Place) -> Iterator[Served]:
        volumes = (VolumeSpec(VOLUME, place.size_bytes),)
        names = ("alpha", "beta") if self.replicated else ("alpha",)
        nodes = [Node(name, place.folder / name, volumes, root=self._root) for name in names]
        metrics_port = PORTS.take()
        with contextlib.ExitStack() as stack:
            if self.replicated:
                alpha, beta = nodes
                beta.peer = ("alpha", alpha.peer_port)
                # The node whose name sorts lower dials: alpha.
                alpha.peer = ("beta", stack.enter_context(place.link(beta.peer_port)))
            if self._tls is not Tls.NOWHERE:
                give_certificates(nodes, place.folder / "tls")
            if self._tls is Tls.EVERYWHERE:
                encrypt_for_clients(nodes[0])
            for node in nodes:
                stack.callback(node.clean_up)
            with_metrics(nodes[0], metrics_port)
            self._start(nodes)
            groups = [node.groups[-1] for node in nodes]
            uri = nodes[0].uri(VOLUME)
            if self._tls is Tls.EVERYWHERE:
                uri = unverified(uri)
            yield Served(
                uri,
                (groups[0],),
                tuple(groups[1:]),
                tuple(node.backing(VOLUME) for node in nodes),
                tuple(nodes),
                metrics_port,
            )

    def _start(self, nodes: list[Node]) -> None:
        try:
            for node in nodes:
                node.start(wait=False)
            for node in nodes:
                node.wait_answering()
            if self.replicated:
                wait_in_sync(nodes)
            nodes[0].wait_volume(lambda v: v["promotable"]["ok"], "may be promoted", VOLUME)
            nodes[0].promote(VOLUME)
            if self.replicated:
                wait_in_sync(nodes)
        except (DeadlineMissed, RuntimeError, AssertionError) as error:
            raise ContenderBroke(str(error)) from error


def give_certificates(nodes: list[Node], folder: Path) -> None:
    """Make an authority and a certificate for each node, and let the nodes use them."""
    nodes[0].ctl_ok("tls", "init", str(folder), *(node.name for node in nodes))
    for node in nodes:
        node.tls_folder = folder


def encrypt_for_clients(node: Node) -> None:
    """Have clients come by TLS, too; `give_certificates` came before."""
    node.nbd_options = ('tls = "required"', "tls_verify_clients = false")


def with_metrics(node: Node, port: int) -> None:
    """Write the node's configuration with a metrics listener."""
    lines = node.config_text().splitlines()
    lines.insert(lines.index("[node]") + 1, f'metrics = "127.0.0.1:{port}"')
    node.write_config("\n".join(lines))


def wait_in_sync(nodes: list[Node]) -> None:
    """Wait until both copies are whole and joined."""
    for node in nodes:
        node.wait_volume(is_in_sync, "is in sync", VOLUME)


class NbdServer(Contender):
    """`python -m nbdserver FILE`: what our NBD server costs without any replication."""

    kind = Kind.OURS
    replicated = False

    def __init__(self, key: str, title: str, *, tls: bool = False) -> None:
        self.key = key
        self.title = title
        self._tls = tls

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return f"{commit_of(ROOT)}, {build_of(product_root())}"

    @contextlib.contextmanager
    def serve(self, place: Place) -> Iterator[Served]:
        backing, socket = place.backing("plain"), place.folder / "nbd.sock"
        command = [sys.executable, "-m", "nbdserver", str(backing), "--socket", str(socket)]
        uri = f"nbd+unix:///?socket={socket}"
        if self._tls:
            folder = server_certificates(place.folder / "tls")
            command += ["--tls=required", f"--tls-certificates={folder}"]
            uri = unverified(uri)
        log = place.folder / "nbdserver.log"
        with running(command, log, lambda: accepts(socket), cwd=product_root()) as group:
            yield Served(uri, (group,), (), (backing,))

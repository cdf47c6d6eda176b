"""Other projects' NBD servers over a plain file: nbdkit, qemu-nbd, nbd-server."""

from __future__ import annotations

import abc
import contextlib
import grp
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from bench.certificates import server_certificates, unverified
from bench.contender import Contender, Kind, Place, Served
from bench.contenders.qemu import first_line
from bench.processes import accepts, missing_command, running, running_daemon
from tests.daemon import PORTS


class PlainServer(Contender):
    """One program that serves one file on a Unix socket."""

    kind = Kind.PEER
    replicated = False
    program: str
    export = ""

    def missing(self) -> str:
        return missing_command(self.program)

    def version(self) -> str:
        return first_line([self.program, "--version"])

    @abc.abstractmethod
    def command(self, place: Place, backing: Path, socket: Path) -> list[str]:
        """Return how to serve `backing` on `socket`, in the foreground."""

    def uri(self, socket: Path) -> str:
        """Return under which name clients find the export."""
        return f"nbd+unix:///{self.export}?socket={socket}"

    @contextlib.contextmanager
    def run(self, place: Place, command: list[str], socket: Path) -> Iterator[int]:
        """Run the command until the end of the block; yield its process group."""
        with running(command, place.folder / "server.log", lambda: accepts(socket)) as group:
            yield group

    @contextlib.contextmanager
    def serve(self, place: Place) -> Iterator[Served]:
        backing, socket = place.backing("plain"), place.folder / "nbd.sock"
        command = self.command(place, backing, socket)
        with self.run(place, command, socket) as group:
            yield Served(self.uri(socket), (group,), (), (backing,))


class Nbdkit(PlainServer):
    program = "nbdkit"

    def __init__(self, key: str, title: str, *, tls: bool = False) -> None:
        self.key = key
        self.title = title
        self._tls = tls

    def command(self, place: Place, backing: Path, socket: Path) -> list[str]:
        tls: list[str] = []
        if self._tls:
            folder = server_certificates(place.folder / "tls")
            tls = ["--tls=require", f"--tls-certificates={folder}"]
        return [self.program, "--foreground", "--unix", str(socket), *tls, "file", str(backing)]

    def uri(self, socket: Path) -> str:
        plain = super().uri(socket)
        return unverified(plain) if self._tls else plain


class QemuNbd(PlainServer):
    key = "qemu-nbd"
    title = "qemu-nbd"
    program = "qemu-nbd"

    def command(self, place: Place, backing: Path, socket: Path) -> list[str]:
        return [
            *(self.program, "--persistent", "--shared=0", "--format=raw", "--cache=writeback"),
            *(f"--socket={socket}", str(backing)),
        ]


class NbdServerC(PlainServer):
    """nbd-server 3.x: a process for each connection."""

    key = "nbd-server"
    title = "nbd-server"
    program = "nbd-server"
    export = "r0"

    def version(self) -> str:
        return first_line([self.program, "-V"])

    def command(self, place: Place, backing: Path, socket: Path) -> list[str]:
        config = place.folder / "nbd-server.conf"
        user = pwd.getpwuid(os.getuid()).pw_name
        group = grp.getgrgid(os.getgid()).gr_name
        # It listens on TCP as well, whether it is asked to or not.
        config.write_text(
            f"[generic]\n user = {user}\n group = {group}\n unixsock = {socket}\n"
            f" listenaddr = 127.0.0.1\n port = {PORTS.take()}\n"
            f"[{self.export}]\n exportname = {backing}\n filesize = {place.size_bytes}\n"
            " flush = true\n fua = true\n"
        )
        return [self.program, "-C", str(config), "-p", str(place.folder / "pid")]

    @contextlib.contextmanager
    def run(self, place: Place, command: list[str], socket: Path) -> Iterator[int]:
        # In the foreground it serves one connection and ends.
        log, pid_file = place.folder / "server.log", place.folder / "pid"
        with running_daemon(command, pid_file, log, lambda: accepts(socket)) as group:
            yield group

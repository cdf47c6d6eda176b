"""One real `repld` on loopback and the `replctl` that talks to it: start, stop, kill, ask, wait.

The daemon is its own session and process group, so that `kill` takes it and all its workers at
once. The page cache survives that: it is a crash of processes, not a loss of power.

Waits poll with a deadline; a missed deadline says what was awaited, what was seen last, and how the
log ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from repl.cli.client import Client
from repl.errors import ReplError

ROOT = Path(__file__).resolve().parent.parent

MIB = 1 << 20
DEFAULT_SIZE_BYTES = 64 * MIB
#: For a daemon to open its control socket, and for one command to be answered.
START_DEADLINE_S = 30.0
COMMAND_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0
#: For a state to come: reconnects, timeouts of seconds, resyncs of small volumes, a busy machine.
STATE_DEADLINE_S = 60.0
POLL_PAUSE_S = 0.03
LOG_TAIL_LINES = 40

_T = TypeVar("_T")
Json = dict[str, Any]


class DeadlineMissed(AssertionError):
    """An awaited state did not come; the text says what was seen instead."""


def wait_for(
    seen: Callable[[], _T | None], deadline_s: float = STATE_DEADLINE_S, what: str = ""
) -> _T:
    """Poll `seen` until it returns something true; return that. Raises `DeadlineMissed`.

    An AssertionError or a failed command inside `seen` counts as "not yet" and is shown at the end.
    """
    deadline = time.monotonic() + deadline_s
    last: object = None
    while True:
        try:
            value = seen()
            if value:
                return value
            last = value
        except (AssertionError, CommandFailed, OSError) as error:
            last = error
        if time.monotonic() >= deadline:
            raise DeadlineMissed(f"not within {deadline_s:g} s: {what or seen}; last seen: {last}")
        time.sleep(POLL_PAUSE_S)


class CommandFailed(AssertionError):
    """A `replctl` that was expected to succeed did not."""


class _Ports:
    """Hands out loopback ports below the kernel's ephemeral range, where no outgoing connection can
    take one between the choice and its use."""

    FIRST, LAST = 15000, 32000

    def __init__(self) -> None:
        span = self.LAST - self.FIRST
        self._next = self.FIRST + (os.getpid() * 97) % span

    def take(self) -> int:
        for _ in range(self.LAST - self.FIRST):
            port = self._next
            self._next = port + 1 if port + 1 < self.LAST else self.FIRST
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
            return port
        raise OSError("no free port on loopback")


PORTS = _Ports()


def process_group_members(group: int) -> list[int]:
    """Return the living processes (zombies aside) of a process group."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The command's name may hold spaces and brackets; what follows its last one is regular.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            members.append(int(entry.name))
    return members


@dataclass(frozen=True)
class VolumeSpec:
    """A volume as both nodes configure it."""

    name: str = "r0"
    size_bytes: int = DEFAULT_SIZE_BYTES
    #: Further lines of its table.
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """Where a node is on the network: its address, and the process whose network it shares."""

    address: str = "127.0.0.1"
    #: None: this machine's own network.
    network_of_pid: int | None = None


@dataclass
class Node:
    """One `repld`: its folder, its configuration and its process."""

    name: str
    folder: Path
    volumes: tuple[VolumeSpec, ...] = (VolumeSpec(),)
    peer_port: int = field(default_factory=PORTS.take)
    nbd_port: int = field(default_factory=PORTS.take)
    #: Peer's name and port; None for a node alone.
    peer: tuple[str, int] | None = None
    place: Place = Place()
    peer_address: str = "127.0.0.1"
    timeouts: dict[str, float] = field(default_factory=dict)
    #: Lines for the `[nbd]` table.
    nbd_options: tuple[str, ...] = ()
    #: A folder with NAME.crt, NAME.key and ca.crt: the peers speak TLS then.
    tls_folder: Path | None = None
    #: Where the backing files are, if not in `folder`.
    disk_folder: Path | None = None
    #: The checkout whose `repld` and `replctl` are run.
    root: Path = ROOT
    process: subprocess.Popen[bytes] | None = None
    #: Every process group this node ever had; all of them must be empty at the end.
    groups: list[int] = field(default_factory=list)

    @property
    def control(self) -> Path:
        return self.folder / "repld.sock"

    @property
    def nbd_socket(self) -> Path:
        return self.folder / "nbd.sock"

    @property
    def config_path(self) -> Path:
        return self.folder / "repld.toml"

    @property
    def log_path(self) -> Path:
        return self.folder / "repld.log"

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    def backing(self, volume: str = "r0") -> Path:
        return (self.disk_folder or self.folder) / f"{volume}.img"

    def uri(self, volume: str = "r0") -> str:
        """NBD URI over the Unix socket."""
        return f"nbd+unix:///{volume}?socket={self.nbd_socket}"

    def tcp_uri(self, volume: str = "r0") -> str:
        return f"nbd://127.0.0.1:{self.nbd_port}/{volume}"

    # -- configuration ---------------------------------------------------------------------------

    def config_text(self) -> str:
        """Return the TOML for this node; tests of bad input change it before writing it."""
        lines = [
            "[node]",
            f'name = "{self.name}"',
            f'state_dir = "{self.state_dir}"',
            f'control = "{self.control}"',
            f'listen = "{self.place.address}:{self.peer_port}"',
            *(["insecure = true"] if self.place.network_of_pid is not None else []),
            "",
            "[nbd]",
            f'socket = "{self.nbd_socket}"',
            f'listen = "127.0.0.1:{self.nbd_port}"',
            *self.nbd_options,
            "",
        ]
        if self.timeouts:
            lines += ["[timeouts]", *(f"{key} = {value}" for key, value in self.timeouts.items())]
            lines.append("")
        if self.tls_folder is not None:
            place, name = self.tls_folder, self.name
            files = {"certificate": f"{name}.crt", "key": f"{name}.key", "authority": "ca.crt"}
            lines += ["[tls]", *(f'{key} = "{place / file}"' for key, file in files.items()), ""]
        if self.peer is not None:
            lines += [
                f"[peers.{self.peer[0]}]",
                f'address = "{self.peer_address}:{self.peer[1]}"',
                "",
            ]
        for volume in self.volumes:
            peers = f'["{self.peer[0]}"]' if self.peer is not None else "[]"
            lines += [
                f"[volumes.{volume.name}]",
                f"size = {volume.size_bytes}",
                f'backing = "{self.backing(volume.name)}"',
                f"peers = {peers}",
                *volume.options,
                "",
            ]
        return "\n".join(lines)

    def write_config(self, text: str | None = None) -> None:
        self.folder.mkdir(exist_ok=True)
        self.config_path.write_text(text if text is not None else self.config_text())

    # -- the process -----------------------------------------------------------------------------

    def start(self, *, wait: bool = True) -> None:
        """Start `repld` and wait until its control socket answers."""
        assert self.process is None, f"{self.name} runs already"
        if not self.config_path.exists():
            self.write_config()
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.repld_command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.root,
                start_new_session=True,
            )
        self.groups.append(self.process.pid)
        if wait:
            self.wait_answering()

    def repld_command(self) -> list[str]:
        enter = []
        if self.place.network_of_pid is not None:
            # The network only: files, and so the control and NBD sockets, stay in reach.
            enter = ["nsenter", "-t", str(self.place.network_of_pid), "-n"]
        return [*enter, sys.executable, "-m", "repl.node.main", "--config", str(self.config_path)]

    def wait_answering(self) -> None:
        def answers() -> bool:
            process = self.process
            assert process is not None
            status = process.poll()
            if status is not None:
                raise RuntimeError(f"repld {self.name} exited with {status}\n{self.log_tail()}")
            return bool(self.status())

        wait_for(answers, START_DEADLINE_S, f"repld {self.name} answers\n{self.log_tail()}")

    def run_to_exit(self, deadline_s: float = START_DEADLINE_S) -> subprocess.CompletedProcess[str]:
        """Run `repld` where it is expected to refuse; return its exit status and words."""
        process = subprocess.Popen(
            self.repld_command(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.root,
            start_new_session=True,
        )
        self.groups.append(process.pid)
        try:
            out, err = process.communicate(timeout=deadline_s)
        except subprocess.TimeoutExpired:
            _signal_group(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            raise DeadlineMissed(f"repld {self.name} did not exit; it said:\n{err}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def stop(self) -> int:
        """Stop cleanly (SIGTERM), wait, and return the exit status."""
        self.begin_stop()
        return self.await_exit()

    def begin_stop(self) -> None:
        """Ask for a clean stop and do not wait for it."""
        assert self.process is not None, f"{self.name} does not run"
        self.process.terminate()

    def await_exit(self) -> int:
        process = self.process
        assert process is not None
        try:
            status = process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise DeadlineMissed(f"{self.name} does not stop\n{self.log_tail()}") from None
        wait_for(
            lambda: not process_group_members(process.pid),
            what=f"workers of {self.name} end with it",
        )
        self.process = None
        return status

    def kill(self) -> None:
        """SIGKILL the daemon and its workers at once and wait until none is left."""
        process = self.process
        assert process is not None, f"{self.name} does not run"
        _signal_group(process.pid, signal.SIGKILL)
        process.wait(STOP_DEADLINE_S)
        wait_for(lambda: not process_group_members(process.pid), what=f"{self.name} is dead")
        self.process = None

    def freeze(self) -> None:
        """SIGSTOP the daemon and its workers at once: it runs no more, but its sockets stay."""
        assert self.process is not None, f"{self.name} does not run"
        _signal_group(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT after `freeze`: it goes on where it was, not knowing that time has passed."""
        assert self.process is not None, f"{self.name} does not run"
        _signal_group(self.process.pid, signal.SIGCONT)

    def worker_pid(self, volume: str = "r0") -> int:
        pid = int(self.volume(volume)["worker_pid"])
        assert pid > 0
        return pid

    def signal_worker(self, number: signal.Signals, volume: str = "r0") -> int:
        """Send a signal to one volume's worker; return its process id."""
        pid = self.worker_pid(volume)
        os.kill(pid, number)
        return pid

    def clean_up(self) -> list[int]:
        """Kill whatever is left of this node; return the processes that resisted."""
        for group in self.groups:
            _signal_group(group, signal.SIGKILL)
        if self.process is not None:
            self.process.wait(STOP_DEADLINE_S)
            self.process = None
        with contextlib.suppress(DeadlineMissed):
            wait_for(lambda: not self._survivors(), 10.0)
        return self._survivors()

    def _survivors(self) -> list[int]:
        return [pid for group in self.groups for pid in process_group_members(group)]

    def log_text(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        tail = "\n".join(self.log_text().splitlines()[-lines:])
        return f"--- end of {self.name}'s log\n{tail}\n---"

    # -- the operator ----------------------------------------------------------------------------

    def ctl(
        self, *arguments: str, deadline_s: float = COMMAND_DEADLINE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run `replctl` against this node and return what it said, whatever it was."""
        return subprocess.run(
            [sys.executable, "-m", "repl.cli.main", "--socket", str(self.control), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.root,
            timeout=deadline_s,
            check=False,
        )

    def ctl_ok(self, *arguments: str) -> str:
        """Run `replctl`, which must succeed; return its standard output."""
        done = self.ctl(*arguments)
        if done.returncode != 0:
            raise CommandFailed(
                f"replctl {' '.join(arguments)} on {self.name} exited with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}\n{self.log_tail()}"
            )
        return done.stdout

    def status(self) -> Json:
        """Return the object of `replctl --json status`, asked as it asks: by a process for each
        look, waiting for a state would cost more processor time than reaching it."""
        try:
            return Client(str(self.control)).status()
        except ReplError as error:
            raise CommandFailed(f"{self.name} shows no status: {error}") from error

    def volume(self, volume: str = "r0") -> Json:
        for entry in self.status()["volumes"]:
            if entry["name"] == volume:
                assert isinstance(entry, dict)
                return entry
        raise AssertionError(f"{self.name} shows no volume {volume}")

    def peer_of(self, volume: str = "r0") -> Json:
        """Return what this node's status says of the volume's one peer."""
        (peer,) = self.volume(volume)["peers"]
        assert isinstance(peer, dict)
        return peer

    def promote(self, volume: str = "r0", *options: str) -> None:
        self.ctl_ok("promote", volume, *options)

    def wait_volume(
        self,
        condition: Callable[[Json], object],
        what: str,
        volume: str = "r0",
        deadline_s: float = STATE_DEADLINE_S,
    ) -> Json:
        """Wait until the volume's status satisfies `condition`; return that status."""
        last: Json = {}

        def seen() -> Json | None:
            nonlocal last
            last = self.volume(volume)
            return last if condition(last) else None

        try:
            return wait_for(seen, deadline_s, f"{self.name}: {what}")
        except DeadlineMissed as missed:
            shown = json.dumps(last, indent=1)
            raise DeadlineMissed(f"{missed}\n{shown}\n{self.log_tail()}") from None

    def wait_alone(self, volume: str = "r0") -> Json:
        """Wait until this node has noticed that its peer is gone."""
        return self.wait_volume(
            lambda v: v["peers"][0]["connection_state"] != "connected",
            "has noticed the loss",
            volume,
        )

    def wait_closed(self, volume: str = "r0") -> Json:
        """Wait until the worker has said why it cannot open the volume."""
        return self.wait_volume(
            lambda v: v["problem"] and v["problem"]["code"] != "WORKER_SILENT",
            "says why it is closed",
            volume,
        )

    def wait_open(self, volume: str = "r0") -> Json:
        return self.wait_volume(lambda v: not v["problem"], "is open", volume)

    def wait_primary(self, volume: str = "r0") -> Json:
        return self.wait_volume(
            lambda v: v["role"] == "primary" and v["serving"], "is primary and serves", volume
        )


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)

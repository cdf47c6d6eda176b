"""Two `repld` on loopback as an operator would run them, for the demonstration.

Owns their folder, configuration files and processes. Every daemon is its own process group, so that
a kill takes its workers with it.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
VOLUME = "r0"
VOLUME_BYTES = 256 << 20

START_DEADLINE_S = 20.0
STATE_DEADLINE_S = 45.0
COMMAND_DEADLINE_S = 50.0
POLL_PAUSE_S = 0.05


class DemoFailed(Exception):
    """Something did not go as promised; the text says what."""


def installed_command(name: str, module: str) -> list[str]:
    """Return how to run one of our commands: the installed script, or its module where none is."""
    script = Path(sys.executable).parent / name
    return [str(script)] if script.exists() else [sys.executable, "-m", module]


REPLD = installed_command("repld", "repl.node.main")
REPLCTL = installed_command("replctl", "repl.cli.main")


def wait_until(seen: Callable[[], object], what: str, deadline_s: float = STATE_DEADLINE_S) -> None:
    """Poll until `seen` returns something true. Raises DemoFailed naming `what`."""
    deadline = time.monotonic() + deadline_s
    while not seen():
        if time.monotonic() > deadline:
            raise DemoFailed(f"{what}: not within {deadline_s:g} s")
        time.sleep(POLL_PAUSE_S)


def free_ports(count: int) -> list[int]:
    """Return so many TCP ports of loopback that are free now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def group_members(group: int) -> list[int]:
    """Return the processes of a process group, zombies aside."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] not in "ZX":
                    members.append(int(entry.name))
    return members


class DemoNode:
    """One node: alpha or beta."""

    def __init__(self, folder: Path, name: str, port: int, peer_name: str, peer_port: int) -> None:
        self.name = name
        self.folder = folder / name
        self.folder.mkdir()
        self.backing = self.folder / f"{VOLUME}.img"
        self.control = self.folder / "repld.sock"
        self.nbd_socket = self.folder / "nbd.sock"
        self.log = self.folder / "repld.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._groups: list[int] = []
        self.config = self.folder / "repld.toml"
        self.config.write_text(
            f'[node]\nname = "{name}"\nstate_dir = "{self.folder / "state"}"\n'
            f'control = "{self.control}"\nlisten = "127.0.0.1:{port}"\n\n'
            f'[nbd]\nsocket = "{self.nbd_socket}"\n\n'
            f'[peers.{peer_name}]\naddress = "127.0.0.1:{peer_port}"\n\n'
            f'[volumes.{VOLUME}]\nsize = "{VOLUME_BYTES >> 20}MiB"\n'
            f'backing = "{self.backing}"\npeers = ["{peer_name}"]\n'
        )

    @property
    def uri(self) -> str:
        return f"nbd+unix:///{VOLUME}?socket={self.nbd_socket}"

    def start(self) -> None:
        """Start repld and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*REPLD, "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )
        process = self.process
        self._groups.append(process.pid)

        def answers() -> bool:
            if process.poll() is not None:
                raise DemoFailed(f"repld on {self.name} ended with status {process.returncode}")
            return self.try_ctl("status").returncode == 0

        wait_until(answers, f"repld on {self.name} answers", START_DEADLINE_S)

    def kill_group(self) -> None:
        """SIGKILL to the daemon and its workers, all at once."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        """Stop cleanly. Raises DemoFailed if it does not end, or not with status 0."""
        assert self.process is not None
        self.process.terminate()
        try:
            status = self.process.wait(START_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"repld on {self.name} does not stop") from None
        self.process = None
        if status != 0:
            raise DemoFailed(f"repld on {self.name} stopped with status {status}")

    def clean_up(self) -> list[int]:
        """Kill whatever is left; return what resisted."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
            self.process = None
        with contextlib.suppress(DemoFailed):
            wait_until(lambda: not self._left(), "all workers end", 10)
        return self._left()

    def _left(self) -> list[int]:
        return [pid for group in self._groups for pid in group_members(group)]

    def try_ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run replctl on this node, whatever comes of it."""
        return subprocess.run(
            [*REPLCTL, "--socket", str(self.control), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )

    def ctl(self, *arguments: str) -> str:
        """Run replctl, which must succeed."""
        done = self.try_ctl(*arguments)
        if done.returncode != 0:
            raise DemoFailed(
                f"replctl {' '.join(arguments)} on {self.name} ended with {done.returncode}:\n"
                f"{done.stdout}{done.stderr}"
            )
        return done.stdout

    def volume(self) -> dict[str, Any]:
        """Return the volume's object of `replctl --json status`."""
        (volume,) = json.loads(self.ctl("--json", "status", VOLUME))["volumes"]
        assert isinstance(volume, dict)
        return volume

    def peer(self) -> dict[str, Any]:
        (peer,) = self.volume()["peers"]
        assert isinstance(peer, dict)
        return peer

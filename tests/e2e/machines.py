"""Two pretended machines for the README's commands: namespaces joined by a pair of veth devices.

A machine has a network, a mount table, a host name and a process tree of its own. `/run`, `/srv`,
`/var/lib` and `/etc/repl` are private to it, so that commands may name the paths that a real
installation uses. Everything hangs on one process, the machine's first: when it ends the kernel
ends all others in there and takes away the mounts and the network device. It waits on a pipe of
ours, so that even our own death ends it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.daemon import ROOT, wait_for

ADDRESSES = {"alpha": "10.0.0.1", "beta": "10.0.0.2"}
BOOT_DEADLINE_S = 20.0
SCRIPT_DEADLINE_S = 120.0
UNSHARE = ["unshare", "--net", "--mount", "--uts", "--pid"]
UNSHARE += ["--fork", "--kill-child", "--mount-proc"]
ENTER = ["nsenter", "--mount", "--uts", "--net", "--pid", "--wd=/root"]

#: What the first process of a machine does before it says that it is up. `$1` is its name, `$2` an
#: empty folder of its own, `$3` this project's. /etc is a copy, since a folder in it must come and
#: go with the machine; the project stays visible wherever it lies.
BOOT = """
set -eu
hostname "$1"
mount --make-rprivate /
mkdir "$2/etc"
cp -a /etc/. "$2/etc/" 2>/dev/null || true
mount --bind "$2/etc" /etc
mkdir "$2/project"
mount --bind "$3" "$2/project"
for folder in /run /srv /var/lib; do mount -t tmpfs -o mode=755 none "$folder"; done
[ -e "$3/pyproject.toml" ] || { mkdir -p "$3"; mount --bind "$2/project" "$3"; }
ip link set lo up
echo up
while read -r _; do :; done
"""


@dataclass
class Machine:
    """One namespace set; `pid` is its first process as seen from outside."""

    name: str
    pid: int

    def run(self, script: str, output: Path) -> subprocess.CompletedProcess[bytes]:
        """Run a shell script inside, with this installation's commands on PATH.

        What it says goes to a file, since a daemon that it leaves running would hold a pipe open.
        """
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        with output.open("ab") as said:
            return subprocess.run(
                [*ENTER, "-t", str(self.pid), "bash", "-euo", "pipefail", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={"PATH": path, "HOME": "/root", "LANG": "C.UTF-8"},
                timeout=SCRIPT_DEADLINE_S,
                check=False,
            )

    def write_file(self, path: str, text: str) -> None:
        """Write a file inside, making its folder."""
        command = ["nsenter", "-t", str(self.pid), "-m", "sh", "-c"]
        script = 'mkdir -p "$(dirname "$1")" && cat > "$1"'
        subprocess.run([*command, script, "sh", path], input=text.encode(), check=True)

    def drop_what_arrives(self) -> None:
        """From now on no packet from the other machine gets in; what leaves is not touched."""
        _network(self, "nft", "add table ip faults")
        _network(self, "nft", "add chain ip faults in { type filter hook input priority 0 ; }")
        _network(self, "nft", "add rule ip faults in iifname eth0 drop")

    def take_what_arrives(self) -> None:
        """Undo `drop_what_arrives`."""
        _network(self, "nft", "delete table ip faults")

    def limit_what_leaves(self, rate_kbit_per_s: int) -> None:
        """Let no more than this out to the other machine; a queue of half a second, then loss."""
        rate = ("rate", f"{rate_kbit_per_s}kbit", "burst", "32kbit", "latency", "500ms")
        _network(self, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *rate)

    def unlimit_what_leaves(self) -> None:
        """Undo `limit_what_leaves`."""
        _network(self, "tc", "qdisc", "delete", "dev", "eth0", "root")


@contextmanager
def two_machines() -> Iterator[dict[str, Machine]]:
    """Yield alpha and beta, which reach each other at 10.0.0.1 and 10.0.0.2 over eth0."""
    folder = Path(tempfile.mkdtemp(prefix="repl-machines-"))
    holders: list[subprocess.Popen[bytes]] = []
    try:
        machines = {}
        for name in ADDRESSES:
            (folder / name).mkdir()
            holder = _boot(name, folder / name)
            holders.append(holder)
            machines[name] = Machine(name, _first_process(holder.pid))
        _connect(machines["alpha"], machines["beta"])
        yield machines
    finally:
        for holder in holders:
            assert holder.stdin is not None
            assert holder.stdout is not None
            holder.kill()  # with --kill-child the first process follows, and all others with it
            holder.stdin.close()
            holder.stdout.close()
            holder.wait()
        shutil.rmtree(folder)


def _boot(name: str, folder: Path) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(
        [*UNSHARE, "bash", "-c", BOOT, "machine", name, str(folder), str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert holder.stdout is not None
    said = holder.stdout.readline()
    assert said == b"up\n", f"{name} did not come up: {said!r}"
    return holder


def _first_process(unshare_pid: int) -> int:
    def child() -> int | None:
        children = Path(f"/proc/{unshare_pid}/task/{unshare_pid}/children").read_text().split()
        return int(children[0]) if children else None

    return wait_for(child, BOOT_DEADLINE_S, "the machine's first process exists")


def _connect(alpha: Machine, beta: Machine) -> None:
    """Join the two network namespaces; the devices are made inside, so the host never sees them."""
    _network(alpha, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    _network(alpha, "ip", "link", "set", "eth1", "netns", f"/proc/{beta.pid}/ns/net")
    _network(beta, "ip", "link", "set", "eth1", "name", "eth0")
    for machine in (alpha, beta):
        _network(machine, "ip", "address", "add", f"{ADDRESSES[machine.name]}/24", "dev", "eth0")
        _network(machine, "ip", "link", "set", "eth0", "up")


def _network(machine: Machine, *command: str) -> None:
    # Only the network is entered: `ip` finds the other machine's namespace by the host's /proc.
    subprocess.run(["nsenter", "-t", str(machine.pid), "-n", *command], check=True)

"""qemu-storage-daemon with two copies: its synchronous mirror, and its quorum driver.

The mirror is what qemu offers for a copy that is never behind: `blockdev-mirror` with
`copy-mode=write-blocking`. The export must exist *before* the job starts, or clients talk past the
mirror; the runner compares the copies, so a mirror that mirrors nothing cannot win.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.contender import Contender, Kind, Place, Served
from bench.processes import accepts, accepts_tcp, missing_command, running
from bench.qmp import Monitor
from tests.daemon import PORTS, wait_for

PROGRAM = "qemu-storage-daemon"
READY_DEADLINE_S = 60.0


class QemuPair(Contender):
    """Two daemons: one serves the copy over NBD, the other one writes to both."""

    kind = Kind.PEER
    replicated = True

    def __init__(self, key: str, title: str, *, unix: bool = False, quorum: bool = False) -> None:
        self.key = key
        self.title = title
        self._unix = unix
        self._quorum = quorum

    def missing(self) -> str:
        return missing_command(PROGRAM)

    def version(self) -> str:
        return first_line([PROGRAM, "--version"])

    @contextlib.contextmanager
    def serve(self, place: Place) -> Iterator[Served]:
        with contextlib.ExitStack() as stack:
            source, target = place.backing("primary"), place.backing("secondary")
            group, peer = self._secondary(stack, place, target)
            front, monitor = place.folder / "nbd.sock", place.folder / "qmp.sock"
            exported = "both" if self._quorum else "local"
            command = [
                PROGRAM,
                *("--blockdev", f"driver=file,node-name=local,filename={source}"),
                *("--blockdev", f"driver=nbd,node-name=peer,export=copy,{peer}"),
                *(self._quorum_arguments() if self._quorum else ()),
                *("--nbd-server", f"addr.type=unix,addr.path={front}"),
                *("--export", f"type=nbd,id=e,name=r0,node-name={exported},writable=on"),
                *("--chardev", f"socket,id=qmp,path={monitor},server=on,wait=off"),
                *("--monitor", "chardev=qmp"),
            ]
            log = place.folder / "primary.log"
            up = lambda: accepts(front) and monitor.exists()  # noqa: E731
            primary = stack.enter_context(running(command, log, up))
            if not self._quorum:
                start_mirror(monitor)
            yield Served(f"nbd+unix:///r0?socket={front}", (primary,), (group,), (source, target))

    def _quorum_arguments(self) -> Sequence[str]:
        # Both must take a write; a read is answered by the first child alone.
        node = "driver=quorum,node-name=both,vote-threshold=1,read-pattern=fifo"
        return ("--blockdev", f"{node},children.0=local,children.1=peer")

    def _secondary(
        self, stack: contextlib.ExitStack, place: Place, target: Path
    ) -> tuple[int, str]:
        """Serve the copy; return the process group and how the primary reaches it."""
        if self._unix:
            path = place.folder / "copy.sock"
            address = f"addr.type=unix,addr.path={path}"
            peer = f"server.type=unix,server.path={path}"
            ready = lambda: accepts(path)  # noqa: E731
        else:
            port = PORTS.take()
            address = f"addr.type=inet,addr.host=127.0.0.1,addr.port={port}"
            ready = lambda: accepts_tcp(port)  # noqa: E731
        command = [
            PROGRAM,
            *("--blockdev", f"driver=file,node-name=copy,filename={target}"),
            *("--nbd-server", address),
            *("--export", "type=nbd,id=e,name=copy,node-name=copy,writable=on"),
        ]
        group = stack.enter_context(running(command, place.folder / "secondary.log", ready))
        if not self._unix:
            outer = stack.enter_context(place.link(port))
            peer = f"server.type=inet,server.host=127.0.0.1,server.port={outer}"
        return group, peer


def start_mirror(monitor: Path) -> None:
    """Start the job and wait until every write goes to both."""
    with Monitor(monitor) as qmp:
        qmp.ask(
            "blockdev-mirror",
            **{
                "job-id": "mirror",
                "device": "local",
                "target": "peer",
                "sync": "full",
                "copy-mode": "write-blocking",
            },
        )
        wait_for(
            lambda: [job["status"] for job in qmp.ask("query-jobs")] == ["ready"],
            READY_DEADLINE_S,
            "the mirror is ready",
        )


def first_line(command: Sequence[str]) -> str:
    """Return the first line that a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout or done.stderr).splitlines()
    return lines[0].strip() if lines else "unknown"

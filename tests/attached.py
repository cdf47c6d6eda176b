"""What an attachment leaves on this machine, and two nodes that may attach: for end-to-end tests.

    with attaching_pair() as pair:
        ...
        traces = traces_of(pair.alpha)
        wait_for(lambda: not traces.left(), ...)

Leaving the `with` block cuts off whatever is still attached and fails if anything of it stays.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from repl.attach.loop_device import binding_of
from repl.attach.machine import Machine
from repl.attach.processes import ProcessId
from repl.attach.record import Folder, Record, folders
from tests.daemon import MIB, ROOT, Node, VolumeSpec, wait_for
from tests.pair import Pair

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 1 << 14, 1 << 18
WRITER = ROOT / "deploy/demo/writer.py"
#: The way whose traces are known here, also on machines that have a better one.
BY_NBDFUSE = ("--way", "nbdfuse")
#: Within which nothing of a dead attachment may be left.
GONE_DEADLINE_S = 10.0


@dataclass(frozen=True)
class Traces:
    """Everything that one attachment has made on this machine."""

    node_folder: Path
    record: Record

    def left(self) -> list[str]:
        """Return what is still there of it."""
        # Everything is mounted below the node's folder; its device's number may be taken again.
        points = [mount.point for mount in Machine().mounts()]
        left = [point for point in points if Path(point).is_relative_to(self.node_folder)]
        if self.record.mark and binding_of(self.record.device) == self.record.mark:
            left.append(self.record.device)
        processes = {"guardian": self.record.guardian, "program": self.record.program}
        left += [name for name, process in processes.items() if process and process.alive]
        folder = Folder(self.node_folder, self.record.volume).path
        if folder.exists():
            left.append(str(folder))
        return left


def traces_of(node: Node, volume: str = "r0") -> Traces:
    """Return the traces of what is attached on a node."""
    folder = Folder(node.folder, volume)
    record = folder.load()
    assert record is not None, f"{volume} is not attached on {node.name}"
    return Traces(node.folder, record)


def dead_devices() -> list[str]:
    """Return the loop devices of this machine that nobody serves any more."""
    dead = []
    for block in Path("/sys/block").glob("loop*/loop"):
        device = f"/dev/{block.parent.name}"
        try:
            with open(device, "rb") as opened:
                opened.read(512)
        except OSError:
            dead.append(device)
    return dead


def guardian_log(node: Node, volume: str = "r0") -> str:
    path = Folder(node.folder, volume).log_path
    return path.read_text() if path.exists() else ""


def frozen(node: Node, volume: str = "r0") -> str:
    """Return why the requests of an attachment wait; "" while they flow."""
    record = Folder(node.folder, volume).load()
    return record.frozen if record is not None else ""


@contextlib.contextmanager
def own_mounts() -> Iterator[None]:
    """Have a table of mounts of one's own: a namespace that another test makes meanwhile would
    otherwise copy what is mounted here, and keep its device in use after it was unmounted."""
    libc, folder = ctypes.CDLL(None, use_errno=True), os.getcwd()
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(libc.unshare(CLONE_NEWNS))
        _checked(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
        yield
    finally:
        _checked(libc.setns(before, CLONE_NEWNS))
        os.close(before)
        # Entering a namespace begins at its root.
        os.chdir(folder)


def _checked(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def attaching_pair(size_bytes: int = 96 * MIB) -> Iterator[Pair]:
    """Yield two nodes that do not run yet, with an empty folder `mnt` each."""
    with own_mounts(), Pair.make((VolumeSpec("r0", size_bytes),)) as pair:
        for node in pair.nodes:
            mount_point(node).mkdir(parents=True)
        try:
            yield pair
        except BaseException:
            for node in pair.nodes:
                print(f"--- the guardian on {node.name} said:\n{guardian_log(node)}")
            raise
        finally:
            left = [entry for node in pair.nodes for entry in _clean_up(node)]
        assert not left, f"left behind: {left}"


def mount_point(node: Node) -> Path:
    return node.folder / "mnt"


def _clean_up(node: Node) -> list[str]:
    """Cut off what is attached on a node; return what is left of it."""
    left = []
    for folder in folders(node.folder):
        record = folder.load()
        if record is None:
            continue
        record.guardian.signal(signal.SIGUSR1)
        if not record.guardian.alive:
            node.ctl("detach", folder.volume, "--force")
        traces = Traces(node.folder, record)
        with contextlib.suppress(AssertionError):
            wait_for(lambda traces=traces: not traces.left(), GONE_DEADLINE_S)  # type: ignore[misc]
        left += traces.left()
    return left


class FileWriter:
    """A process that writes files and fsyncs each; `promises` are name → SHA-256 of those done."""

    def __init__(self, folder: Path, seed: int, count: int) -> None:
        self.folder = folder
        self.promises: dict[str, str] = {}
        self.process = subprocess.Popen(
            [sys.executable, str(WRITER), "files", str(folder), str(seed), str(count)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    @property
    def started(self) -> ProcessId:
        return ProcessId.of(self.process.pid)

    def read(self, at_least: int) -> None:
        """Read promises until there are so many; the writer must not end before."""
        while len(self.promises) < at_least:
            assert self._read_one(), f"the writer ended after {len(self.promises)} files"

    def end(self) -> int:
        """Read all that is left to read and return the writer's exit status."""
        while self._read_one():
            pass
        return self.process.wait()

    def __enter__(self) -> FileWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.end()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read_one(self) -> bool:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.endswith("\n"):
            return False
        name, digest = line.split()
        self.promises[name] = digest
        return True


def broken_promises(folder: Path, promises: dict[str, str]) -> list[str]:
    """Return each file that is not there with the content that was promised."""
    broken = []
    for name, digest in promises.items():
        path = folder / name
        if not path.exists():
            broken.append(f"{name}: absent")
        elif hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            broken.append(f"{name}: another content")
    return broken


@contextlib.contextmanager
def stopped(node: Node) -> Iterator[None]:
    """Let the daemon and its workers answer nothing."""
    assert node.process is not None
    os.killpg(node.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(node.process.pid, signal.SIGCONT)


def refusal(node: Node, *arguments: str) -> dict[str, str]:
    """Run `replctl`, which must refuse with status 5; return the error."""
    done = node.ctl("--json", *arguments)
    assert done.returncode == 5, done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert isinstance(error, dict)
    return error

"""An unmounting that waits for a volume that does not answer: said as it is, ended by force."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from repl.attach.record import Folder, Phase
from tests.attached import (
    BY_NBDFUSE,
    GONE_DEADLINE_S,
    attaching_pair,
    mount_point,
    refusal,
    stopped,
    traces_of,
)
from tests.daemon import Node, wait_for

#: Opens a device, reads of it when it is told to, and says how that ended.
READER = """
import errno, os, sys
device = os.open(sys.argv[1], os.O_RDONLY)
print("open", flush=True)
sys.stdin.readline()
try:
    os.pread(device, 4096, 48 << 20)
    print("read")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


@contextlib.contextmanager
def hanging_umount(node: Node) -> Iterator[subprocess.Popen[str]]:
    """Have written something, and be unmounting it while the daemon is stopped."""
    here = mount_point(node)
    (here / "written").write_bytes(os.urandom(1 << 20))
    command = [sys.executable, "-m", "repl.cli.main", "--socket", str(node.control)]
    with (
        stopped(node),
        subprocess.Popen(
            [*command, "umount", str(here)], stderr=subprocess.PIPE, text=True
        ) as umount,
    ):
        folder = Folder(node.folder, "r0")
        wait_for(lambda: folder.unmount() is not None, what="umount runs")
        wait_for(
            lambda: str(here) not in Path("/proc/mounts").read_text(), what="the mount is gone"
        )
        yield umount


@pytest.mark.parametrize("interrupted", [False, True])
def test_hanging_umount_is_ended_by_force(interrupted: bool) -> None:
    with attaching_pair() as pair:
        alpha, here = pair.alpha, mount_point(pair.alpha)
        pair.start_in_sync()
        alpha.ctl_ok("mount", "r0", str(here), "--promote", "--mkfs", "ext4", *BY_NBDFUSE)
        traces = traces_of(alpha)
        with hanging_umount(alpha) as umount:
            if interrupted:
                umount.send_signal(signal.SIGINT)
                assert umount.wait(10) == 130
            for command in (["umount", str(here)], ["detach", "r0"]):
                refused = refusal(alpha, *command)
                assert refused["code"] == "ATTACH_BUSY"
                assert "still being unmounted" in refused["what"]
                assert f"  replctl umount {here} --force" in refused["next"]
            command = ["detach", "r0"] if interrupted else ["umount", str(here)]
            done = alpha.ctl(*command, "--force")
            assert done.returncode == 0, done.stderr
            _, words = umount.communicate(timeout=30)
            assert interrupted or "cut off" in words
        wait_for(lambda: not traces.left(), GONE_DEADLINE_S, "nothing is left")


def ending(node: Node) -> bool:
    record = Folder(node.folder, "r0").load()
    return record is not None and record.phase is Phase.ENDING


@contextlib.contextmanager
def attached_primary() -> Iterator[tuple[Node, str]]:
    """A primary and its volume's device, of which nothing is left at the end."""
    with attaching_pair() as pair:
        pair.start_in_sync(primary=pair.alpha)
        device = pair.alpha.ctl_ok("attach", "r0", *BY_NBDFUSE).strip()
        traces = traces_of(pair.alpha)
        yield pair.alpha, device
        wait_for(lambda: not traces.left(), GONE_DEADLINE_S, "nothing is left")


def detach_command(node: Node) -> list[str]:
    replctl = [sys.executable, "-m", "repl.cli.main", "--socket", str(node.control)]
    return [*replctl, "detach", "r0"]


def test_hanging_detach_is_ended_by_force() -> None:
    with attached_primary() as (alpha, device), stopped(alpha):
        # It stays in the page cache, since the guardian has the device open too.
        Path(device).write_bytes(os.urandom(1 << 16))
        with subprocess.Popen(
            detach_command(alpha), stderr=subprocess.PIPE, text=True
        ) as detaching:
            wait_for(lambda: ending(alpha), what="the guardian writes the device out")
            done = alpha.ctl("detach", "r0", "--force")
            assert done.returncode == 0, done.stderr
            detaching.communicate(timeout=30)


def test_device_that_is_open_while_it_is_detached_is_cut_off_with_its_daemon() -> None:
    with (
        attached_primary() as (alpha, device),
        subprocess.Popen(
            [sys.executable, "-c", READER, device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as reader,
    ):
        assert reader.stdout is not None and reader.stdout.readline() == "open\n"
        with subprocess.Popen(detach_command(alpha)) as detaching:
            wait_for(lambda: ending(alpha), what="the guardian gives the device back")
            detaching.send_signal(signal.SIGINT)
        refused = refusal(alpha, "attach", "r0")
        assert refused["code"] == "ATTACH_BUSY" and f"{reader.pid} (" in refused["why"]
        alpha.kill()
        said, _ = reader.communicate("read\n", timeout=GONE_DEADLINE_S)
        assert said == "EIO\n"

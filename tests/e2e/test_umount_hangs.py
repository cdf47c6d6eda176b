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
    traces_of,
)
from tests.daemon import Node, wait_for


@contextlib.contextmanager
def stopped(node: Node) -> Iterator[None]:
    """Let the daemon and its workers answer nothing."""
    assert node.process is not None
    os.killpg(node.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(node.process.pid, signal.SIGCONT)


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


def test_hanging_detach_is_ended_by_force() -> None:
    with attaching_pair() as pair:
        alpha = pair.alpha
        pair.start_in_sync(primary=alpha)
        device = alpha.ctl_ok("attach", "r0", *BY_NBDFUSE).strip()
        traces = traces_of(alpha)
        command = [sys.executable, "-m", "repl.cli.main", "--socket", str(alpha.control)]
        with stopped(alpha):
            # It stays in the page cache, since the guardian has the device open too.
            Path(device).write_bytes(os.urandom(1 << 16))
            detach = [*command, "detach", "r0"]
            with subprocess.Popen(detach, stderr=subprocess.PIPE, text=True) as detaching:
                folder = Folder(alpha.folder, "r0")

                def ending() -> bool:
                    record = folder.load()
                    return record is not None and record.phase is Phase.ENDING

                wait_for(ending, what="the guardian writes the device out")
                done = alpha.ctl("detach", "r0", "--force")
                assert done.returncode == 0, done.stderr
                detaching.communicate(timeout=30)
        wait_for(lambda: not traces.left(), GONE_DEADLINE_S, "nothing is left")

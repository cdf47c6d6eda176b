"""`mount --mkfs` on real devices: never over data, and never a half-made filesystem left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.attached import BY_NBDFUSE, attaching_pair, mount_point
from tests.daemon import MIB, ROOT, Node, wait_for
from tests.pair import Pair

SIZE_BYTES = 320 * MIB


def failure(node: Node, *arguments: str, status: int = 5) -> dict[str, str]:
    """Run `replctl`, which must fail with that status; return the error."""
    done = node.ctl("--json", *arguments)
    assert done.returncode == status, done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert isinstance(error, dict)
    return error


def write_in_the_middle(node: Node, data: bytes, offset: int) -> None:
    """Write through the device, as somebody would who keeps data of his own on it."""
    device = node.ctl_ok("attach", "r0", *BY_NBDFUSE).strip()
    descriptor = os.open(device, os.O_WRONLY)
    try:
        os.pwrite(descriptor, data, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    node.ctl_ok("detach", "r0")


def mkfs(node: Node, kind: str = "ext4", *options: str) -> tuple[str, ...]:
    return ("mount", "r0", str(mount_point(node)), "--mkfs", kind, *options, *BY_NBDFUSE)


def run_next(node: Node, error: dict[str, str], folder: Path) -> None:
    """Run the command that a refusal ends with, word by word, as a person would."""
    replctl = folder / "bin" / "replctl"
    replctl.parent.mkdir(exist_ok=True)
    program = shlex.join([sys.executable, "-m", "repl.cli.main", "--socket", str(node.control)])
    replctl.write_text(f'#!/bin/sh\nexec {program} "$@"\n')
    replctl.chmod(0o755)
    command = error["next"].rpartition("zeroes:  ")[2]
    assert command.startswith("D=$(replctl attach r0) && ")
    path = f"{replctl.parent}:{os.environ['PATH']}"
    subprocess.run(
        command, shell=True, check=True, cwd=ROOT, env={**os.environ, "PATH": path}, timeout=60
    )


@contextlib.contextmanager
def mkfs_that_does_not_end(node: Node, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `mount --mkfs xfs` until the filesystem is on the device and mkfs.xfs still runs."""
    begun, stand_in = folder / "begun", folder / "mkfs.xfs"
    stand_in.write_text(f'#!/bin/sh\n/usr/sbin/mkfs.xfs "$@"\necho $$ >"{begun}"\nexec sleep 600\n')
    stand_in.chmod(0o755)
    command = [sys.executable, "-m", "repl.cli.main", "--socket", str(node.control)]
    with subprocess.Popen(
        [*command, *mkfs(node, "xfs")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
    ) as mounting:
        wait_for(lambda: begun.exists() and begun.read_text(), what="the filesystem is made")
        pid = int(begun.read_text())
        yield mounting
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def primary_alpha(pair: Pair) -> Node:
    pair.start_in_sync()
    pair.alpha.promote()
    return pair.alpha


def test_data_in_the_middle_of_a_volume_is_not_overwritten() -> None:
    with attaching_pair(SIZE_BYTES) as pair:
        alpha, offset, data = primary_alpha(pair), 64 * MIB + 8192, b"only here" * 5000
        write_in_the_middle(alpha, data, offset)
        for kind in ("ext4", "xfs"):
            refused = failure(alpha, *mkfs(alpha, kind))
            assert refused["code"] == "HOLDS_DATA"
            assert f"at byte {offset}" in refused["what"]
        with Path(alpha.backing()).open("rb") as backing:
            backing.seek(offset)
            assert backing.read(len(data)) == data
        # What the refusal advises clears it.
        run_next(alpha, refused, pair.alpha.folder)
        write_in_the_middle(alpha, data, offset)
        # Zeroes that were written are no data.
        write_in_the_middle(alpha, bytes(len(data)), offset)
        alpha.ctl_ok(*mkfs(alpha))
        alpha.ctl_ok("umount", str(mount_point(alpha)), "--demote")


def test_half_made_xfs_is_taken_away_and_a_whole_one_moves_to_the_other_node(
    tmp_path: Path,
) -> None:
    with attaching_pair(SIZE_BYTES) as pair:
        alpha, beta = primary_alpha(pair), pair.beta
        with mkfs_that_does_not_end(alpha, tmp_path) as mounting:
            mounting.terminate()
            _, words = mounting.communicate(timeout=60)
            assert mounting.returncode == 130, words
        assert not (alpha.folder / "attached/r0").exists()
        alpha.ctl_ok(*mkfs(alpha, "xfs"))
        (mount_point(alpha) / "kept").write_text("kept")
        alpha.ctl_ok("umount", str(mount_point(alpha)), "--demote")
        pair.wait_in_sync()
        pair.assert_copies_equal()
        beta.ctl_ok("mount", "r0", str(mount_point(beta)), "--promote", *BY_NBDFUSE)
        assert (mount_point(beta) / "kept").read_text() == "kept"
        beta.ctl_ok("umount", str(mount_point(beta)), "--demote")


def test_what_a_killed_mount_left_half_made_is_cleared_as_advised(tmp_path: Path) -> None:
    with attaching_pair(SIZE_BYTES) as pair:
        alpha = primary_alpha(pair)
        with mkfs_that_does_not_end(alpha, tmp_path) as mounting:
            mounting.kill()
            mounting.wait()
        refused = failure(alpha, *mkfs(alpha, "xfs"))
        assert refused["code"] == "HOLDS_DATA" and "half made" in refused["why"]
        run_next(alpha, refused, tmp_path)
        alpha.ctl_ok(*mkfs(alpha, "xfs"))
        alpha.ctl_ok("umount", str(mount_point(alpha)), "--demote")

"""`mount --mkfs` on real devices: never over data, and never a half-made filesystem left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.attached import BY_NBDFUSE, attaching_pair, mount_point
from tests.daemon import MIB, Node
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
        # Zeroes that were written are no data.
        write_in_the_middle(alpha, bytes(len(data)), offset)
        alpha.ctl_ok(*mkfs(alpha))
        alpha.ctl_ok("umount", str(mount_point(alpha)), "--demote")

"""A filesystem on a replicated volume survives the death of its node, with two commands.

Real daemons, nbdfuse, loop devices and filesystems. What was fsynced before SIGKILL is on the other
node, and the dead device's mount, loop device and processes are gone by themselves.
"""

from __future__ import annotations

import pytest

from tests.attached import (
    BY_NBDFUSE,
    GONE_DEADLINE_S,
    FileWriter,
    attaching_pair,
    broken_promises,
    mount_point,
    traces_of,
)
from tests.daemon import MIB, wait_for

#: The smallest that mkfs.xfs accepts.
XFS_BYTES = 300 * MIB


def fail_over(kind: str, size_bytes: int, seed: int) -> None:
    with attaching_pair(size_bytes) as pair:
        alpha, beta = pair.nodes
        here, there = mount_point(alpha), mount_point(beta)
        pair.start_in_sync()
        alpha.ctl_ok("mount", "r0", *BY_NBDFUSE, str(here), "--promote", "--mkfs", kind)
        traces = traces_of(alpha)
        with FileWriter(here, seed, 100_000) as writer:
            writer.read(40)
            alpha.kill()
            wait_for(
                lambda: not traces.left(), GONE_DEADLINE_S, "nothing of the dead device is left"
            )
            # It was in the middle of a write; that one failed, and none after it was promised.
            assert writer.end() != 0
        assert list(here.iterdir()) == []

        refused = beta.ctl("mount", "r0", str(there), "--promote")
        assert refused.returncode == 5 and "PROMOTE_NO_EVIDENCE" in refused.stderr
        beta.ctl_ok("mount", "r0", *BY_NBDFUSE, str(there), "--promote", "--peer-dead", "alpha")
        assert broken_promises(there, writer.promises) == []
        with FileWriter(there, seed + 1, 5) as more:
            assert more.end() == 0

        alpha.start()
        pair.wait_in_sync()
        beta.ctl_ok("umount", str(there), "--demote")
        alpha.ctl_ok("mount", "r0", *BY_NBDFUSE, str(here), "--promote")
        assert broken_promises(here, writer.promises | more.promises) == []
        alpha.ctl_ok("umount", str(here), "--demote")
        pair.assert_copies_equal()


def test_ext4_survives_the_death_of_its_node() -> None:
    fail_over("ext4", 96 * MIB, seed=1)


@pytest.mark.slow
def test_xfs_survives_the_death_of_its_node() -> None:
    fail_over("xfs", XFS_BYTES, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [10, 20, 30])
@pytest.mark.parametrize(("kind", "size_bytes"), [("ext4", 96 * MIB), ("xfs", XFS_BYTES)])
def test_every_failover_keeps_what_was_fsynced(kind: str, size_bytes: int, seed: int) -> None:
    fail_over(kind, size_bytes, seed)

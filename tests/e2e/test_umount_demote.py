"""`umount --demote` with other clients of the volume: all of it is done, or nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

from repl.attach.dialing import dial
from tests.attached import BY_NBDFUSE, attaching_pair, mount_point, refusal


def test_other_client_keeps_the_volume_mounted() -> None:
    with attaching_pair() as pair:
        alpha, here = pair.alpha, mount_point(pair.alpha)
        pair.start_in_sync()
        arguments = ("--promote", "--mkfs", "ext4", *BY_NBDFUSE)
        alpha.ctl_ok("mount", "r0", str(here), *arguments)
        client, _ = dial(str(alpha.nbd_socket), "r0", 10)
        with contextlib.closing(client):
            refused = refusal(alpha, "umount", str(here), "--demote")
            assert refused["code"] == "DEMOTE_CLIENTS" and "still mounted" in refused["why"]
            assert str(here) in Path("/proc/mounts").read_text()
            assert alpha.volume()["role"] == "primary"
        alpha.ctl_ok("umount", str(here), "--demote")
        assert alpha.volume()["role"] == "secondary"
        # What is unmounted and detached already is only to be demoted.
        alpha.promote()
        refused = refusal(alpha, "umount", str(here), "--demote")
        assert refused["code"] == "NOT_MOUNTED" and refused["next"].endswith("replctl demote r0")

"""`mount --promote` that is interrupted while the daemon still works on the promotion."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

from tests.attached import attaching_pair, mount_point, stopped
from tests.daemon import wait_for


def test_mount_interrupted_while_its_promotion_waits_leaves_a_secondary() -> None:
    with attaching_pair() as pair:
        alpha, beta = pair.nodes
        pair.start_in_sync()
        command = [sys.executable, "-m", "repl.cli.main", "--socket", str(alpha.control), "mount"]
        command += ["r0", str(mount_point(alpha)), "--promote", "--mkfs", "ext4"]
        with contextlib.ExitStack() as asleep:
            asleep.enter_context(stopped(beta))
            with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as mounting:
                # The peer is asked, and does not answer.
                wait_for(
                    lambda: "VOLUME_BUSY" in alpha.ctl("demote", "r0").stderr, what="it is promoted"
                )
                assert alpha.volume()["role"] == "secondary"
                mounting.send_signal(signal.SIGINT)
                asleep.close()
                _, words = mounting.communicate(timeout=60)
        assert mounting.returncode == 130 and "Not undone" not in words, words
        pair.wait_in_sync()
        assert alpha.volume()["role"] == "secondary"

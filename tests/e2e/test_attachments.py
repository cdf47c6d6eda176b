"""Attachments of real daemons: what freezes and goes on, what is cut off, what a crash leaves.

In one test where they can share a pair of daemons, since starting one costs seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from repl.attach.loop_device import binding_of
from tests.attached import (
    BY_NBDFUSE,
    GONE_DEADLINE_S,
    FileWriter,
    attaching_pair,
    broken_promises,
    frozen,
    guardian_log,
    mount_point,
    refusal,
    traces_of,
)
from tests.daemon import wait_for
from tests.pair import Pair


def mounted_on_alpha(pair: Pair, *options: str) -> Path:
    """Start both nodes and mount a new ext4 on alpha."""
    pair.start_in_sync()
    here = mount_point(pair.alpha)
    options = (*BY_NBDFUSE, *options)
    pair.alpha.ctl_ok("mount", "r0", str(here), "--promote", "--mkfs", "ext4", *options)
    return here


def test_restarts_of_worker_and_daemon_are_only_a_pause() -> None:
    with attaching_pair() as pair:
        alpha = pair.alpha
        here = mounted_on_alpha(pair)
        with FileWriter(here, 1, 100_000) as writer:
            writer.read(10)
            alpha.signal_worker(signal.SIGKILL)
            writer.read(len(writer.promises) + 10)
            alpha.kill()
            alpha.start()
            writer.read(len(writer.promises) + 10)
        assert "goes on" in guardian_log(alpha)
        assert broken_promises(here, writer.promises) == []
        device = traces_of(alpha).record.device
        assert alpha.ctl_ok("attach", "r0", *BY_NBDFUSE) == f"{device}\n"
        assert refusal(alpha, "detach", "r0")["code"] == "DEVICE_IN_USE"
        assert refusal(alpha, "mount", "r0", str(here))["code"] == "ALREADY_MOUNTED"
        with (here / "held").open("w"):
            busy = refusal(alpha, "umount", str(here))
            assert busy["code"] == "MOUNT_BUSY" and f"{os.getpid()} (" in busy["why"]
        alpha.ctl_ok("umount", str(here), "--demote")
        assert refusal(alpha, "umount", str(here))["code"] == "NOT_MOUNTED"
        pair.wait_in_sync()
        pair.assert_copies_equal()


def test_device_of_a_volume_taken_over_elsewhere_is_cut_off() -> None:
    with attaching_pair() as pair:
        alpha, beta = pair.nodes
        here, there = mount_point(alpha), mount_point(beta)
        mounted_on_alpha(pair)
        (here / "kept").write_text("kept")
        subprocess.run(["sync", "-f", str(here)], check=True)
        traces = traces_of(alpha)
        # Nobody else has it yet: the device waits, however long, and goes on when it may.
        alpha.ctl_ok("demote", "r0", "--drop-clients")
        wait_for(lambda: frozen(alpha), what="the device is frozen")
        assert refusal(alpha, "umount", str(here))["code"] == "ATTACH_FROZEN"
        alpha.ctl_ok("promote", "r0")
        wait_for(lambda: not frozen(alpha), what="the device goes on")
        (here / "also").write_text("also kept")
        subprocess.run(["sync", "-f", str(here)], check=True)
        # Now the other node has it: what this device's cache holds is too old to be written.
        alpha.ctl_ok("demote", "r0", "--drop-clients")
        beta.ctl_ok("mount", "r0", *BY_NBDFUSE, str(there), "--promote")
        wait_for(lambda: not traces.left(), GONE_DEADLINE_S, "the old device is cut off")
        assert "another node has been primary" in guardian_log(alpha)
        assert (there / "kept").read_text() == "kept"
        assert (there / "also").read_text() == "also kept"
        beta.ctl_ok("umount", str(there))


@pytest.mark.slow
def test_what_a_killed_guardian_leaves_is_cleared_by_the_next_command() -> None:
    with attaching_pair() as pair:
        alpha = pair.alpha
        here = mounted_on_alpha(pair)
        (here / "kept").write_text("kept")
        subprocess.run(["sync", "-f", str(here)], check=True)
        first = traces_of(alpha)
        first.record.guardian.signal(signal.SIGKILL)
        # nbdfuse goes with its guardian; the mount stays, and every use of it fails.
        program = first.record.program
        assert program is not None
        wait_for(lambda: not program.alive, what="nbdfuse ended with its guardian")
        device = alpha.ctl_ok("attach", "r0", *BY_NBDFUSE).strip()
        assert str(here) not in Path("/proc/mounts").read_text()
        assert binding_of(device) != first.record.mark
        alpha.ctl_ok("mount", "r0", *BY_NBDFUSE, str(here))
        assert (here / "kept").read_text() == "kept"

        second = traces_of(alpha)
        second.record.guardian.signal(signal.SIGKILL)
        wait_for(lambda: not second.record.guardian.alive, what="the guardian is dead")
        said = alpha.ctl("umount", str(here))
        assert said.returncode == 0 and "guardian of its device was dead" in said.stderr
        assert second.left() == []

        device = alpha.ctl_ok("attach", "r0", *BY_NBDFUSE).strip()
        third = traces_of(alpha)
        third.record.guardian.signal(signal.SIGKILL)
        # Nothing uses the device: the kernel clears it without any command.
        wait_for(lambda: binding_of(device) != third.record.mark, what="the device is cleared")
        alpha.ctl_ok("detach", "r0")
        assert third.left() == []


@pytest.mark.slow
def test_end_of_nbdfuse_takes_everything_down() -> None:
    with attaching_pair() as pair:
        mounted_on_alpha(pair)
        traces = traces_of(pair.alpha)
        assert traces.record.program is not None
        traces.record.program.signal(signal.SIGKILL)
        wait_for(lambda: not traces.left(), GONE_DEADLINE_S, "nothing is left")
        assert "nbdfuse ended" in guardian_log(pair.alpha)


@pytest.mark.slow
def test_held_device_goes_when_its_last_user_does() -> None:
    with attaching_pair() as pair:
        here = mounted_on_alpha(pair)
        traces = traces_of(pair.alpha)
        script = "import os, sys; os.chdir(sys.argv[1]); print(flush=True); sys.stdin.read()"
        holder = subprocess.Popen(
            [sys.executable, "-c", script, str(here)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert holder.stdout is not None and holder.stdout.readline()
            pair.alpha.ctl_ok("umount", str(here), "--force")
            assert str(here) not in Path("/proc/mounts").read_text()
            assert traces.left() == [traces.record.device]
            assert f"{holder.pid} (" in guardian_log(pair.alpha)
        finally:
            holder.communicate(b"")
        wait_for(lambda: not traces.left(), GONE_DEADLINE_S, "the device went with its last user")


@pytest.mark.slow
def test_copy_of_a_mount_in_another_namespace_is_named() -> None:
    with attaching_pair() as pair:
        alpha, here = pair.alpha, mounted_on_alpha(pair)
        container = subprocess.Popen(["unshare", "--mount", "sleep", "600"])
        try:
            namespace = Path("/proc/self/ns/mnt").readlink()
            inside = Path(f"/proc/{container.pid}/ns/mnt")
            wait_for(lambda: inside.readlink() != namespace, what="the other namespace exists")
            # It has copied the mount, so that the device is still used when that is gone here.
            kept = refusal(alpha, "umount", str(here), "--demote")
            assert kept["code"] == "DEVICE_IN_USE" and f"{container.pid} (" in kept["why"]
            assert str(here) not in Path("/proc/mounts").read_text()
        finally:
            container.kill()
            container.wait()
        wait_for(lambda: alpha.ctl("detach", "r0").returncode == 0, what="it can be detached")
        alpha.ctl_ok("demote", "r0")


@pytest.mark.slow
def test_stopped_daemon_freezes_its_device_without_an_error() -> None:
    with attaching_pair() as pair:
        alpha = pair.alpha
        here = mounted_on_alpha(pair, "--dead-after", "1s")
        assert alpha.process is not None
        with FileWriter(here, 5, 100_000) as writer:
            writer.read(5)
            os.killpg(alpha.process.pid, signal.SIGSTOP)
            try:
                # Longer than `dead_after_s`: a daemon that is there is not a daemon that is gone.
                seen = len(writer.promises)
                with pytest.raises(subprocess.TimeoutExpired):
                    writer.process.wait(4)
            finally:
                os.killpg(alpha.process.pid, signal.SIGCONT)
            writer.read(seen + 30)
        assert broken_promises(here, writer.promises) == []
        alpha.ctl_ok("umount", str(here))


@pytest.mark.slow
def test_clean_restart_of_the_daemon_and_a_promotion_are_a_pause() -> None:
    with attaching_pair() as pair:
        alpha = pair.alpha
        here = mounted_on_alpha(pair, "--dead-after", "30s")
        with FileWriter(here, 7, 100_000) as writer:
            writer.read(5)
            # A daemon that stops cleanly gives its role up: nothing resumes by itself.
            alpha.stop()
            alpha.start()
            wait_for(lambda: "secondary" in frozen(alpha), what="the device waits")
            alpha.ctl_ok("wait", "r0", "--for", "promotable", "--timeout", "30")
            alpha.promote()
            writer.read(len(writer.promises) + 10)
        assert broken_promises(here, writer.promises) == []
        alpha.ctl_ok("umount", str(here), "--demote")


@pytest.mark.slow
def test_device_keeps_its_content_through_many_restarts() -> None:
    with attaching_pair() as pair:
        alpha = pair.alpha
        pair.start_in_sync(primary=alpha)
        device = alpha.ctl_ok("attach", "r0", *BY_NBDFUSE).strip()
        # Deep queues of random sizes, so that many requests are in flight whenever it is killed.
        fio = ["fio", "--name=restarts", f"--filename={device}", "--rw=randrw", "--direct=1"]
        fio += ["--ioengine=libaio", "--iodepth=32", "--bsrange=512-256k", "--verify=crc32c"]
        fio += ["--verify_backlog=512", "--verify_fatal=1", "--fsync=200", "--time_based"]
        fio += ["--verify_state_save=0"]
        load = subprocess.Popen([*fio, "--runtime=12"], stdout=subprocess.PIPE, text=True)
        while load.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                load.wait(1.5)
            alpha.signal_worker(signal.SIGKILL)
            alpha.wait_primary()
        assert load.stdout is not None
        assert load.returncode == 0, load.stdout.read()
        load.stdout.close()
        assert guardian_log(alpha).count("goes on") >= 2
        # The daemon serves before the device has connected again.
        wait_for(lambda: not frozen(alpha), what="the device goes on")
        alpha.ctl_ok("detach", "r0")
        pair.wait_in_sync()
        pair.assert_copies_equal()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["nbdfuse", "mkfs.ext4", "mount"])
def test_interrupted_mount_undoes_what_it_did(program: str, tmp_path: Path) -> None:
    # A program of that name that does not end, so that the interruption comes while it runs.
    begun, stand_in = tmp_path / "begun", tmp_path / program
    stand_in.write_text(f'#!/bin/sh\necho >"{begun}"\nexec sleep 600\n')
    stand_in.chmod(0o755)
    with attaching_pair() as pair:
        alpha = pair.alpha
        pair.start_in_sync()
        command = [sys.executable, "-m", "repl.cli.main", "--socket", str(alpha.control), "mount"]
        command += ["r0", str(mount_point(alpha)), "--promote", "--mkfs", "ext4", *BY_NBDFUSE]
        mounting = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        )
        wait_for(begun.exists, what=f"{program} runs")
        assert alpha.volume()["role"] == "primary"
        mounting.send_signal(signal.SIGINT)
        _, words = mounting.communicate(timeout=90)
        assert mounting.returncode == 130, words
        assert alpha.volume()["role"] == "secondary"
        assert not (alpha.folder / "attached/r0").exists()
        assert str(mount_point(alpha)) not in Path("/proc/mounts").read_text()

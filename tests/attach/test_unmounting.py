"""Unmounting: every refusal comes before anything is changed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from repl.attach.attaching import Attachment, Leftover
from repl.attach.machine import Ran
from repl.attach.mounts import Mount
from repl.attach.processes import ProcessId
from repl.attach.record import Folder, Phase, Record
from repl.errors import DaemonUnreachable, PermissionRefused, Refused
from tests.attach.fakes import DEVICE, refusal
from tests.attach.stage import Stage


def test_only_root_may_unmount(stage: Stage) -> None:
    stage.machine.root = False
    with pytest.raises(PermissionRefused):
        stage.unmounting.umount(str(stage.directory))


def test_umount_detaches_what_mount_has_attached(stage: Stage) -> None:
    stage.mounted()
    done = stage.unmounting.umount(str(stage.directory))
    assert stage.diary == ["umount", "detach"]
    assert (done.volume, done.detached, done.demoted, done.lost) == ("r0", True, False, "")


def test_umount_leaves_attached_what_attach_has_attached(stage: Stage) -> None:
    stage.mounted("attach")
    assert not stage.unmounting.umount(str(stage.directory)).detached
    assert stage.diary == ["umount"]


def test_umount_with_demote_gives_everything_back(stage: Stage) -> None:
    stage.mounted("attach")
    done = stage.unmounting.umount(str(stage.directory), demote=True)
    assert stage.diary == ["umount", "detach", "demote"]
    assert done.detached and done.demoted


def test_busy_filesystem_stays_mounted_and_names_who_holds_it(stage: Stage) -> None:
    stage.mounted()
    stage.machine.says["umount"] = Ran(32, "umount: target is busy.")
    stage.machine.held_by = ["123 (postgres)"]
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory), demote=True)
    assert (refused.value.code, refused.value.why) == ("MOUNT_BUSY", "in use by 123 (postgres)")
    assert stage.diary == ["umount"]
    stage.machine.held_by = []
    with pytest.raises(Refused, match="could not be unmounted") as refused:
        stage.unmounting.umount(str(stage.directory))
    assert refused.value.why == "umount: target is busy."


def test_mounts_below_a_filesystem_are_named(stage: Stage) -> None:
    stage.mounted()
    beside = Mount(f"{stage.directory} too", "tmpfs", "tmpfs", "0:5")
    inner = [Mount(f"{stage.directory}/{name}", "tmpfs", "tmpfs", "0:6") for name in ("a", "a/b")]
    stage.machine.table += [beside, *inner]
    stage.machine.says["umount"] = Ran(32, "umount: target is busy.")
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory))
    assert refused.value.code == "MOUNT_BUSY"
    assert refused.value.why == f"mounted below it: {stage.directory}/a, {stage.directory}/a/b"
    assert f"  umount '{stage.directory}/a/b'   then" in refused.value.next_step
    stage.machine.held_by = ["123 (postgres)"]
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory))
    assert refused.value.why.endswith("a/b; in use by 123 (postgres)")


def test_what_is_not_mounted_is_not_unmounted(stage: Stage) -> None:
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory))
    assert refused.value.code == "NOT_MOUNTED" and "Nothing is mounted" in refused.value.what
    assert "nothing is attached" in refused.value.next_step


def test_who_unmounts_the_wrong_thing_is_told_what_there_is(stage: Stage) -> None:
    """By the volume's name, for instance; and nobody is told to attach what is to be taken away."""
    stage.mounted()
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount("r0")
    assert refused.value.next_step.endswith(f"replctl umount '{stage.directory}'")
    stage.machine.table.clear()
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount("r0")
    assert refused.value.next_step.endswith("replctl detach r0")


def test_what_is_not_ours_is_not_unmounted(stage: Stage) -> None:
    stage.mounted()
    stage.machine.table = [Mount(str(stage.directory), "nfs4", "server:/x", "0:9")]
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory))
    assert refused.value.code == "NOT_MOUNTED" and "server:/x (nfs4)" in refused.value.why
    assert stage.diary == []


def test_frozen_filesystem_is_not_waited_for(stage: Stage) -> None:
    stage.mounted()
    stage.attachments.current = Attachment("r0", DEVICE, "fake", "mount", "it is secondary")
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory))
    assert refused.value.code == "ATTACH_FROZEN" and "--force" in refused.value.next_step
    assert stage.diary == []
    done = stage.unmounting.umount(str(stage.directory), force=True)
    assert stage.diary == ["cut off"]
    assert done.lost == "it was cut off: it is secondary"


def test_volume_mounted_twice_is_detached_with_the_last(stage: Stage, tmp_path: Path) -> None:
    stage.mounted()
    stage.machine.table.append(Mount("/other", "ext4", DEVICE, "7:99"))
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory), demote=True)
    assert refused.value.code == "DEVICE_IN_USE" and stage.diary == []
    assert not stage.unmounting.umount(str(stage.directory)).detached
    assert stage.unmounting.umount("/other").detached


def test_demotion_needs_the_daemon_before_anything_is_unmounted(stage: Stage) -> None:
    stage.mounted()
    stage.diary.trouble["role"] = DaemonUnreachable("No repld answers.", "a test", "none")
    with pytest.raises(DaemonUnreachable):
        stage.unmounting.umount(str(stage.directory), demote=True)
    assert stage.diary == []
    stage.unmounting.umount(str(stage.directory))
    assert stage.diary == ["umount", "detach"]


def test_mount_of_a_dead_guardian_is_cleared_away(stage: Stage) -> None:
    stage.machine.table = [Mount(str(stage.directory), "ext4", DEVICE, "7:99")]
    stage.attachments.left = Leftover("r0", works=False)
    done = stage.unmounting.umount(str(stage.directory), demote=True)
    assert stage.diary == ["clear", "demote"]
    assert "guardian" in done.lost and done.demoted


def test_mount_that_still_works_is_unmounted_in_order(stage: Stage) -> None:
    stage.machine.table = [Mount(str(stage.directory), "ext4", DEVICE, "7:99")]
    stage.attachments.left = Leftover("r0", works=True)
    stage.machine.says["umount"] = Ran(32, "umount: target is busy.")
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory))
    assert refused.value.code == "MOUNT_BUSY" and stage.diary == ["umount"]
    del stage.machine.says["umount"]
    assert stage.unmounting.umount(str(stage.directory)).lost == ""
    assert stage.diary == ["umount", "umount", "clear"]


def test_mount_that_still_works_is_cut_off_by_force(stage: Stage) -> None:
    stage.machine.table = [Mount(str(stage.directory), "ext4", DEVICE, "7:99")]
    stage.attachments.left = Leftover("r0", works=True)
    assert stage.unmounting.umount(str(stage.directory), force=True).lost
    assert stage.diary == ["clear by force"]


def test_demotion_that_other_clients_refuse_unmounts_nothing(stage: Stage) -> None:
    stage.mounted()
    stage.volumes.others = ["unix pid 4711"]
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory), demote=True)
    assert refused.value.code == "DEMOTE_CLIENTS" and "unix pid 4711" in refused.value.why
    umount = f"replctl umount '{stage.directory}'"
    assert f"  {umount} --demote " in refused.value.next_step
    assert f"  {umount} && replctl demote r0 --drop-clients)" in refused.value.next_step
    assert stage.diary == []
    stage.mounted("attach")
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory), demote=True, force=True)
    assert f"{umount} && replctl detach r0 && replctl demote r0" in refused.value.next_step
    assert stage.diary == []


def test_failed_demotion_says_what_is_done_already(stage: Stage) -> None:
    stage.mounted()
    stage.diary.trouble["demote"] = refusal("Cannot demote r0.", code="DEMOTE_CLIENTS")
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory), demote=True)
    assert refused.value.code == "DEMOTE_CLIENTS"
    assert "is unmounted and r0 is detached already" in refused.value.why
    assert "replctl demote r0" in refused.value.next_step


def test_what_is_unmounted_already_is_only_to_be_demoted(stage: Stage) -> None:
    stage.volumes.current = "primary"
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory), demote=True)
    assert refused.value.code == "NOT_MOUNTED"
    assert refused.value.next_step.endswith("  replctl demote r0")
    stage.attachments.current = Attachment("r0", DEVICE, "fake", "attach")
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount(str(stage.directory), demote=True)
    assert refused.value.next_step.endswith("  replctl detach r0 && replctl demote r0")
    stage.mounted()
    with pytest.raises(Refused) as refused:
        stage.unmounting.umount("r0", demote=True)
    assert refused.value.next_step.endswith(f"  replctl umount '{stage.directory}' --demote")


def test_unmounting_that_hangs_is_named_and_cut_off_by_force(stage: Stage) -> None:
    """The kernel takes a mount from its table first; only then is written what must be."""
    stage.mounted()
    stage.machine.table.clear()
    folder = Folder(stage.run, "r0")
    folder.make()
    folder.note_unmount(str(stage.directory), os.getpid())
    with stage.attachments.locked("r0"):
        with pytest.raises(Refused) as refused:
            stage.unmounting.umount(str(stage.directory))
        assert refused.value.code == "ATTACH_BUSY" and f"(pid {os.getpid()})" in refused.value.why
        command = f"replctl umount '{stage.directory}' --force"
        assert command in refused.value.next_step
        with pytest.raises(Refused) as refused:
            stage.attachments.locked("r0").__enter__()
        assert command in refused.value.next_step
        # What waits for the device has the lock; the cutting off needs none.
        folder.save(Record("r0", "fake", ProcessId.of(os.getpid()), "mount", Phase.ATTACHED))
        done = stage.unmounting.umount(str(stage.directory), force=True)
    assert stage.diary == ["cut off"] and done.lost


def test_umount_whose_device_is_cut_off_meanwhile_says_so(stage: Stage) -> None:
    stage.mounted()

    def cut_off(program: str) -> None:
        stage.attachments.current = None

    stage.machine.after = cut_off
    done = stage.unmounting.umount(str(stage.directory))
    assert stage.diary == ["umount"]
    assert done.detached and "cut off" in done.lost


def test_unmounting_that_has_ended_is_none(stage: Stage) -> None:
    folder = Folder(stage.run, "r0")
    # The folder goes with its guardian, at any moment.
    folder.note_unmount("/mnt", os.getpid())
    assert folder.unmount() is None
    folder.make()
    with subprocess.Popen(["true"]) as ended:
        folder.note_unmount("/mnt", ended.pid)
    assert folder.unmount() is None
    folder.note_unmount("/mnt", os.getpid())
    unmount = folder.unmount()
    assert unmount is not None and unmount.directory == "/mnt"
    (folder.path / "umount.json").write_text("{")
    assert folder.unmount() is None

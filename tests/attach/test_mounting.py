"""Mounting: every refusal comes before anything is changed, every step is undone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from repl.attach import mounting
from repl.attach.attaching import Attachment, Leftover
from repl.attach.machine import Ran
from repl.attach.mounting import Mounting, check_options
from repl.attach.mounts import Mount
from repl.attach.processes import ProcessId
from repl.attach.record import Folder, Phase, Record
from repl.errors import Refused, ReplError, TimedOut, UsageError
from tests.attach.fakes import (
    DEVICE,
    EXT4,
    NOTHING_FOUND,
    FakeVolumes,
    failure,
    refusal,
)
from tests.attach.stage import Stage

# What is done, in which order.


def test_secondary_is_promoted_attached_checked_and_mounted(stage: Stage) -> None:
    done = stage.mounting.mount(stage.wish(promote=True, peer_dead="alpha", options="noatime"))
    assert stage.diary == ["promote", "attach", "e2fsck", "mount"]
    assert stage.volumes.vouched == ["alpha"]
    assert (done.promoted, done.attached, done.formatted) == (True, True, False)
    assert (done.device, done.filesystem) == (DEVICE, "ext4")
    mount = stage.machine.commands[-1]
    assert mount[:6] == ("mount", "-t", "ext4", "-o", "noatime", "--")
    assert mount[6:] == (DEVICE, str(stage.directory))


def test_blank_volume_is_formatted_and_not_checked(stage: Stage) -> None:
    stage.machine.says["blkid"] = NOTHING_FOUND
    done = stage.mounting.mount(stage.wish(promote=True, mkfs="xfs"))
    assert stage.diary == ["promote", "attach", "mkfs.xfs", "mount"]
    assert done.formatted and done.filesystem == "xfs"
    assert stage.machine.commands[-2][-1] == DEVICE


def test_primary_with_a_device_is_only_mounted(stage: Stage) -> None:
    stage.volumes.current = "primary"
    stage.attachments.current = Attachment("r0", DEVICE, "fake", "attach")
    done = stage.mounting.mount(stage.wish(promote=True))
    assert stage.diary == ["e2fsck", "mount"]
    assert not done.promoted and not done.attached


def test_xfs_replays_its_log_when_it_is_mounted(stage: Stage) -> None:
    stage.machine.says["blkid"] = Ran(0, "TYPE=xfs\nUSAGE=filesystem\n")
    stage.mounting.mount(stage.wish(promote=True))
    assert stage.diary == ["promote", "attach", "mount"]


def test_what_a_crash_left_is_cleared_first(stage: Stage) -> None:
    stage.attachments.left = Leftover("r0", works=False)
    stage.mounting.mount(stage.wish(promote=True))
    assert stage.diary[0] == "clear"


# Refusals before the first step.


def test_only_root_may_mount(stage: Stage) -> None:
    stage.machine.root = False
    stage.refused("PERMISSION")
    assert stage.diary == []


@pytest.mark.parametrize("role", ["secondary", "unknown"])
def test_secondary_without_promote_is_refused(stage: Stage, role: str) -> None:
    stage.volumes.current = role
    error = stage.refused("NOT_PRIMARY")
    assert error.exit_status == 5
    assert error.next_step.endswith(f"replctl mount r0 '{stage.directory}' --promote")
    assert stage.diary == []


def test_directory_must_be_an_empty_one_of_its_own(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "entry").touch()
    for directory in (tmp_path / "absent", file, tmp_path / "full"):
        error = stage.refused("MOUNT_DIRECTORY", directory=str(directory), promote=True)
        assert str(directory) in error.what
        assert ("mkdir" in error.next_step) == (directory.name == "absent")
    stage.machine.table = [Mount(str(stage.directory), "tmpfs", "tmpfs", "0:5")]
    stage.refused("MOUNT_DIRECTORY", promote=True)
    assert stage.diary == []


def test_directory_behind_a_symbolic_link_is_meant(stage: Stage, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(stage.directory)
    assert stage.mounting.mount(stage.wish(directory=str(link), promote=True)).directory == str(
        stage.directory
    )
    stage.refused("ALREADY_MOUNTED", directory=str(link))


def test_mounted_volume_is_not_mounted_again(stage: Stage, tmp_path: Path) -> None:
    stage.mounted()
    (tmp_path / "other").mkdir()
    for directory in (stage.directory, tmp_path / "other"):
        error = stage.refused("ALREADY_MOUNTED", directory=str(directory))
        assert error.next_step == f"replctl umount '{stage.directory}'"


def test_device_that_others_use_is_not_mounted(stage: Stage) -> None:
    stage.volumes.current = "primary"
    stage.attachments.current = Attachment("r0", DEVICE, "fake", "attach")
    stage.machine.claimed = {DEVICE}
    stage.refused("DEVICE_IN_USE")


def test_frozen_device_is_not_mounted(stage: Stage) -> None:
    stage.volumes.current = "primary"
    stage.attachments.current = Attachment("r0", DEVICE, "fake", "attach", "it is secondary")
    assert stage.refused("ATTACH_FROZEN").why == "it is secondary"


def test_device_that_is_being_given_back_is_refused_before_the_promotion(stage: Stage) -> None:
    folder = Folder(stage.run, "r0")
    folder.make()
    # The guardian must be another process that lives.
    record = Record("r0", "fake", ProcessId.of(os.getppid()), "mount", Phase.ENDING, DEVICE)
    folder.save(record)
    stage.machine.held_by = ["77 (dd)"]
    assert "77 (dd)" in stage.refused("ATTACH_BUSY", promote=True).why
    assert stage.diary == []


def test_missing_maker_is_named_before_anything_is_done(stage: Stage) -> None:
    stage.machine.lacks = {"mkfs.xfs"}
    assert "xfsprogs" in stage.refused("TOOL_MISSING", mkfs="xfs", promote=True).next_step
    assert stage.diary == []


@pytest.mark.parametrize(
    "options",
    [
        "remount",
        "ro,bind",
        "loop=/dev/loop1",
        "ro,offset=1048576",
        "sizelimit=4096",
        "encryption=aes",
        "a\nb",
    ],
)
def test_options_that_do_not_mount_a_device_are_refused(options: str) -> None:
    with pytest.raises(UsageError):
        check_options(options)


def test_options_of_filesystems_are_left_alone() -> None:
    for options in ("", "noatime", "errors=remount-ro,data=journal", "x-name=a b"):
        check_options(options)


# A step that fails: what was done is undone, in reverse order, and nothing else.

PROMOTED = ["promote", "demote"]
ATTACHED = ["promote", "attach", "detach", "demote"]
CHECKED = ["promote", "attach", "e2fsck", "detach", "demote"]
MOUNTED = ["promote", "attach", "e2fsck", "mount", "umount", "detach", "demote"]


def test_refused_promotion_leaves_nothing_to_undo(stage: Stage) -> None:
    stage.diary.trouble["promote"] = refusal(code="PROMOTE_NO_EVIDENCE")
    stage.refused("PROMOTE_NO_EVIDENCE", promote=True)
    assert stage.diary == ["promote"]


def test_failed_attaching_is_followed_by_the_demotion(stage: Stage) -> None:
    stage.diary.trouble["attach"] = refusal(code="ATTACH_FAILED")
    stage.refused("ATTACH_FAILED", promote=True)
    assert stage.diary == ["promote", "attach", "demote"]


def test_unknown_address_is_followed_by_the_demotion(stage: Stage) -> None:
    stage.diary.trouble["address"] = refusal(code="ATTACH_IMPOSSIBLE")
    stage.refused("ATTACH_IMPOSSIBLE", promote=True)
    assert stage.diary == PROMOTED


def test_blank_volume_without_mkfs_is_refused(stage: Stage) -> None:
    stage.machine.says["blkid"] = NOTHING_FOUND
    assert "--mkfs" in stage.refused("UNFORMATTED", promote=True).next_step
    assert stage.diary == ATTACHED


@pytest.mark.parametrize(
    ("found", "first", "held"),
    [
        (EXT4, None, "ext4"),
        (Ran(0, "TYPE=crypto_LUKS\nUSAGE=crypto\n"), None, "crypto_LUKS"),
        (Ran(0, "PTTYPE=gpt\n"), None, "a gpt partition table"),
        (Ran(0, "LABEL=x\n"), None, "a signature"),
        (Ran(8, "blkid: ambivalent result"), None, "contradict each other"),
        (NOTHING_FOUND, 4711, "data of no known kind, the first of it at byte 4711"),
    ],
)
def test_no_filesystem_is_made_over_data(
    stage: Stage, found: Ran, first: int | None, held: str
) -> None:
    stage.machine.says["blkid"], stage.machine.first = found, first
    error = stage.refused("HOLDS_DATA", promote=True, mkfs="ext4")
    assert held in error.what and "DIR" not in error.next_step
    assert stage.diary == ATTACHED
    if found is not EXT4:
        stage.diary.clear()
        assert held in stage.refused("UNFORMATTED", promote=True).why
        assert stage.diary == ATTACHED


def test_failed_mkfs_is_told_in_its_words(stage: Stage) -> None:
    stage.machine.says["blkid"] = NOTHING_FOUND
    stage.machine.says["mkfs.ext4"] = Ran(1, "mke2fs 1.47\nthe device is too small\n")
    error = stage.refused("MKFS_FAILED", promote=True, mkfs="ext4")
    assert error.why == "mkfs.ext4: the device is too small"
    assert error.next_step == "choose another kind:  --mkfs xfs"
    assert stage.diary == ["promote", "attach", "mkfs.ext4", "zero out", "detach", "demote"]


def test_failed_mkfs_is_told_without_its_usage(stage: Stage) -> None:
    stage.machine.says["blkid"] = NOTHING_FOUND
    said = "Filesystem must be larger than 300MB.\nUsage: mkfs.xfs\n\t\t\tdevicename\n"
    said += "<name> is required unless -d name=xxx is given.\n<num> is xxx (bytes), xxxs.\n"
    stage.machine.says["mkfs.xfs"] = Ran(1, said)
    error = stage.refused("MKFS_FAILED", promote=True, mkfs="xfs")
    assert error.why == "mkfs.xfs: Filesystem must be larger than 300MB."
    assert error.next_step == "choose another kind:  --mkfs ext4"


def test_half_made_filesystem_is_unmade(stage: Stage) -> None:
    stage.machine.says["blkid"] = NOTHING_FOUND
    stage.diary.trouble["mkfs.xfs"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stage.mounting.mount(stage.wish(promote=True, mkfs="xfs"))
    undone = ["end writing", "zero out", "detach", "demote"]
    assert stage.diary == ["promote", "attach", "mkfs.xfs", *undone]


def test_whole_filesystem_that_cannot_be_mounted_stays(stage: Stage) -> None:
    stage.machine.says["blkid"] = NOTHING_FOUND
    stage.machine.says["mount"] = Ran(32, "mount: no\n")
    stage.refused("MOUNT_FAILED", promote=True, mkfs="xfs")
    assert stage.diary == ["promote", "attach", "mkfs.xfs", "mount", "detach", "demote"]


def test_half_made_filesystem_on_a_frozen_device_is_told(stage: Stage) -> None:
    told: list[str] = []
    stage.machine.says["blkid"] = NOTHING_FOUND
    mounting = Mounting(stage.attachments, stage.volumes, stage.machine, tell=told.append)

    def freeze_and_interrupt(program: str) -> None:
        stage.attachments.current = Attachment("r0", DEVICE, "fake", "mount", "it is secondary")
        raise KeyboardInterrupt

    stage.machine.after = freeze_and_interrupt
    with pytest.raises(KeyboardInterrupt):
        mounting.mount(stage.wish(promote=True, mkfs="xfs"))
    assert "end writing" in stage.diary and "zero out" not in stage.diary
    assert told == ["Not undone: r0 may hold a part of a filesystem."]


def test_what_holds_data_is_cleared_in_the_state_that_the_undoing_leaves(stage: Stage) -> None:
    error = stage.refused("HOLDS_DATA", promote=True, mkfs="xfs")
    clear = "D=$(replctl attach r0) && wipefs -a $D && blkdiscard -z $D"
    assert error.next_step.endswith(f"  replctl promote r0 && {clear} && replctl detach r0")
    assert f"mount r0 '{stage.directory}' --promote   or" in error.next_step
    assert "half made" in error.why
    stage.volumes.current = "primary"
    stage.attachments.current = Attachment("r0", DEVICE, "fake", "attach")
    assert stage.refused("HOLDS_DATA", mkfs="xfs").next_step.endswith(f"  {clear}")


def test_damaged_filesystem_is_not_mounted(stage: Stage) -> None:
    stage.machine.says["e2fsck"] = Ran(4, "UNEXPECTED INCONSISTENCY; RUN fsck MANUALLY.")
    assert "fsck MANUALLY" in stage.refused("FSCK_FAILED", promote=True).why
    assert stage.diary == CHECKED


def test_corrected_filesystem_is_mounted(stage: Stage) -> None:
    stage.machine.says["e2fsck"] = Ran(1, "recovering journal")
    assert stage.mounting.mount(stage.wish(promote=True)).filesystem == "ext4"


def test_failed_mount_undoes_attaching_and_promotion(stage: Stage) -> None:
    said = "mount: /x: wrong fs type,\n  bad option.\n       dmesg(1) may have more information.\n"
    stage.machine.says["mount"] = Ran(32, said)
    error = stage.refused("MOUNT_FAILED", promote=True)
    assert error.why == "mount: /x: wrong fs type, bad option."
    assert stage.diary == ["promote", "attach", "e2fsck", "mount", "detach", "demote"]


def test_what_is_mounted_instead_of_the_device_is_taken_away_again(stage: Stage) -> None:
    other = Mount(str(stage.directory), "ext4", "/dev/mapper/verity", "253:0")

    def replace(program: str) -> None:
        if program == "mount":
            stage.machine.table = [other]

    stage.machine.after = replace
    error = stage.refused("MOUNT_FAILED", promote=True, options="verity.roothash=1")
    assert "/dev/mapper/verity (ext4)" in error.why and "verity.roothash=1" in error.next_step
    assert stage.diary == MOUNTED


def test_mount_that_mounted_nothing_is_an_error(stage: Stage) -> None:
    def replace(program: str) -> None:
        stage.machine.table = []

    stage.machine.after = replace
    assert "nothing" in stage.refused("MOUNT_FAILED", promote=True).why


def test_only_what_this_command_did_is_undone(stage: Stage) -> None:
    stage.volumes.current = "primary"
    stage.attachments.current = Attachment("r0", DEVICE, "fake", "attach")
    stage.machine.says["mount"] = Ran(32, "mount: no\n")
    stage.refused("MOUNT_FAILED", promote=True)
    assert stage.diary == ["e2fsck", "mount"]


@pytest.mark.parametrize(
    ("at", "done"),
    [
        ("promote", PROMOTED),
        ("attach", ["promote", "attach", "demote"]),
        ("e2fsck", CHECKED),
        ("mount", ["promote", "attach", "e2fsck", "mount", "detach", "demote"]),
    ],
)
def test_interruption_at_any_step_is_followed_by_the_undoing(
    stage: Stage, at: str, done: list[str]
) -> None:
    stage.diary.trouble[at] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stage.mounting.mount(stage.wish(promote=True))
    assert stage.diary == done
    assert stage.volumes.current == "secondary" and stage.attachments.current is None


def test_interruption_after_the_mount_took_place_unmounts_it(stage: Stage) -> None:
    def interrupt(program: str) -> None:
        if program == "mount":
            raise KeyboardInterrupt

    stage.machine.after = interrupt
    with pytest.raises(KeyboardInterrupt):
        stage.mounting.mount(stage.wish(promote=True))
    assert stage.diary == MOUNTED
    assert stage.machine.table == []


def test_interruption_after_the_promotion_took_place_demotes(stage: Stage) -> None:
    promote = stage.volumes.promote

    def promote_and_interrupt(volume: str, peer_dead: str | None) -> None:
        promote(volume, peer_dead)
        raise KeyboardInterrupt

    stage.volumes.promote = promote_and_interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stage.mounting.mount(stage.wish(promote=True))
    assert stage.diary == PROMOTED


def test_promotion_that_is_under_way_still_is_undone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon carries the order out although nobody waits for the answer any more."""
    monkeypatch.setattr(mounting, "POLL_PAUSE_S", 0.001)
    stage.diary.trouble["promote"] = KeyboardInterrupt()
    stage.diary.trouble["demote"] = refusal("Cannot demote r0.", code="VOLUME_BUSY")

    def demote(volume: str, timeout_s: float = 0.0) -> None:
        assert 0 < timeout_s <= mounting.UNDO_TIMEOUT_S
        if stage.diary.count("demote") == 2:
            stage.volumes.current = "primary"
            del stage.diary.trouble["demote"]
        FakeVolumes.demote(stage.volumes, volume)

    stage.volumes.demote = demote  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stage.mounting.mount(stage.wish(promote=True))
    assert stage.diary == ["promote", "demote", "demote", "demote"]
    assert stage.volumes.current == "secondary"


@pytest.mark.parametrize("code", ["VOLUME_BUSY", "DEMOTE_CLIENTS"])
def test_promotion_that_cannot_be_undone_is_said_with_the_command(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(mounting, "UNDO_TIMEOUT_S", 0.0)
    told: list[str] = []
    stage.diary.trouble["promote"] = KeyboardInterrupt()
    stage.diary.trouble["demote"] = refusal("Cannot demote r0 on alpha.", code=code)
    interrupted = Mounting(stage.attachments, stage.volumes, stage.machine, tell=told.append)
    with pytest.raises(KeyboardInterrupt):
        interrupted.mount(stage.wish(promote=True))
    assert told == [
        "Not undone: r0 may be primary on this node (Cannot demote r0 on alpha: a test says so): "
        "replctl demote r0"
    ]


def test_promotion_without_an_answer_is_undone(stage: Stage) -> None:
    stage.diary.trouble["promote"] = TimedOut("repld did not finish.", "a test", "status")
    stage.refused("TIMED_OUT", promote=True)
    assert stage.diary == PROMOTED


def test_what_cannot_be_undone_is_said_and_the_rest_is_undone(stage: Stage) -> None:
    stage.machine.says["mount"] = Ran(32, "mount: no\n")
    stage.diary.trouble["detach"] = failure("The device is held.")
    with pytest.raises(ReplError) as failed:
        stage.mounting.mount(stage.wish(promote=True))
    assert failed.value.code == "MOUNT_FAILED"
    assert failed.value.why == "mount: no; not undone: The device is held."
    assert stage.diary[-2:] == ["detach", "demote"]


def test_undoing_is_shielded_from_signals(stage: Stage) -> None:
    events = stage.diary

    class Shield:
        def __enter__(self) -> None:
            events.append("shield")

        def __exit__(self, *_: object) -> None:
            events.append("unshield")

    mounting = Mounting(stage.attachments, stage.volumes, stage.machine, Shield)
    stage.diary.trouble["attach"] = refusal()
    with pytest.raises(Refused):
        mounting.mount(stage.wish(promote=True))
    assert events == ["promote", "attach", "shield", "demote", "unshield"]


def test_directory_takes_one_volume_even_of_two_commands_at_once(
    stage: Stage, tmp_path: Path
) -> None:
    link = tmp_path / "another path of it"
    link.symlink_to(stage.directory)
    refusals: list[Refused] = []

    def mount_the_other(program: str) -> None:
        # The first command has found the directory empty, and has not mounted anything yet.
        if program == "e2fsck":
            with pytest.raises(Refused) as refused:
                stage.mounting.mount(stage.wish(volume="r1", directory=str(link)))
            refusals.append(refused.value)

    stage.machine.after = mount_the_other
    stage.mounting.mount(stage.wish(promote=True))
    assert [refusal.code for refusal in refusals] == ["ATTACH_BUSY"]
    assert str(link) in refusals[0].what
    assert stage.diary == ["promote", "attach", "e2fsck", "mount"]
    # Afterwards the lock is free, and what is mounted is seen.
    stage.refused("MOUNT_DIRECTORY", volume="r1")

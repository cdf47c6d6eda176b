"""The ways to attach: which is chosen, what the machine lacks, and how each calls its program."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from repl.attach.attaching import ways_for
from repl.attach.machine import Machine, Ran
from repl.attach.nbdfuse import NbdfuseWay
from repl.attach.record import Folder
from repl.attach.ways import NAMES, Availability, choose
from repl.errors import Refused, ReplError
from tests.attach.fakes import Diary, FakeMachine, FakeWay


class LackingWay(FakeWay):
    def available(self) -> Availability:
        return Availability(False, "the kernel has no nbd module")


def test_first_way_that_the_machine_has_is_chosen() -> None:
    best, second = FakeWay(Diary()), FakeWay(Diary())
    assert choose([LackingWay(Diary()), best, second]) is best


def test_wanted_way_is_taken_or_nothing() -> None:
    best, second = FakeWay(Diary()), FakeWay(Diary())
    second.name = "second"
    assert choose([best, second], "second") is second
    with pytest.raises(Refused) as refused:
        choose([LackingWay(Diary()), second], "fake")
    assert refused.value.why == "fake: the kernel has no nbd module"
    assert "leave out --way" in refused.value.next_step


def test_every_way_has_the_name_by_which_it_is_wanted(tmp_path: Path) -> None:
    assert tuple(way.name for way in ways_for(Machine(), Folder(tmp_path, "r0"))) == NAMES


def test_machine_without_a_way_is_told_what_it_lacks() -> None:
    with pytest.raises(Refused) as refused:
        choose([LackingWay(Diary())])
    assert refused.value.code == "ATTACH_IMPOSSIBLE"
    assert refused.value.why == "fake: the kernel has no nbd module"


# nbdfuse.


def fuse(machine: Machine, folder: Path) -> NbdfuseWay:
    return NbdfuseWay(machine, folder)


def test_nbdfuse_names_what_is_missing(tmp_path: Path) -> None:
    machine = FakeMachine()
    assert fuse(machine, tmp_path).available().ok
    for program in ("nbdfuse", "fusermount3"):
        machine.lacks = {program}
        assert program in fuse(machine, tmp_path).available().why


def test_failed_nbdfuse_is_told_in_its_words_and_leaves_nothing(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "no such socket")
    with pytest.raises(ReplError) as failed:
        fuse(Machine(), tmp_path).attach(nowhere, "r0")
    assert failed.value.code == "ATTACH_FAILED" and "No such file" in failed.value.why
    assert not (tmp_path / "fuse").exists()


# The machine itself.


def test_program_that_is_missing_is_named_with_its_package() -> None:
    with pytest.raises(Refused) as refused:
        Machine().run("mkfs.xfs.is.not.there")
    assert refused.value.code == "TOOL_MISSING"
    assert not Machine().has("mkfs.xfs.is.not.there") and Machine().has("sh")


def test_program_is_run_without_a_terminal_and_with_its_words() -> None:
    ran = Machine().run("sh", "-c", "echo out; echo err >&2; echo; cat; exit 3")
    assert (ran.status, ran.last_line) == (3, "err")
    assert Ran(7, "").last_line == Ran(7, "").refusal == "it ended with status 7"
    assert Ran(1, "Usage: mkfs\n  device\n").refusal == "device"


def test_program_that_takes_too_long_is_killed() -> None:
    ran = Machine().run("sh", "-c", "echo begun; sleep 60", timeout_s=0.5)
    assert ran.status != 0 and "begun" in ran.said and "did not end" in ran.last_line


def test_holders_of_a_folder_are_named(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        try:
            assert Machine().holders([str(tmp_path)]) == [f"{process.pid} (sleep)"]
            assert Machine().holders([f"{tmp_path}x", "/nowhere"]) == []
        finally:
            process.kill()
    with (tmp_path / "file").open("w"):
        # This process itself does not count: it knows what it holds.
        assert Machine().holders([str(tmp_path)]) == []


def test_mount_namespaces_that_copied_a_mount_are_named(tmp_path: Path) -> None:
    assert Machine().holders_elsewhere("/dev/nowhere") == []
    script = 'mount -t tmpfs "$1" "$2" && echo ready && exec sleep 60'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", "repl-copy", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            (holder,) = Machine().holders_elsewhere("repl-copy")
            assert holder.startswith(f"{process.pid} (")
        finally:
            process.kill()

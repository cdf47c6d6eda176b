"""Finding, starting and ending guardians: real processes that stand in for real guardians."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from repl.attach import attaching
from repl.attach.attaching import Attachments, Leftover
from repl.attach.mounts import Mount
from repl.attach.processes import ProcessId
from repl.attach.record import Folder, Phase, Record
from repl.errors import PermissionRefused, Refused, ReplError, TimedOut
from tests.attach.fakes import DEVICE, FakeMachine, FakeWay, refusal
from tests.daemon import ROOT, wait_for

WHERE = "/run/repl/nbd.sock"
#: Writes its record, answers as it is told to, and ends at SIGTERM or SIGUSR1.
STAND_IN = """
import json, os, signal, sys
from pathlib import Path
from repl.attach.processes import ProcessId
from repl.attach.record import Folder, Phase, Record
order = json.loads(sys.stdin.readline())
folder = Folder(Path(order["run"]), order["volume"])
ended = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: ended.append(number))
me = ProcessId.of(os.getpid())
phase = Phase(order.get("phase", "attached"))
folder.save(Record(order["volume"], "nbdfuse", me, order["made_by"], phase, order["device"], "m"))
os.write(1, order["answer"].encode())
if order["stays"]:
    while not ended:
        signal.pause()
    folder.log_path.write_text(signal.Signals(ended[0]).name)
folder.remove()
"""


@dataclass
class Here:
    """Attachments whose guardians are stand-ins; `told` is added to their order."""

    run: Path
    machine: FakeMachine
    told: dict[str, Any]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, order: dict[str, Any]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", STAND_IN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({**order, **self.told}).encode() + b"\n")
        process.stdin.close()
        self.started.append(process)
        return process

    @property
    def attachments(self) -> Attachments:
        return Attachments(self.run, self.machine, self.start)

    @property
    def folder(self) -> Folder:
        return Folder(self.run, "r0")

    def ended_by(self) -> str:
        """Wait until the last stand-in has ended; return the signal that it was sent."""
        self.started[-1].wait(20)
        return self.folder.last_words()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    told = {"device": DEVICE, "answer": json.dumps({"device": DEVICE}) + "\n", "stays": True}
    place = Here(tmp_path, FakeMachine(), told)
    yield place
    for process in place.started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def left_behind(here: Here, phase: Phase = Phase.ATTACHED, device: str = DEVICE) -> None:
    """Leave the record of a guardian that is dead."""
    with subprocess.Popen(["sleep", "60"]) as process:
        dead = ProcessId.of(process.pid)
        process.kill()
    here.folder.make()
    here.folder.save(Record("r0", "nbdfuse", dead, "mount", phase, device, "m"))


def test_device_of_a_new_guardian_is_returned(here: Here) -> None:
    found = here.attachments.attach("r0", WHERE, "attach", 7.0)
    assert (found.device, found.way, found.new) == (DEVICE, "nbdfuse", True)
    assert list(here.attachments.all()) == [here.attachments.find("r0")]


def test_attached_volume_is_not_attached_again(here: Here) -> None:
    here.attachments.attach("r0", WHERE, "attach")
    again = here.attachments.attach("r0", WHERE, "mount")
    assert (again.device, again.new, again.made_by) == (DEVICE, False, "attach")
    assert len(here.started) == 1


def test_detached_volume_is_gone(here: Here) -> None:
    here.attachments.attach("r0", WHERE, "attach")
    here.attachments.detach("r0")
    assert here.ended_by() == "SIGTERM"
    assert here.attachments.find("r0") is None and not here.folder.path.exists()
    with pytest.raises(Refused) as refused:
        here.attachments.detach("r0")
    assert refused.value.code == "NOT_ATTACHED"


def test_used_device_is_not_detached(here: Here) -> None:
    here.attachments.attach("r0", WHERE, "attach")
    here.machine.table = [Mount("/mnt", "ext4", DEVICE, "7:99")]
    with pytest.raises(Refused, match="mounted on /mnt"):
        here.attachments.detach("r0")
    here.machine.table, here.machine.claimed = [], {DEVICE}
    with pytest.raises(Refused) as refused:
        here.attachments.detach("r0")
    assert refused.value.code == "DEVICE_IN_USE" and "lsblk" in refused.value.next_step
    here.machine.held_elsewhere_by = ["88 (dockerd)"]
    with pytest.raises(Refused, match="is in use") as refused:
        here.attachments.detach("r0")
    assert refused.value.why.endswith("a file tree of their own: 88 (dockerd)")
    here.attachments.detach("r0", force=True)
    assert here.ended_by() == "SIGUSR1"


def test_frozen_device_is_not_waited_for(here: Here) -> None:
    here.attachments.attach("r0", WHERE, "attach")
    record = here.folder.load()
    assert record is not None
    here.folder.save(
        Record("r0", "nbdfuse", record.guardian, "attach", Phase.ATTACHED, DEVICE, "m",
               frozen="it is secondary")
    )  # fmt: skip
    with pytest.raises(Refused) as refused:
        here.attachments.detach("r0")
    assert (refused.value.code, refused.value.why) == ("ATTACH_FROZEN", "it is secondary")


def test_error_of_a_guardian_is_raised_as_it_was(here: Here) -> None:
    error = refusal("r0 is not served here.", code="NOT_PRIMARY")
    here.told |= {"answer": json.dumps({"error": error.to_json()}) + "\n", "stays": False}
    with pytest.raises(Refused, match="not served here") as refused:
        here.attachments.attach("r0", WHERE, "attach")
    assert refused.value.code == "NOT_PRIMARY"


@pytest.mark.parametrize("answer", ["", "Traceback\n", "[]\n", "{}\n"])
def test_guardian_that_ends_without_an_answer_is_an_error(here: Here, answer: str) -> None:
    here.told |= {"answer": answer, "stays": False}
    with pytest.raises(ReplError) as failed:
        here.attachments.attach("r0", WHERE, "attach")
    assert failed.value.code == "ATTACH_FAILED"
    assert str(here.folder.log_path) in failed.value.next_step


def test_guardian_that_is_held_is_ended_in_time(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attaching, "ATTACH_TIMEOUT_S", 1.0)
    here.told |= {"answer": "", "phase": "attaching"}
    with pytest.raises(TimedOut):
        here.attachments.attach("r0", WHERE, "attach")
    assert here.ended_by() == "SIGUSR1"


def being_given_back(here: Here) -> subprocess.Popen[bytes]:
    """Start a guardian that gives its device back."""
    here.told |= {"phase": "ending"}
    here.folder.make()
    guardian = here.start({"run": str(here.run), "volume": "r0", "made_by": "attach"})
    wait_for(here.folder.load, what="the stand-in has its record")
    here.told |= {"phase": "attached"}
    return guardian


def test_attaching_waits_for_a_guardian_that_is_about_to_end(here: Here) -> None:
    first = being_given_back(here)
    threading.Timer(0.3, first.terminate).start()
    assert here.attachments.attach("r0", WHERE, "attach").new


def test_device_that_is_being_given_back_and_held_is_refused_at_once(here: Here) -> None:
    guardian = being_given_back(here)
    here.machine.held_by = [f"{guardian.pid} (python)", "77 (dd)"]
    began_s = time.monotonic()
    with pytest.raises(Refused, match="r0 is still being detached") as refused:
        here.attachments.attach("r0", WHERE, "attach")
    assert time.monotonic() - began_s < attaching.GIVEN_BACK_TIMEOUT_S
    assert refused.value.code == "ATTACH_BUSY"
    assert refused.value.why == f"these processes use {DEVICE}: 77 (dd)"
    assert "end them, then" in refused.value.next_step
    assert "replctl detach r0 --force" in refused.value.next_step


@pytest.mark.parametrize(
    ("frozen", "why"),
    [("", "its guardian writes out"), ("no repld", "its requests wait: no repld")],
)
def test_device_that_is_given_back_slowly_is_refused_soon(
    here: Here, monkeypatch: pytest.MonkeyPatch, frozen: str, why: str
) -> None:
    guardian = being_given_back(here)
    # The guardian itself has the device open while it writes it out.
    here.machine.held_by = [f"{guardian.pid} (python)"]
    record = here.folder.load()
    assert record is not None
    here.folder.save(replace(record, frozen=frozen))
    monkeypatch.setattr(attaching, "GIVEN_BACK_TIMEOUT_S", 0.2)
    with pytest.raises(Refused, match="still being detached") as refused:
        here.attachments.attach("r0", WHERE, "attach")
    assert refused.value.why.startswith(why)
    assert refused.value.next_step.startswith("wait, then")


def test_attaching_that_was_killed_is_waited_for(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.told |= {"phase": "attaching"}
    here.folder.make()
    here.start({"run": str(here.run), "volume": "r0", "made_by": "attach"})
    wait_for(here.folder.load, what="the stand-in has its record")
    monkeypatch.setattr(attaching, "END_TIMEOUT_S", 0.2)
    with pytest.raises(TimedOut):
        here.attachments.attach("r0", WHERE, "attach")


def test_detaching_that_takes_too_long_names_who_holds_it(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    here.attachments.attach("r0", WHERE, "attach")
    monkeypatch.setattr(attaching, "END_TIMEOUT_S", 0.2)
    here.started[-1].send_signal(signal.SIGSTOP)
    here.machine.held_by = ["77 (dd)"]
    try:
        with pytest.raises(TimedOut) as late:
            here.attachments.detach("r0")
    finally:
        here.started[-1].send_signal(signal.SIGCONT)
    assert "77 (dd)" in late.value.why


def test_record_of_a_dead_guardian_counts_for_nothing(here: Here) -> None:
    left_behind(here)
    assert here.attachments.find("r0") is None
    assert list(here.attachments.all()) == []
    assert here.attachments.attach("r0", WHERE, "attach").new


@pytest.mark.parametrize("phase", list(Phase))
def test_what_a_crash_left_is_cleared_by_detach(here: Here, phase: Phase) -> None:
    left_behind(here, phase, "" if phase is Phase.ATTACHING else DEVICE)
    here.attachments.detach("r0")
    assert not here.folder.path.exists()


def test_device_that_is_another_ones_by_now_is_left_alone(here: Here) -> None:
    left_behind(here)
    here.machine.table = [Mount("/mnt", "ext4", DEVICE, "7:99")]
    # The device of that name does not have the mark: it was made by somebody else since.
    assert here.attachments.left_with(here.machine.table[0]) is None
    here.attachments.clear_leftovers("r0")
    assert here.machine.commands == []
    assert not here.folder.path.exists()


@pytest.mark.parametrize("works", [True, False])
def test_used_device_that_outlived_its_guardian_is_taken_only_by_force(
    here: Here, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    left_behind(here)
    way = FakeWay(here.machine.diary)
    way.name, way.outlives_guardian = "nbdfuse", works
    monkeypatch.setattr(attaching, "ways_for", lambda *_: [way])
    here.machine.table = [Mount("/mnt", "ext4", DEVICE, "7:99")]
    assert here.attachments.left_with(here.machine.table[0]) == Leftover("r0", works)
    if works:
        for command in (
            lambda: here.attachments.attach("r0", WHERE, "attach"),
            lambda: here.attachments.detach("r0"),
        ):
            with pytest.raises(Refused, match="mounted on /mnt"):
                command()
        assert here.machine.diary == []
        here.attachments.detach("r0", force=True)
    else:
        here.attachments.detach("r0")
    assert here.machine.diary == ["cut off", "umount"]


def test_damaged_record_is_cleared_away(here: Here) -> None:
    here.folder.make()
    (here.folder.path / "record.json").write_text("{")
    here.attachments.clear_leftovers("r0")
    assert not here.folder.path.exists()


def test_nobody_but_root_is_allowed(here: Here) -> None:
    here.attachments.check_allowed()
    here.machine.root = False
    with pytest.raises(PermissionRefused):
        here.attachments.check_allowed()


def test_two_commands_do_not_meet(here: Here) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(here.attachments.locked("r0"))
        with pytest.raises(Refused) as refused:
            stack.enter_context(here.attachments.locked("r0"))
    assert refused.value.code == "ATTACH_BUSY"


def test_device_of_an_unmounting_that_hangs_is_in_use_by_that(here: Here) -> None:
    here.attachments.attach("r0", WHERE, "attach")
    here.machine.claimed = {DEVICE}
    here.attachments.note_unmount("r0", "/mnt", os.getpid())
    with pytest.raises(Refused) as refused:
        here.attachments.detach("r0")
    assert refused.value.code == "ATTACH_BUSY"
    assert "being unmounted from /mnt" in refused.value.what
    assert "replctl umount /mnt --force" in refused.value.next_step
    with here.attachments.locked("r0"), here.attachments.locked("r0", force=True):
        here.attachments.detach("r0", force=True)
    # Without a guardian it is cleared up, which two must not do at once.
    with here.attachments.locked("r0"), pytest.raises(Refused):
        here.attachments.locked("r0", force=True).__enter__()

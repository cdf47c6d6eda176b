"""A guardian's life: from its order to the end of its device, and what it leaves at each end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nbdserver import protocol as nbd
from nbdserver.export import ExportInfo, Refusal
from repl.attach.guardian import CUT_OFF_EXIT_STATUS, Guardian, Order
from repl.attach.history import Generation
from repl.attach.mounts import Mount
from repl.attach.record import Folder, Phase
from repl.errors import ReplError
from tests.attach.fake_nbd import OTHER, SIZE_BYTES, FakeDaemon, FakeNbd
from tests.attach.fakes import DEVICE, Diary, FakeMachine, FakeWay, failure

DEADLINE_S = 20.0


@dataclass
class Guarded:
    """One guardian in this process, its surroundings, and what it announced."""

    folder: Folder
    server: FakeNbd
    daemon: FakeDaemon
    diary: Diary
    machine: FakeMachine
    way: FakeWay
    announced: list[str] = field(default_factory=list)
    announce_fails: bool = False

    def announce(self, device: str) -> None:
        if self.announce_fails:
            raise BrokenPipeError
        self.announced.append(device)

    def guardian(self, dead_after_s: float = 0.3) -> Guardian:
        address = str(self.server.path)
        order = Order("r0", address, "mount", dead_after_s)
        return Guardian(order, self.folder, self.way, self.machine, self.daemon, self.announce)

    async def until(self, phase: Phase) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while (record := self.folder.load()) is None or record.phase is not phase:
                await asyncio.sleep(0.01)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    folder = Folder(tmp_path, "r0")
    folder.make()
    diary = Diary()
    yield Guarded(
        folder, FakeNbd(tmp_path / "nbd"), FakeDaemon(), diary, FakeMachine(diary), FakeWay(diary)
    )
    assert not folder.path.exists()


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


async def run(guarded: Guarded, guardian: Guardian, *story: Awaitable[None]) -> int:
    """Run the guardian beside the story's coroutines; return its exit status."""
    await guarded.server.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            status, *_ = await asyncio.gather(guardian.run(), *story)
            assert isinstance(status, int)
            return status
    finally:
        if guarded.server._server is not None:
            await guarded.server.stop()


def test_attached_device_is_announced_and_recorded(guarded: Guarded) -> None:
    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        record = guarded.folder.load()
        assert record is not None
        assert (record.device, record.mark, record.made_by) == (DEVICE, "fake mark", "mount")
        assert record.guardian.pid == os.getpid() and record.frozen == ""
        assert guarded.announced == [DEVICE]
        send(signal.SIGTERM)

    assert asyncio.run(run(guarded, guarded.guardian(), story())) == 0
    assert guarded.diary == ["attach", "detach"]


def test_used_device_is_given_back_when_its_user_is_done(guarded: Guarded) -> None:
    guarded.machine.table = [Mount("/mnt", "ext4", DEVICE, "7:99")]

    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        send(signal.SIGTERM)
        await asyncio.sleep(0.5)
        assert guarded.diary == ["attach"]
        guarded.machine.table = []

    assert asyncio.run(run(guarded, guarded.guardian(), story())) == 0
    assert guarded.diary == ["attach", "detach"]


def test_dead_daemon_takes_the_device_from_its_users(guarded: Guarded) -> None:
    guarded.machine.table = [
        Mount("/mnt", "ext4", DEVICE, "7:99"),
        Mount("/mnt/again", "ext4", DEVICE, "7:99"),
    ]

    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        await guarded.server.stop()

    status = asyncio.run(run(guarded, guarded.guardian(), story()))
    assert status == CUT_OFF_EXIT_STATUS
    assert guarded.diary == ["attach", "cut off", "umount", "umount"]
    unmounted = [command for command in guarded.machine.commands if command[0] == "umount"]
    assert unmounted == [("umount", "--lazy", "/mnt/again"), ("umount", "--lazy", "/mnt")]


def test_volume_taken_over_elsewhere_is_cut_off_at_once(guarded: Guarded) -> None:
    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        guarded.daemon.entries = [Generation(2, OTHER), *guarded.daemon.entries]
        guarded.server.drop()

    assert asyncio.run(run(guarded, guarded.guardian(60.0), story())) == CUT_OFF_EXIT_STATUS
    assert guarded.diary == ["attach", "cut off"]


def test_frozen_device_says_so_in_its_record(guarded: Guarded) -> None:
    async def frozen() -> str:
        record = guarded.folder.load()
        return record.frozen if record is not None else ""

    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        guarded.server.answer = Refusal(nbd.Reply.ERR_POLICY, "r0 is secondary on alpha")
        guarded.server.drop()
        while await frozen() != "r0 is secondary on alpha":
            await asyncio.sleep(0.01)
        guarded.server.answer = ExportInfo("r0", SIZE_BYTES)
        while await frozen():
            await asyncio.sleep(0.01)
        send(signal.SIGTERM)

    assert asyncio.run(run(guarded, guarded.guardian(), story())) == 0


def test_operator_may_cut_off_a_device_that_is_used(guarded: Guarded) -> None:
    guarded.machine.claimed = {DEVICE}

    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        send(signal.SIGUSR1)

    assert asyncio.run(run(guarded, guarded.guardian(), story())) == CUT_OFF_EXIT_STATUS
    assert guarded.diary == ["attach", "cut off"]


@pytest.mark.parametrize(
    ("refusal", "next_step"),
    [
        (Refusal(nbd.Reply.ERR_POLICY, "r0 is secondary here"), "replctl promote r0"),
        (Refusal(nbd.Reply.ERR_UNKNOWN, "alpha has no volume r0"), "replctl status"),
    ],
)
def test_volume_that_is_not_served_is_not_attached(
    guarded: Guarded, refusal: Refusal, next_step: str
) -> None:
    guarded.server.answer = refusal
    with pytest.raises(ReplError) as refused:
        asyncio.run(run(guarded, guarded.guardian()))
    assert (refused.value.code, refused.value.why) == ("NOT_PRIMARY", refusal.message)
    assert refused.value.next_step == next_step
    assert guarded.diary == []


def test_read_only_export_is_not_attached(guarded: Guarded) -> None:
    guarded.server.answer = ExportInfo("r0", SIZE_BYTES, read_only=True)
    with pytest.raises(ReplError) as refused:
        asyncio.run(run(guarded, guarded.guardian()))
    assert refused.value.code == "ATTACH_IMPOSSIBLE"


def test_absent_daemon_is_told_from_a_refusal(guarded: Guarded) -> None:
    async def alone() -> int:
        return await guarded.guardian().run()

    with pytest.raises(ReplError, match="could not be attached") as failed:
        asyncio.run(alone())
    assert failed.value.code == "ATTACH_FAILED"


def test_held_attaching_ends_when_it_is_asked_to(guarded: Guarded) -> None:
    guarded.server.answer = None

    async def story() -> None:
        await guarded.until(Phase.ATTACHING)
        while not guarded.server.connections:
            await asyncio.sleep(0.01)
        send(signal.SIGUSR1)

    with pytest.raises(ReplError, match="not attached"):
        asyncio.run(run(guarded, guarded.guardian(), story()))
    assert guarded.diary == []


def test_failed_way_is_told_in_its_words(guarded: Guarded) -> None:
    guarded.diary.trouble["attach"] = failure("The way is blocked.")
    with pytest.raises(ReplError, match="The way is blocked"):
        asyncio.run(run(guarded, guarded.guardian()))


def test_slow_way_is_cut_off_when_asked_to(guarded: Guarded) -> None:
    released = threading.Event()

    def attach(address: str, export: str) -> Path:
        guarded.diary.note("attach")
        assert released.wait(DEADLINE_S)
        raise failure("It was cut off.")

    def cut_off(device: Path | None) -> None:
        assert device is None
        released.set()

    guarded.way.attach = attach  # type: ignore[method-assign]
    guarded.way.cut_off = cut_off  # type: ignore[method-assign]

    async def story() -> None:
        while guarded.diary != ["attach"]:
            await asyncio.sleep(0.01)
        send(signal.SIGUSR1)

    with pytest.raises(ReplError, match="It was cut off"):
        asyncio.run(run(guarded, guarded.guardian(), story()))


def test_device_that_nobody_waits_for_is_given_back(guarded: Guarded) -> None:
    guarded.announce_fails = True
    assert asyncio.run(run(guarded, guarded.guardian())) == 0
    assert guarded.diary == ["attach", "detach"]


def test_giving_back_is_tried_until_it_succeeds(guarded: Guarded) -> None:
    attempts = iter([failure("Still open somewhere."), failure("Still."), None])

    def detach(device: Path) -> None:
        guarded.diary.note("detach")
        trouble = next(attempts)
        if trouble is not None:
            raise trouble

    guarded.way.detach = detach  # type: ignore[method-assign]

    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        send(signal.SIGTERM)

    assert asyncio.run(run(guarded, guarded.guardian(), story())) == 0
    assert guarded.diary == ["attach", "detach", "detach", "detach"]


def test_bug_in_the_guardian_leaves_no_device_unguarded(guarded: Guarded) -> None:
    def broken() -> list[Mount]:
        if threading.current_thread() is threading.main_thread():
            raise RuntimeError("a bug")
        return []

    guarded.machine.mounts = broken  # type: ignore[method-assign]

    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        send(signal.SIGTERM)

    with pytest.raises(RuntimeError, match="a bug"):
        asyncio.run(run(guarded, guarded.guardian(), story()))
    assert guarded.diary == ["attach", "cut off"]


def waits_until_cut_off(guarded: Guarded) -> threading.Event:
    """Let the giving back wait until the device is cut off; return what tells that it has begun."""
    answered, begun = threading.Event(), threading.Event()

    def detach(device: Path) -> None:
        guarded.diary.note("detach")
        begun.set()
        assert answered.wait(DEADLINE_S)
        raise OSError(errno.EIO, "its requests have failed")

    def cut_off(device: Path | None) -> None:
        guarded.diary.note("cut off")
        answered.set()

    guarded.way.detach, guarded.way.cut_off = detach, cut_off  # type: ignore[method-assign]
    return begun


def test_device_that_waits_to_be_written_out_can_be_cut_off(guarded: Guarded) -> None:
    begun = waits_until_cut_off(guarded)

    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        send(signal.SIGTERM)
        await asyncio.to_thread(begun.wait, DEADLINE_S)
        send(signal.SIGUSR1)

    status = asyncio.run(run(guarded, guarded.guardian(), story()))
    assert status == CUT_OFF_EXIT_STATUS
    assert guarded.diary == ["attach", "detach", "cut off"]


@pytest.mark.parametrize("cause", ["gone", "taken over"])
def test_device_that_is_being_given_back_is_cut_off_when_it_is_dead(
    guarded: Guarded, caplog: pytest.LogCaptureFixture, cause: str
) -> None:
    """A process still has it open, and its requests would wait for ever."""
    begun = waits_until_cut_off(guarded)

    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        send(signal.SIGTERM)
        await asyncio.to_thread(begun.wait, DEADLINE_S)
        if cause == "gone":
            await guarded.server.stop()
        else:
            guarded.daemon.entries = [Generation(2, OTHER), *guarded.daemon.entries]
            guarded.server.drop()

    status = asyncio.run(run(guarded, guarded.guardian(), story()))
    assert status == CUT_OFF_EXIT_STATUS
    assert guarded.diary == ["attach", "detach", "cut off"]
    reason = "nothing answers" if cause == "gone" else "another node has been primary"
    assert reason in caplog.text


def test_device_that_is_being_given_back_waits_for_a_daemon_that_comes_back(
    guarded: Guarded,
) -> None:
    answered, begun = threading.Event(), threading.Event()

    def detach(device: Path) -> None:
        guarded.diary.note("detach")
        begun.set()
        assert answered.wait(DEADLINE_S)

    guarded.way.detach = detach  # type: ignore[method-assign]

    def frozen() -> str:
        record = guarded.folder.load()
        assert record is not None and record.phase is Phase.ENDING
        return record.frozen

    async def story() -> None:
        await guarded.until(Phase.ATTACHED)
        send(signal.SIGTERM)
        await asyncio.to_thread(begun.wait, DEADLINE_S)
        await guarded.server.stop()
        while not frozen():
            await asyncio.sleep(0.01)
        await guarded.server.start()
        while frozen():
            await asyncio.sleep(0.01)
        answered.set()

    assert asyncio.run(run(guarded, guarded.guardian(5.0), story())) == 0
    assert guarded.diary == ["attach", "detach"]

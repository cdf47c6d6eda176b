"""The kernel's driver as a way to attach: what is added to a keeper. The kernel is a fake."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pytest

from repl.attach import kernel_nbd, kernel_way
from repl.attach.kernel_way import KernelWay
from repl.attach.nbd_control import NbdControl
from repl.attach.nbd_netlink import DeviceSettings
from repl.errors import ReplError
from tests.attach.fake_kernel import FakeKernel
from tests.daemon import MIB, wait_for
from tests.nbdserver.serving import ServerProcess

DEVICE = Path("/dev/nbd4")


class Kernel(FakeKernel):
    """The fake driver with its part of /sys; each `control` to it can be closed by itself."""

    def __init__(self, sysfs: Path) -> None:
        super().__init__()
        self._pid = sysfs / "nbd4" / "pid"
        self._pid.parent.mkdir()
        self.owner = 100

    def connect(self, settings: DeviceSettings, descriptors: Sequence[int]) -> int:
        self.owner += 1
        self._pid.write_text(f"{self.owner}\n")
        return super().connect(settings, descriptors)

    def disconnect(self, index: int) -> None:
        super().disconnect(index)
        self._pid.unlink()

    def control(self) -> NbdControl:
        class Handle:
            def __getattr__(handle, name: str) -> object:  # noqa: N805
                return getattr(self, name)

            def close(handle) -> None:  # noqa: N805
                pass

        return cast(NbdControl, Handle())


class Scene:
    def __init__(self, folder: Path, server: ServerProcess) -> None:
        self.kernel = Kernel(folder)
        self.address = str(server.socket)
        self.way = KernelWay("", self.kernel.control, folder)

    def is_supplied(self) -> bool:
        return not self.kernel.dead


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    with ServerProcess(tmp_path / "disk", tmp_path) as server:
        before = set(threading.enumerate())
        scene = Scene(tmp_path, server)
        yield scene
        scene.way.cut_off(DEVICE)
        # The keeper ends with its device, so that nothing of it touches what is closed next.
        wait_for(lambda: not set(threading.enumerate()) - before, what="the keeper has ended")
        scene.kernel.close()


def test_device_is_the_kernels_and_known_by_its_owner(scene: Scene) -> None:
    assert scene.way.attach(scene.address, "") == DEVICE
    assert scene.kernel.size_bytes == MIB and len(scene.kernel.slots) == 1
    assert scene.way.owns(DEVICE) and not scene.way.owns(Path("/dev/nbd5"))
    assert KernelWay(scene.way.mark, sysfs=scene.way._sysfs).owns(DEVICE)
    scene.kernel._pid.write_text("7\n")
    assert not scene.way.owns(DEVICE)
    scene.kernel._pid.write_text(f"{scene.kernel.owner}\n")


def test_dead_connection_is_replaced_only_as_permitted(scene: Scene) -> None:
    scene.way.attach(scene.address, "")
    asked = threading.Event()

    def forbid() -> str:
        asked.set()
        return "another node has been primary of the volume meanwhile"

    scene.way.permit = forbid
    scene.kernel.lose(0)
    assert asked.wait(20)
    asked.clear()
    assert asked.wait(20)
    assert scene.kernel.offered == 0 and not scene.is_supplied()
    scene.way.permit = lambda: ""
    wait_for(scene.is_supplied, what="the connection is replaced")


def test_device_that_is_cut_off_gets_no_connection_any_more(scene: Scene) -> None:
    scene.way.attach(scene.address, "")
    scene.way.cut_off(None)
    assert scene.kernel.connected
    scene.way.cut_off(DEVICE)
    assert not scene.kernel.connected and not scene.way.owns(DEVICE)
    scene.way.cut_off(DEVICE)


def test_detached_device_was_flushed_and_is_gone(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[bool] = []
    monkeypatch.setattr(kernel_way, "_flush", lambda device: flushed.append(scene.kernel.connected))
    scene.way.attach(scene.address, "")
    scene.way.detach(DEVICE)
    assert flushed == [True]
    assert not scene.way.owns(DEVICE)


def test_device_that_the_kernel_keeps_is_told_after_a_while(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_way, "_flush", lambda device: None)
    monkeypatch.setattr(kernel_way, "DETACH_TIMEOUT_S", 0.1)
    monkeypatch.setattr(scene.kernel, "disconnect", lambda index: None)
    scene.way.attach(scene.address, "")
    with pytest.raises(ReplError, match="could not be given back"):
        scene.way.detach(DEVICE)
    monkeypatch.undo()


@pytest.mark.parametrize("refused", [True, False])
def test_failed_attaching_is_told_in_its_words(scene: Scene, refused: bool) -> None:
    if refused:

        def refuse(settings: DeviceSettings, descriptors: Sequence[int]) -> int:
            raise OSError(22, "Invalid argument")

        scene.kernel.connect = refuse  # type: ignore[method-assign]
    where = scene.address if refused else f"{scene.address}.not"
    with pytest.raises(ReplError) as failed:
        scene.way.attach(where, "")
    assert failed.value.code == "ATTACH_FAILED"
    assert ("Invalid argument" if refused else "No such file") in failed.value.why


def test_availability_is_the_drivers(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_nbd, "available", lambda: (False, "the kernel has no module nbd"))
    assert scene.way.available().why == "the kernel has no module nbd"
    monkeypatch.setattr(kernel_nbd, "available", lambda: (True, ""))
    assert scene.way.available().ok

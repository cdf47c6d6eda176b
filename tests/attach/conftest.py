"""The stage for mounting and unmounting."""

from __future__ import annotations

from pathlib import Path

import pytest

from repl.attach.mounting import Mounting
from repl.attach.unmounting import Unmounting
from tests.attach.fakes import (
    Diary,
    FakeAttachments,
    FakeMachine,
    FakeVolumes,
)
from tests.attach.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    directory = tmp_path / "mnt with space"
    directory.mkdir()
    diary = Diary()
    machine, volumes = FakeMachine(diary), FakeVolumes(diary)
    attachments = FakeAttachments(diary, machine, tmp_path)
    mounting = Mounting(attachments, volumes, machine)
    unmounting = Unmounting(attachments, volumes, machine)
    return Stage(diary, machine, volumes, attachments, mounting, unmounting, directory, tmp_path)

"""A node on which nothing is real, for mounting and unmounting."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from repl.attach.attaching import Attachment
from repl.attach.mounting import Mounting, Wish
from repl.attach.mounts import Mount
from repl.attach.unmounting import Unmounting
from repl.errors import ReplError
from tests.attach.fakes import (
    DEVICE,
    Diary,
    FakeAttachments,
    FakeMachine,
    FakeVolumes,
)


@dataclass
class Stage:
    diary: Diary
    machine: FakeMachine
    volumes: FakeVolumes
    attachments: FakeAttachments
    mounting: Mounting
    unmounting: Unmounting
    directory: Path
    run: Path

    def wish(self, **fields: Any) -> Wish:
        return replace(Wish("r0", str(self.directory)), **fields)

    def refused(self, code: str, **fields: Any) -> ReplError:
        """Mount, which must be refused with `code`; afterwards all is as it was."""
        before = (self.volumes.current, self.attachments.current, list(self.machine.table))
        with pytest.raises(ReplError) as refused:
            self.mounting.mount(self.wish(**fields))
        assert refused.value.code == code, refused.value.lines()
        assert refused.value.why and refused.value.next_step
        after = (self.volumes.current, self.attachments.current, self.machine.table)
        assert after == before
        return refused.value

    def mounted(self, made_by: str = "mount") -> None:
        """Be as after a mount."""
        self.volumes.current = "primary"
        self.attachments.current = Attachment("r0", DEVICE, "fake", made_by)
        self.machine.table = [Mount(str(self.directory), "ext4", DEVICE, "7:99")]

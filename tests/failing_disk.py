"""A disk that fails when it is told to: one folder shown through FUSE, with errors put in between.

    with FailingDisk.make(folder) as disk:
        ... use files below disk.mount ...
        disk.fail("write")          # from now on EIO for each write
        disk.fail("read", range(0, 1 << 20))
        disk.heal()

The filesystem is a process of its own, `failing_filesystem.py`. It keeps nothing back: what was
written is in the shown folder, and in the page cache there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.daemon import ROOT, wait_for

KINDS = ("read", "write", "sync")
UNMOUNT_DEADLINE_S = 30.0


class FailingDisk:
    """A mounted folder and the ways in which it fails. Made by `make`."""

    def __init__(self, folder: Path) -> None:
        self.shown, self.mount, self._faults = (
            folder / name for name in ("shown", "mount", "faults")
        )
        for path in (self.shown, self.mount, self._faults):
            path.mkdir()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.failing_filesystem",
                *map(str, (self.shown, self.mount, self._faults)),
            ],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
        )

    @classmethod
    @contextlib.contextmanager
    def make(cls, folder: Path) -> Iterator[Self]:
        """Mount an empty disk below `folder`; take it down at the end, whoever still uses it."""
        folder.mkdir(exist_ok=True)
        disk = cls(folder)
        try:
            wait_for(lambda: os.path.ismount(disk.mount), what="the failing disk is mounted")
            yield disk
        finally:
            disk._take_down()

    def fail(self, kind: str, where: range | None = None) -> None:
        """Let calls of this kind fail with EIO: all, or those that touch these bytes of a file."""
        assert kind in KINDS, kind
        text = "" if where is None else f"{where.start} {where.stop}"
        # Renamed into place, so that the filesystem never reads half of it.
        (self._faults / ".new").write_text(text)
        (self._faults / ".new").rename(self._faults / kind)

    def heal(self) -> None:
        """Let all calls succeed again."""
        for kind in KINDS:
            (self._faults / kind).unlink(missing_ok=True)

    def hang(self) -> None:
        """Answer nothing until `resume`."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def _take_down(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.resume()
        # Lazily: a process that died a moment ago may still hold a file.
        subprocess.run(["fusermount3", "-u", "-z", str(self.mount)], check=False)
        try:
            self._process.wait(UNMOUNT_DEADLINE_S)
        finally:
            self._process.kill()
            self._process.wait()

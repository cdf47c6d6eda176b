"""`make demo`'s program as a test: it succeeds, tells its story, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.daemon import ROOT, process_group_members, wait_for

DEMO_DEADLINE_S = 200.0


def start_demo(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "deploy/demo/demo.py")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
        start_new_session=True,
    )


def assert_nothing_left(folder: Path, group: int) -> None:
    assert list(folder.iterdir()) == []
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    assert not process_group_members(group)
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        assert str(folder) not in backing.read_text()


def test_demo_keeps_every_promise_and_leaves_nothing(short_folder: Path) -> None:
    demo = start_demo(short_folder)
    said, _ = demo.communicate(timeout=DEMO_DEADLINE_S)
    assert demo.returncode == 0, said
    for claim in (
        "SIGKILL to alpha's whole process group",
        "is refused, since alpha might be alive",
        "have their checksum on beta",
        "equal, byte for byte",
        "nothing is left behind",
    ):
        assert claim in said, said
    assert_nothing_left(short_folder, demo.pid)


def test_interrupted_demo_takes_everything_down(short_folder: Path) -> None:
    demo = start_demo(short_folder)
    assert demo.stdout is not None
    deadline = time.monotonic() + 60
    for line in demo.stdout:
        if "files written and fsynced" in line:
            break
        assert time.monotonic() < deadline
    demo.send_signal(signal.SIGTERM)
    said, _ = demo.communicate(timeout=DEMO_DEADLINE_S)
    assert demo.returncode == 1, said
    assert "FAILED: interrupted by SIGTERM" in said
    wait_for(lambda: not list(short_folder.iterdir()), what="the folder is empty")
    assert_nothing_left(short_folder, demo.pid)

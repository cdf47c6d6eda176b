"""Loop devices that nothing can leave behind. Real ones: the kernel is what is tested here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from repl.attach.loop_device import SECTOR_BYTES, binding_of, open_loop
from tests.daemon import MIB, ROOT, wait_for


def image(folder: Path) -> Path:
    path = folder / "image"
    path.write_bytes(b"first sector" + bytes(MIB - 12))
    return path


def test_device_shows_the_file_until_it_is_closed(tmp_path: Path) -> None:
    descriptor, device = open_loop(image(tmp_path))
    binding = binding_of(device)
    try:
        assert binding
        assert os.pread(descriptor, 12, 0) == b"first sector"
        assert os.lseek(descriptor, 0, os.SEEK_END) == MIB
        queue = Path("/sys/block") / Path(device).name / "queue"
        assert int((queue / "logical_block_size").read_text()) == SECTOR_BYTES
        os.pwrite(descriptor, b"x" * 4096, 8192)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    wait_for(lambda: binding_of(device) != binding, what="the device is cleared")
    assert (tmp_path / "image").read_bytes()[8192:12288] == b"x" * 4096


def test_device_of_a_killed_process_is_cleared(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from repl.attach.loop_device import open_loop\n"
        "print(open_loop(Path(sys.argv[1]))[1], flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(image(tmp_path))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None
        device = process.stdout.readline().strip()
        binding = binding_of(device)
        assert binding
        process.send_signal(signal.SIGKILL)
    wait_for(lambda: binding_of(device) != binding, what="the device is cleared")


def test_next_binding_of_a_device_is_another(tmp_path: Path) -> None:
    def bind_once() -> str:
        descriptor, device = open_loop(image(tmp_path))
        binding = binding_of(device)
        os.close(descriptor)
        wait_for(lambda: binding_of(device) != binding, what="the device is cleared")
        return binding

    seen = {bind_once() for _ in range(3)}
    assert len(seen) == 3 and "" not in seen


def test_what_is_no_bound_loop_device_has_no_binding(tmp_path: Path) -> None:
    assert binding_of("/dev/null") == ""
    assert binding_of(str(tmp_path / "nowhere")) == ""

"""Ways to have a server: `python -m nbdserver` as a process, or a front inside the test's loop."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DEADLINE_S = 20.0
READY = re.compile(r"ready (?P<uris>.*) \((?P<size>\d+) bytes\)")


def wait_for(seen: Callable[[], bool], what: str) -> None:
    """Poll until `seen()`; AssertionError with `what` after a deadline."""
    give_up_s = time.monotonic() + DEADLINE_S
    while not seen():
        assert time.monotonic() < give_up_s, f"not within {DEADLINE_S:g} s: {what}"
        time.sleep(0.005)


class ServerProcess:
    """`python -m nbdserver FILE`, listening on a Unix socket and on a TCP port it chooses."""

    def __init__(self, file: Path, folder: Path, *arguments: str) -> None:
        self.file = file
        self.socket = folder / "nbd.sock"
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "nbdserver",
                str(file),
                f"--socket={self.socket}",
                "--listen=127.0.0.1:0",
                *arguments,
            ],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._collect)
        self._reader.start()
        wait_for(lambda: bool(self.lines), "the server says it is ready")
        ready = READY.search(self.lines[0])
        assert ready is not None, self.lines
        uris = ready["uris"].split()
        self.uri: str = uris[0]
        self.tcp_uri: str = uris[1]
        self.port = int(self.tcp_uri.split(":")[2].split("/")[0])
        self.size_bytes = int(ready["size"])

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(DEADLINE_S)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join()
            if self.process.stderr is not None:
                self.process.stderr.close()

    @property
    def log(self) -> list[str]:
        """What it said after the line that it is ready."""
        return self.lines[1:]

    def _collect(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def resident_bytes(self) -> int:
        """Memory of the process now, without what it only has addresses for."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10

    def proxy_pids(self) -> list[int]:
        """The TLS proxy processes, its only children."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def open_descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

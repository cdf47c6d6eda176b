"""`repld` with fake workers: the real `main`, in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from repl.node.main import main

if __name__ == "__main__":
    worker = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
    sys.exit(main(worker_command=worker))

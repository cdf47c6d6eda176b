"""The program of a guardian: `python -m repl.cli.guardian`, started by `attach` and `mount`.

It is given its order as one JSON line on stdin and answers with one on stdout: the device, or the
error. From then on it speaks only to its log, which is the journal where systemd has started it and
a file beside the record otherwise.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

import uvloop

from repl.attach.attaching import ways_for
from repl.attach.guardian import Guardian, Order, protect_process
from repl.attach.machine import Machine
from repl.attach.record import Folder
from repl.attach.ways import choose
from repl.cli.client import Client
from repl.cli.daemon_volumes import DaemonVolumes
from repl.errors import ReplError


def main() -> int:
    """Guard one attachment; return the exit status."""
    fields = json.loads(sys.stdin.readline())
    # Neither this process nor the program that it starts may hold the filesystem that it was
    # started on: that can be the very one that is to be unmounted one day.
    os.chdir("/")
    folder = Folder(Path(fields["run"]), fields["volume"])
    _log_to(folder)
    protect_process()
    order = Order(
        volume=fields["volume"],
        address=fields["address"],
        made_by=fields["made_by"],
        dead_after_s=float(fields["dead_after_s"]),
    )
    machine = Machine()
    try:
        way = choose(ways_for(machine, folder), fields["way"])
        daemon = DaemonVolumes(Client(fields["control"]))
        guardian = Guardian(order, folder, way, machine, daemon, _announce)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(guardian.run())
    except ReplError as error:
        folder.remove()
        _answer({"error": error.to_json()})
        return error.exit_status


def _announce(device: str) -> None:
    _answer({"device": device})
    # Whoever started us waits for no more; what holds its pipes open would hold it too.
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in (sys.stdin, sys.stdout):
        os.dup2(null, stream.fileno())
    os.close(null)


def _answer(answer: dict[str, Any]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(answer).encode() + b"\n")


def _log_to(folder: Folder) -> None:
    if "JOURNAL_STREAM" in os.environ:
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    else:
        logging.basicConfig(
            filename=folder.log_path,
            filemode="w",
            level=logging.INFO,
            format="%(asctime)s %(message)s",
        )


if __name__ == "__main__":
    sys.exit(main())

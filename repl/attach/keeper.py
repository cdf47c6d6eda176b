"""The process that keeps one kernel block device supplied with connections (`keeping.py`).

    python -m repl.attach.keeper --export r0 --address 10.0.0.1:10809 --address 10.0.0.2:10809
    python -m repl.attach.keeper --resume /dev/nbd0

It makes the device, says on its standard output what became of that, as one line of JSON (`device`
or `error`), and stays until the device is taken down. SIGTERM ends it and leaves the device as it
is, so that `--resume` can go on. `kernel_nbd.py` starts and stops it.

It must never wait for its own device: it keeps its memory out of the way of swapping and
write-back, and opens no file once it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

from repl.attach.dialing import NoConnection, dial
from repl.attach.keeping import Keeper, Plan
from repl.attach.nbd_control import NbdControl, load_module
from repl.attach.negotiation import Offer
from repl.errors import NoSuchThing, PermissionRefused, Refused, ReplError

RUNTIME_DIR: Final = Path("/run/repl/kernel-nbd")

#: One, because the driver sends what times out on one of several again over another without asking
#: anybody, and a server that was frozen would read both in any order (KERNEL_NBD.md).
CONNECTIONS: Final = 1
#: Above `peer_timeout_s` + `reconnect_grace_s`, so that a write that waits for a lost peer to be
#: dropped is not sent again for it. After a death, this is how long a request waits that was sent.
REQUEST_TIMEOUT_S: Final = 10
#: Freeze, don't fail: an operator has a day to bring the volume back.
DEAD_CONN_TIMEOUT_S: Final = 86_400

PR_SET_IO_FLUSHER: Final = 57
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4

log = logging.getLogger("repl.attach")


def device_index(device: Path) -> int:
    """Return N of /dev/nbdN. Raises NoSuchThing."""
    number = device.name.removeprefix("nbd")
    if device.parent != Path("/dev") or not number.isdecimal() or device.name == number:
        raise NoSuchThing(
            f"{device} is no device of the kernel's nbd driver.",
            "they are called /dev/nbd0, /dev/nbd1 and so on",
            code="NOT_ATTACHED",
        )
    return int(number)


class Record:
    """What is known of one device: a file in `RUNTIME_DIR`, locked by the keeper that lives."""

    def __init__(self, index: int, folder: Path = RUNTIME_DIR) -> None:
        self.path = folder / f"nbd{index}.json"
        self._file: IO[str] | None = None

    def lock(self) -> bool:
        """Take the record; return False if another keeper has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def keeper_pid(self) -> int | None:
        """Return the process that holds the record, or None."""
        try:
            with self.path.open(encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(json.loads(file.read())["pid"])
        except (FileNotFoundError, ValueError):
            # No record, or one that its keeper is about to write.
            pass
        return None

    def write(self, fields: dict[str, Any]) -> None:
        """Replace the content; the record must be locked."""
        assert self._file is not None, "lock() first"
        self._file.seek(0)
        self._file.truncate()
        json.dump(fields, self._file)
        self._file.flush()

    def read(self) -> dict[str, Any]:
        """Return the content. Raises FileNotFoundError, ValueError."""
        fields = json.loads(self.path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("not an object")
        return fields

    def remove(self) -> None:
        """Forget the device."""
        self.path.unlink(missing_ok=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Attach or resume, report, and keep. Return the exit status."""
    arguments = _parse(argv)
    if arguments.background:
        if os.fork():
            os._exit(0)
        os.setsid()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    _end_on_signals()
    try:
        kernel = open_control()
        keeper, record = _begin(kernel, arguments)
    except ReplError as error:
        _report({"error": error.to_json()})
        return error.exit_status
    _stay_clear_of_the_device()
    try:
        _report({"device": f"/dev/nbd{keeper.index}"})
        # Whoever reads the report may wait for its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except BrokenPipeError:
        # Whoever wanted the device waits for it no longer, and nobody else knows of it.
        log.error("nobody waits for /dev/nbd%d any more", keeper.index)
        kernel.disconnect(keeper.index)
    keeper.keep()
    record.remove()
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="repl.attach.keeper", description=__doc__)
    begin = parser.add_mutually_exclusive_group(required=True)
    begin.add_argument("--export", metavar="NAME")
    begin.add_argument("--resume", metavar="DEVICE", type=Path)
    parser.add_argument("--address", metavar="HOST:PORT", action="append", default=[])
    parser.add_argument("--background", action="store_true", help="be nobody's child")
    parser.add_argument("--connections", type=int, default=CONNECTIONS)
    parser.add_argument("--request-timeout-s", type=int, default=REQUEST_TIMEOUT_S)
    parser.add_argument("--dead-conn-timeout-s", type=int, default=DEAD_CONN_TIMEOUT_S)
    arguments = parser.parse_args(argv)
    if arguments.export is not None and not arguments.address:
        parser.error("--export needs an --address")
    for name in ("connections", "request_timeout_s", "dead_conn_timeout_s"):
        if getattr(arguments, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be 1 or more")
    return arguments


def _begin(kernel: NbdControl, arguments: argparse.Namespace) -> tuple[Keeper, Record]:
    if arguments.resume is not None:
        return _resumed(kernel, arguments.resume)
    plan = Plan(
        tuple(arguments.address),
        arguments.export,
        arguments.connections,
        arguments.request_timeout_s,
        arguments.dead_conn_timeout_s,
    )
    keeper = Keeper(plan, kernel, dial)
    try:
        index = keeper.attach()
    except NoConnection as failure:
        raise Refused(
            f"Cannot attach {plan.export}: no server offers it.",
            str(failure),
            "replctl status shows which node is primary; attach from its address",
            code="ATTACH_FAILED",
        ) from failure
    except OSError as error:
        raise ReplError(
            f"The kernel refused a device for {plan.export}: {error.strerror}.",
            "its log says why",
            "dmesg | grep nbd",
            code="ATTACH_FAILED",
        ) from error
    record = Record(index)
    if not record.lock():
        # An old keeper that has not yet seen its device go; the kernel gave us the number.
        kernel.disconnect(index)
        raise ReplError(f"Another keeper still holds {record.path}.", code="ATTACH_FAILED")
    _write_through(keeper, record)
    return keeper, record


def _resumed(kernel: NbdControl, device: Path) -> tuple[Keeper, Record]:
    index = device_index(device)
    record = Record(index)
    if not kernel.is_connected(index):
        raise NoSuchThing(f"{device} is not attached.", code="NOT_ATTACHED")
    if not record.lock():
        raise Refused(f"{device} has a keeper already.", code="ALREADY")
    try:
        fields = record.read()
        plan = Plan(
            tuple(fields["addresses"]),
            fields["export"],
            fields["connections"],
            fields["request_timeout_s"],
            fields["dead_conn_timeout_s"],
        )
        offer, address = Offer(**fields["offer"]), fields["address"]
    except (KeyError, TypeError, ValueError) as error:
        raise NoSuchThing(
            f"Nothing is known of {device}.",
            f"{record.path} cannot be read: {error}",
            code="NOT_ATTACHED",
        ) from error
    keeper = Keeper(plan, kernel, dial)
    keeper.resume(index, plan.connections, offer, address)
    _write_through(keeper, record)
    return keeper, record


def _write_through(keeper: Keeper, record: Record) -> None:
    """Keep the record true."""

    def write() -> None:
        plan = keeper.plan
        record.write(
            asdict(plan)
            | {
                "pid": os.getpid(),
                "connections": keeper.connections,
                "offer": asdict(keeper.offer),
                "address": keeper.address,
            }
        )

    keeper.on_move = write
    write()


def open_control() -> NbdControl:
    """Open the driver, loading it if need be. Raises ReplError."""
    try:
        load_module()
        return NbdControl()
    except FileNotFoundError as error:
        raise Refused(
            "This kernel has no nbd driver.",
            "the module nbd is not loaded and could not be",
            "modprobe nbd, or attach through nbdfuse",
            code="ATTACH_IMPOSSIBLE",
        ) from error
    except PermissionError as error:
        raise PermissionRefused(
            "Only root may make block devices.", str(error), "run it as root"
        ) from error


def _stay_clear_of_the_device() -> None:
    """Make this process able to go on while everything that writes to its device waits."""
    os.chdir("/")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        log.warning("cannot exempt this process from write-back: errno %d", ctypes.get_errno())
    if libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0:
        log.warning("cannot keep this process in memory: errno %d", ctypes.get_errno())
    with contextlib.suppress(OSError):
        # A container may forbid it; then the keeper is as mortal as others.
        Path("/proc/self/oom_score_adj").write_text("-1000", encoding="ascii")


def _report(fields: dict[str, Any]) -> None:
    """Tell whoever started this process; one line is all that it says there."""
    print(json.dumps(fields), flush=True)


def _end_on_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


if __name__ == "__main__":
    sys.exit(main())

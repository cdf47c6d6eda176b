"""`repld`: arguments, environment, signals, and the exit status of design §11.

Owns what surrounds the supervisor in its process. Errors that a person can act on are three lines
on stderr; anything else is a bug and ends with its trace and status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import resource
import signal
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import repl
from repl.config import Config, load_config
from repl.errors import ReplError, UsageError
from repl.node import logs, systemd
from repl.node.event_loop import new_event_loop
from repl.node.supervisor import Supervisor
from repl.node.worker_process import WORKER_COMMAND

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class _Arguments(argparse.ArgumentParser):
    """argparse with our own form of error."""

    def error(self, message: str) -> NoReturn:
        raise UsageError("the arguments cannot be used", message, f"{self.prog} --help")


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return `config` and `log_format`. Raises UsageError; --help and --version exit."""
    parser = _Arguments(
        prog="repld",
        description="Serve replicated volumes as NBD block devices. See replctl for the operator.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", required=True, help="the node's configuration (TOML)"
    )
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="how to log to stderr"
    )
    parser.add_argument("--version", action="version", version=f"repld {repl.__version__}")
    return parser.parse_args(argv)


def refuse_without_assertions() -> None:
    """Raise UsageError under `python -O`: the assertions are part of what keeps data safe."""
    if sys.flags.optimize:
        raise UsageError(
            "repld does not run with assertions switched off",
            "python -O or PYTHONOPTIMIZE removes checks that stop a bug before it reaches a disk",
            "unset PYTHONOPTIMIZE and start Python without -O",
        )


def raise_descriptor_limit() -> None:
    """Raise the soft limit on open files to the hard one; the workers inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A container may forbid even this; the limit that is then left applies.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(config: Config, worker_command: Sequence[str] = WORKER_COMMAND) -> None:
    """Run the node until SIGTERM or SIGINT, then stop it cleanly. Raises ReplError on start."""
    loop = asyncio.get_running_loop()
    stop_asked = asyncio.Event()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop_asked.set)
    supervisor = Supervisor(config, worker_command=worker_command)
    await supervisor.start()
    log = logs.logger("node")
    try:
        systemd.notify(f"READY=1\nSTATUS={len(config.volumes)} volumes")
        await _wait_for(stop_asked)
        log.info("The node is stopping.")
        systemd.notify("STOPPING=1")
    finally:
        await supervisor.stop()


async def _wait_for(stop_asked: asyncio.Event) -> None:
    """Wait for the event, and tell systemd's watchdog meanwhile that the loop turns."""
    interval_s = systemd.watchdog_interval_s()
    while not stop_asked.is_set():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await stop_asked.wait()
        if interval_s is not None:
            systemd.notify("WATCHDOG=1")


def main(argv: Sequence[str] | None = None, worker_command: Sequence[str] = WORKER_COMMAND) -> int:
    """Run `repld` and return its exit status."""
    try:
        refuse_without_assertions()
        arguments = parse_arguments(argv)
        config = load_config(arguments.config)
        logs.configure(arguments.log_format)
        raise_descriptor_limit()
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(run(config, worker_command))
    except ReplError as error:
        print(error.lines(), file=sys.stderr)
        return error.exit_status
    return 0


def entry() -> NoReturn:
    """Run as the console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()

"""Asking before something that can lose data: the volume's name, typed or given as an option.

A yes is never assumed: without a terminal to ask on, and without the name, the answer is no.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from repl.cli.output import write
from repl.errors import NotConfirmed


def confirm_by_name(
    volume: str, given: str | None, command: str, describe_stake: Callable[[], str]
) -> None:
    """Return if `given`, or what is typed, is exactly `volume`; else raise NotConfirmed.

    `command` is the whole command with the name given; it is what scripts must run.
    `describe_stake` is called only when a person is asked; it says what would be lost.
    """
    if given == volume:
        return
    if given:
        raise NotConfirmed(
            f"Not done: the name given is {given!r}, but the volume is {volume}.",
            "this can lose data, so the volume's name must be repeated exactly",
            f"if you mean it:  {command}",
        )
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise NotConfirmed(
            "Not done: it can lose data and nobody confirmed it.",
            "there is no terminal to ask on",
            f"if you mean it, name the volume:  {command}",
        )
    write(sys.stderr, describe_stake())
    sys.stderr.write(f"Type the volume's name to go on ({volume}): ")
    sys.stderr.flush()
    typed = sys.stdin.readline()
    if typed.rstrip("\n") != volume:
        raise NotConfirmed(
            "Not done: what was typed is not the volume's name.",
            f"expected {volume}",
            "nothing was changed; run the command again to be asked again",
        )

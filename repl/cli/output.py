"""Where words and data go: data to stdout, words to stderr, and neither ever harms a terminal.

It owns the global options of one run. Text that came from elsewhere loses its control characters,
and characters that the stream cannot write become "?".
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any, TextIO

import click

from repl.cli.client import Client
from repl.errors import ReplError


@dataclass(frozen=True, slots=True)
class Session:
    """The global options, as every verb gets them."""

    client: Client
    as_json: bool

    def data(self, text: str) -> None:
        """Print what was asked for; see write_data for what can fail."""
        write_data(text)

    def object(self, value: dict[str, Any]) -> None:
        """Print the one JSON object of this run."""
        write_data(json.dumps(value, indent=2))

    def say(self, sentence: str) -> None:
        """Tell a person something that is not data; silent under --json."""
        if not self.as_json:
            write(sys.stderr, sentence)

    def done(self, reply: dict[str, Any], sentence: str) -> None:
        """End a verb: the reply as JSON, or its own reason, or else `sentence`."""
        if self.as_json:
            self.object(reply)
            return
        reason = reply.get("reason")
        self.say(reason if isinstance(reason, str) and reason else sentence)


pass_session = click.make_pass_decorator(Session)


class ReaderGone(Exception):
    """Nobody reads stdout any more (`replctl status | head -1`): end, without a word."""


def write_data(text: str) -> None:
    """Write `text` to stdout; raises ReaderGone, or ReplError when it cannot be written."""
    try:
        write(sys.stdout, text)
        sys.stdout.flush()
    except BrokenPipeError as failure:
        raise ReaderGone from failure
    except OSError as failure:
        raise ReplError(
            "Cannot write the output.",
            failure.strerror or str(failure),
            "look where stdout goes, and run the command again",
        ) from failure


def write(stream: TextIO, text: str) -> None:
    """Write `text` and a line end in what `stream` can encode."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")


def printable(text: str) -> str:
    """Return `text` without control characters; line ends stay, tabs become spaces."""
    return "".join(
        char if char.isprintable() or char == "\n" else " " if char == "\t" else "?"
        for char in text
    )


def one_line(text: str) -> str:
    """Return `text` printable and on a single line."""
    return printable(text).strip().replace("\n", " ")


def report(error: ReplError, as_json: bool) -> None:
    """Show a failure: JSON on stdout, or the three lines on stderr."""
    if as_json:
        write_data(json.dumps({"error": error.to_json()}, indent=2))
        return
    shown = type(error)(
        printable(error.what),
        printable(error.why).replace("\n", "\n      "),
        printable(error.next_step).replace("\n", "\n      "),
        code=error.code,
    )
    write(sys.stderr, shown.lines())

"""Mistakes on the command line, in words that help: what is wrong, and what was probably meant.

Owns nothing but how argparse complains: three lines instead of its wall of options, which `--help`
shows better.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from typing import Final, NoReturn

EXIT_USAGE: Final = 2

#: What other servers call it.
_ELSEWHERE: Final = {
    "-r": "--read-only",
    "--readonly": "--read-only",
    "-p": "--listen",
    "--port": "--listen",
    "-b": "--listen",
    "--bind": "--listen",
    "-i": "--listen",
    "--ipaddr": "--listen",
    "-k": "--socket",
    "-U": "--socket",
    "--unix": "--socket",
    "-x": "--name",
    "--exportname": "--name",
    "--export-name": "--name",
    "-v": "--verbose",
}


class HelpfulParser(argparse.ArgumentParser):
    """As its base, with other words for mistakes; `example` is a command line that works."""

    example = ""

    def error(self, message: str) -> NoReturn:
        """End with status 2 after saying what is wrong and what to do next."""
        words = message.removeprefix("unrecognized arguments: ")
        meant = self._meant(words.split()) if words != message else ""
        if meant:
            next_step = f"perhaps {meant} is meant; {self.prog} --help explains it"
        else:
            next_step = f"{self.prog} --help, or try: {self.prog} {self.example}"
        print(
            f"nbdserver: the command line cannot be used\nWhy   {message}\nNext  {next_step}",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_USAGE)

    def _meant(self, unknown: list[str]) -> str:
        """The option that is nearest to the first one that is not known, or nothing."""
        known = list(self._option_string_actions)
        for word in unknown:
            name = word.partition("=")[0]
            if name in _ELSEWHERE:
                return _ELSEWHERE[name]
            if name.startswith("-"):
                return next(iter(difflib.get_close_matches(name, known, 1)), "")
        return ""

"""Names on the command line: a volume or a node, refused before any daemon is asked."""

from __future__ import annotations

from typing import Any

import click

from repl.config import NAME_PATTERN, NAME_RULE
from repl.errors import UsageError


class Name(click.ParamType[str]):
    """A click type that accepts what the configuration accepts as a name, and nothing else."""

    def __init__(self, noun: str) -> None:
        self.name = noun

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return `value` if it is a name; raises UsageError with the rule."""
        text = str(value)
        if not NAME_PATTERN.fullmatch(text):
            raise UsageError(
                f"{text!r} cannot be the name of a {self.name}.",
                f"a name is {NAME_RULE}",
                "see the names in use:  replctl status",
            )
        return text


VOLUME = Name("volume")
NODE = Name("node")

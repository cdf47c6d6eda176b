"""Which event loop a process of ours runs: uvloop, or the standard library's on request.

uvloop is a declared dependency; everything must work on stock asyncio too, which is what
`REPL_EVENT_LOOP=asyncio` selects and what a system without uvloop gets.
"""

from __future__ import annotations

import asyncio
import os

from repl.errors import UsageError

VARIABLE = "REPL_EVENT_LOOP"


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a fresh loop. Raises UsageError for a value of the variable that means nothing."""
    choice = os.environ.get(VARIABLE, "uvloop") or "uvloop"
    if choice not in ("uvloop", "asyncio"):
        raise UsageError(
            f"the environment variable {VARIABLE} is {choice!r}",
            "it selects the event loop and is 'uvloop' (the default) or 'asyncio'",
            f"unset {VARIABLE}",
        )
    if choice == "uvloop":
        try:
            import uvloop
        except ImportError:
            return asyncio.new_event_loop()
        return uvloop.new_event_loop()
    return asyncio.new_event_loop()

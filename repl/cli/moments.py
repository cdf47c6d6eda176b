"""Points in time as people read them: local, without the date while it is today's.

Times come from a daemon and may be anything; one that no calendar has is None, never an exception.
"""

from __future__ import annotations

import time
from datetime import datetime

from repl import units


def moment(time_s: float | None, now_s: float | None = None) -> str | None:
    """Return "09:12:41", or with the date of another day "2026-11-22 09:12:41"; None if unknown."""
    if time_s is None:
        return None
    try:
        then = datetime.fromtimestamp(time_s)
        today = datetime.fromtimestamp(time.time() if now_s is None else now_s)
    except (OverflowError, ValueError, OSError):
        return None
    if then.date() == today.date():
        return then.strftime("%H:%M:%S")
    return then.strftime("%Y-%m-%d %H:%M:%S")


def ago(time_s: float, now_s: float | None = None) -> str:
    """Return "4 min 10 s ago"; "just now" for a time to come, since clocks are set back."""
    passed_s = (time.time() if now_s is None else now_s) - time_s
    return f"{units.describe_duration(passed_s)} ago" if passed_s >= 1 else "just now"

"""The status of a volume that could not be opened: its problem, in the shape of any volume."""

from __future__ import annotations

import os
from typing import Any

from repl.errors import ReplError


def closed_status(
    settings: dict[str, Any], problem: ReplError | None, peer_names: tuple[str, ...]
) -> dict[str, Any]:
    """Return the object of design §11; nothing is served, nothing is known of the data."""
    what = problem.what if problem is not None else "the volume is being opened"
    why = problem.why if problem is not None else ""
    next_step = problem.next_step if problem is not None else ""
    code = problem.code if problem is not None else ""
    return {
        "name": settings["volume"]["name"],
        "size_bytes": settings["volume"]["size_bytes"],
        "role": "secondary",
        "disk_state": "diskless",
        "generation": {"counter": 0, "id": ""},
        "serving": False,
        "clients": 0,
        "client_names": [],
        "promotable": {"ok": False, "reason": what, "next": next_step, "code": code},
        "peers": [
            {
                "name": name,
                "connection_state": "disconnected",
                "disk_state": "unknown",
                "replication_state": "off",
                "role": "unknown",
                "out_of_sync_bytes": 0,
                "resync": None,
            }
            for name in peer_names
        ],
        "export": {
            "serving": False,
            "pending": False,
            "reason": what,
            "primary": None,
            "read_only": False,
        },
        "problem": problem.to_json() if problem is not None else None,
        "worker_pid": os.getpid(),
        "why": why,
        "next": next_step,
    }

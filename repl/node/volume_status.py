"""What is shown of a volume whose worker cannot be asked: the last it said, with the reason why.

Owns the shape of a `volume` object (design §11) as far as the supervisor must make one up. It
never claims that a volume is served: without a worker that answers, nothing is.
"""

from __future__ import annotations

from typing import Any

from repl.errors import ReplError

VolumeObject = dict[str, Any]


def unknown_volume(name: str, size_bytes: int, peer_names: tuple[str, ...]) -> VolumeObject:
    """Return the object of a volume whose worker has not spoken yet: nothing is known of it."""
    return {
        "name": name,
        "size_bytes": size_bytes,
        "role": "secondary",
        "disk_state": "diskless",
        "generation": {"counter": 0, "id": ""},
        "serving": False,
        "clients": 0,
        "client_names": [],
        "promotable": {"ok": False, "reason": "", "next": "", "code": "WORKER_SILENT"},
        "peers": [
            {
                "name": peer,
                "connection_state": "disconnected",
                "disk_state": "unknown",
                "replication_state": "off",
                "role": "unknown",
                "out_of_sync_bytes": 0,
                "resync": None,
            }
            for peer in peer_names
        ],
        "export": {"serving": False, "reason": "", "primary": None, "read_only": False},
        "problem": None,
        "worker_pid": None,
        "why": "",
        "next": "",
    }


def unanswered_volume(last: VolumeObject, problem: ReplError) -> VolumeObject:
    """Return `last` as it looks while its worker does not answer.

    What this node's copy is stays, since a worker that is restarted resumes it. What needs a living
    worker does not: nothing is served, connected or promotable, so that nobody who waits for one
    of these is told that it has come. A client that asks for the export is held (`pending`), since
    the restart is about to decide.
    """
    gone = {
        "connection_state": "disconnected",
        "disk_state": "unknown",
        "replication_state": "off",
        "role": "unknown",
        "resync": None,
    }
    return last | {
        "serving": False,
        "frozen": False,
        "alone": None,
        "clients": 0,
        "client_names": [],
        "promotable": {
            "ok": False,
            "reason": problem.what,
            "next": problem.next_step,
            "code": problem.code,
        },
        "peers": [peer | gone for peer in last["peers"]],
        "problem": problem.to_json(),
        "export": last["export"] | {"serving": False, "pending": True, "reason": problem.what},
        "why": problem.what,
        "next": problem.next_step,
    }

"""What is shown without a worker: the last known copy, and nothing that needs a living worker."""

from __future__ import annotations

from repl.errors import TimedOut
from repl.node.volume_status import unanswered_volume, unknown_volume

PROBLEM = TimedOut("r0: its worker does not answer", "why", "next", code="WORKER_SILENT")


def test_unknown_volume_has_every_field_of_the_public_shape() -> None:
    volume = unknown_volume("r0", 4096, ("beta",))
    assert volume.keys() >= {
        *("name", "size_bytes", "role", "disk_state", "generation", "serving", "clients"),
        *("peers", "export", "problem", "worker_pid", "why", "next"),
    }
    assert volume["peers"][0].keys() == {
        *("name", "connection_state", "disk_state", "replication_state", "role"),
        *("out_of_sync_bytes", "resync"),
    }
    assert volume["generation"].keys() == {"counter", "id"}


def test_silent_worker_shows_nothing_as_served_connected_or_promotable() -> None:
    last = unknown_volume("r0", 4096, ("beta",)) | {
        "role": "primary",
        "disk_state": "up-to-date",
        "serving": True,
        "frozen": True,
        "alone": {"peer": "beta", "generation": 2, "since_s": 1, "for_s": 5.0},
        "clients": 2,
        "promotable": {"ok": True, "reason": "", "next": "", "code": ""},
    }
    last["peers"][0] |= {
        "connection_state": "connected",
        "replication_state": "established",
        "disk_state": "up-to-date",
        "out_of_sync_bytes": 4096,
    }
    shown = unanswered_volume(last, PROBLEM)
    assert (shown["role"], shown["disk_state"]) == ("primary", "up-to-date")
    assert (shown["serving"], shown["clients"]) == (False, 0)
    assert (shown["frozen"], shown["alone"]) == (False, None), "nobody can continue it now"
    assert shown["export"]["pending"] is True
    assert shown["promotable"]["ok"] is False
    assert shown["problem"] == PROBLEM.to_json()
    peer = shown["peers"][0]
    assert (peer["connection_state"], peer["replication_state"]) == ("disconnected", "off")
    assert peer["out_of_sync_bytes"] == 4096, "the dirty map does not shrink by a restart"
    assert last["peers"][0]["connection_state"] == "connected", "the last status is not changed"

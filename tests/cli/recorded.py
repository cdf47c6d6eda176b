"""Status objects as a daemon gives them, the ugly ones included."""

from __future__ import annotations

from typing import Any

GIB = 1 << 30


def peer(**changed: Any) -> dict[str, Any]:
    """Return a peer that is in sync, with `changed` fields."""
    return {
        "name": "beta",
        "connection_state": "connected",
        "disk_state": "up-to-date",
        "replication_state": "established",
        "role": "secondary",
        "out_of_sync_bytes": 0,
        "contact_lost_time_s": None,
        "slow_s": None,
        "resync": None,
        **changed,
    }


def volume(name: str = "r0", **changed: Any) -> dict[str, Any]:
    """Return a serving primary whose peer is in sync, with `changed` fields."""
    return {
        "name": name,
        "size_bytes": 40 * GIB,
        "role": "primary",
        "disk_state": "up-to-date",
        "generation": {"counter": 3, "id": "5f0c"},
        "serving": True,
        "clients": 1,
        "peers": [peer()],
        "export": {"serving": True, "reason": "", "primary": "alpha", "read_only": False},
        "promotable": {"ok": True, "reason": "this node is primary already", "next": ""},
        "problem": None,
        "worker_pid": 4711,
        "why": "",
        "next": "",
        **changed,
    }


def status(*volumes: dict[str, Any]) -> dict[str, Any]:
    return {"node": "alpha", "version": "0.1.0", "build": "compiled", "volumes": list(volumes)}


def secondary(name: str = "r1", **changed: Any) -> dict[str, Any]:
    fields = {"role": "secondary", "serving": False, "peers": [peer(role="primary")], **changed}
    return volume(name, **fields)


def resyncing(name: str = "r0", **changed: Any) -> dict[str, Any]:
    copy = {
        "done_bytes": 10 * GIB,
        "remaining_bytes": 6549825126,
        "rate_bytes_per_s": 212_000_000,
        "eta_s": 33.0,
        **changed,
    }
    target = peer(
        disk_state="inconsistent",
        replication_state="sync-source",
        out_of_sync_bytes=6549825126,
        resync=copy,
    )
    return volume(
        name,
        peers=[target],
        why="beta was away 4 min 10 s; only changed blocks are copied.",
        next="nothing to do. To wait for it:  replctl wait r0 --for in-sync",
    )


def alone(name: str = "r0") -> dict[str, Any]:
    gone = peer(
        connection_state="connecting",
        disk_state="outdated",
        replication_state="off",
        out_of_sync_bytes=4096,
        contact_lost_time_s=1_790_000_000.0,
    )
    return volume(name, peers=[gone])


def cut_off(name: str = "r0") -> dict[str, Any]:
    gone = peer(
        connection_state="connecting",
        disk_state="up-to-date",
        replication_state="off",
        role="primary",
        contact_lost_time_s=1_790_000_000.0,
    )
    return secondary(
        name,
        disk_state="consistent",
        peers=[gone],
        promotable={
            "ok": False,
            "reason": "beta was primary and may still acknowledge writes",
            "next": "if beta is stopped:  replctl promote r0 --peer-dead beta",
        },
    )


def split_brain(name: str = "r0") -> dict[str, Any]:
    other = peer(connection_state="split-brain", replication_state="off", role="primary")
    return volume(name, peers=[other], why="both nodes were primary since 09:12:41")


def split_brain_shown(**changed: Any) -> dict[str, Any]:
    """Return what `splitbrain show` gets of two primaries, with `changed` fields."""

    def generation(counter: int, origin: str, **more: Any) -> dict[str, Any]:
        entry = {"counter": counter, "id": "5f0c", "origin": origin, "made_at_s": 1_790_000_000}
        return {**entry, "permit": "", "answered": True, "members": ["alpha"], **more}

    def side(node: str, *generations: dict[str, Any]) -> dict[str, Any]:
        return {
            "node": node,
            "role": "primary",
            "disk_state": "up-to-date",
            "clients": 1,
            "client_names": ["10.0.0.9:4711"],
            "kept": False,
            "agreed": False,
            "changed_bytes_at_most": 8192,
            "generations": list(generations),
            "generations_left_out": 0,
        }

    return {
        "volume": "r0",
        "node": "alpha",
        "peer": "beta",
        "size_bytes": 40 * GIB,
        "split_brain": True,
        "step": "none",
        "why": "Both copies acknowledged writes that the other lacks, since generation 2.",
        "next": "replctl splitbrain show r0",
        "fork": generation(2, "promoted"),
        "sides": [
            side("alpha", generation(3, "alone", permit="manual: beta did not answer")),
            side("beta", generation(4, "data-lost", answered=False), generation(3, "peer-dead")),
        ],
        "differing_bytes_at_most": 12288,
        "differing_known_from_maps": True,
        **changed,
    }


def not_split_shown() -> dict[str, Any]:
    """Return what `splitbrain show` gets of a volume that is well."""
    return {
        "volume": "r0",
        "node": "alpha",
        "peer": "beta",
        "size_bytes": 40 * GIB,
        "split_brain": False,
        "why": "both copies hold the same writes (beta)",
        "next": "replctl status r0",
    }


def closed(name: str = "r0", code: str = "BACKING_MISSING") -> dict[str, Any]:
    problem = {
        "code": code,
        "exit_status": 1,
        "what": "The backing /srv/repl/r0.img is missing.",
        "why": "metadata exists, so nothing is created in its place",
        "next": "mount the filesystem that holds it",
    }
    gone = peer(connection_state="disconnected", disk_state="consistent", replication_state="off")
    return secondary(name, disk_state="diskless", peers=[gone], problem=problem)


def hostile() -> dict[str, Any]:
    """Return a volume whose every field is missing, of another type, or meant to harm."""
    odd = {
        "name": "be\x1b[31mta\n",
        "connection_state": ["connected"],
        "out_of_sync_bytes": -5,
        "contact_lost_time_s": 1e300,
        "resync": {"done_bytes": "x", "remaining_bytes": float("nan"), "eta_s": float("inf")},
    }
    return {
        "name": "r0",
        "size_bytes": None,
        "role": None,
        "peers": [odd, 3, None],
        "why": "[bold]not markup[/bold] \x1b[2J :smile:",
        "next": {"run": "x"},
        "problem": "text",
        "promotable": True,
        "export": 3,
    }

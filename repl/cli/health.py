"""From a snapshot to a verdict: OK, DEGRADED or CRITICAL, with the sentence that says why.

Critical is what needs a person now: a volume that cannot be opened, a split-brain, a primary that
does not serve or is frozen. Degraded is lost redundancy, a silent worker, a peer that is about to
be lost. Pure functions of the snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from repl import units
from repl.cli.snapshot import Node, Peer, Slow, Volume


class Level(Enum):
    """How bad it is; the value is the exit status of `status --check`."""

    OK = 0
    DEGRADED = 10
    CRITICAL = 11


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    sentence: str


def judge_volume(volume: Volume) -> Finding:
    """Return the worst that is to be said of one volume."""
    for finding in (_critical(volume), _degraded(volume)):
        if finding is not None:
            return finding
    return Finding(Level.OK, "in sync" if volume.peers else "well; it has no peer")


INCOMPLETE = frozenset({"failed", "inconsistent", "diskless"})


def _critical(volume: Volume) -> Finding | None:
    if volume.problem is not None and volume.problem.code != "WORKER_SILENT":
        return Finding(Level.CRITICAL, f"not usable: {volume.problem.what.rstrip('.')}")
    for peer in volume.peers:
        if peer.connection_state == "split-brain":
            return Finding(
                Level.CRITICAL,
                f"split-brain with {peer.name}: both copies were written without the other",
            )
    if volume.disk_state in INCOMPLETE and _no_complete_peer(volume):
        what = f"the copy here is {volume.disk_state}, and no complete one is connected"
        return Finding(Level.CRITICAL, what)
    if volume.disk_full and volume.role == "primary":
        return Finding(Level.CRITICAL, "no space is left for the local copy; its requests wait")
    if volume.waiting is not None:
        waited = units.describe_duration(volume.waiting.for_s)
        what = f"frozen for {waited}: {volume.waiting.peer} did not answer, and nobody has said"
        return Finding(Level.CRITICAL, f"{what} that it may go on alone")
    if volume.role == "primary" and not volume.serving:
        reason = (
            "its worker process does not answer" if volume.worker_silent else "it does not serve"
        )
        return Finding(Level.CRITICAL, f"primary, but {reason}")
    return None


def _no_complete_peer(volume: Volume) -> bool:
    """Whether every peer refuses this copy and shows no better one."""
    return bool(volume.peers) and all(
        peer.connection_state == "refused" and peer.disk_state not in ("up-to-date", "consistent")
        for peer in volume.peers
    )


def _degraded(volume: Volume) -> Finding | None:
    if volume.worker_silent:
        return Finding(Level.DEGRADED, "its worker process does not answer")
    if volume.disk_full:
        return Finding(Level.DEGRADED, "no space is left for the copy on this node")
    for peer in volume.peers:
        if not peer.is_in_sync:
            return Finding(Level.DEGRADED, describe_peer(peer))
        if peer.slow is not None:
            return Finding(Level.DEGRADED, describe_slow(peer, peer.slow))
    if volume.peers and not volume.is_in_sync:
        return Finding(Level.DEGRADED, f"the copy on this node is {volume.disk_state}")
    if not volume.peers and volume.disk_state in ("failed", "diskless", "inconsistent"):
        return Finding(Level.DEGRADED, f"its only copy is {volume.disk_state}")
    if volume.space_low_bytes is not None:
        free = units.format_size(volume.space_low_bytes)
        return Finding(
            Level.DEGRADED, f"little space under its backing: {free} free, and it may need more"
        )
    return None


def describe_slow(peer: Peer, slow: Slow) -> str:
    """Return what a slow peer owes, and what comes of it."""
    said = f"{peer.name} is slow: {slow.what} for {units.format_duration(slow.for_s)}"
    if slow.dropped_after_s is None:
        return said
    return f"{said}; it is dropped after {units.format_duration(slow.dropped_after_s)}"


def describe_peer(peer: Peer) -> str:
    """Return how a peer falls short of being in sync: "not connected to beta"."""
    if peer.connection_state != "connected":
        return f"not connected to {peer.name} ({peer.connection_state}){_behind(peer)}"
    if peer.resync is not None:
        left = units.format_size(peer.resync.remaining_bytes)
        if peer.resync.stalled:
            return f"resync with {peer.name} stands still ({peer.resync.stalled}), {left} left"
        return f"resync with {peer.name} in progress, {left} left"
    if peer.replication_state != "established":
        return f"replication with {peer.name} is {peer.replication_state}{_behind(peer)}"
    return f"the copy on {peer.name} is {peer.disk_state}{_behind(peer)}"


def _behind(peer: Peer) -> str:
    if not peer.out_of_sync_bytes:
        return ""
    return f", {units.format_size(peer.out_of_sync_bytes)} out of sync"


def judge_node(node: Node) -> Finding:
    """Return the verdict line of the whole node: the worst level and one sentence."""
    found = [(volume, judge_volume(volume)) for volume in node.volumes]
    total = len(found)
    sick = [pair for pair in found if pair[1].level is not Level.OK]
    if not sick:
        return Finding(Level.OK, _well(total))
    critical = [pair for pair in sick if pair[1].level is Level.CRITICAL]
    if critical:
        volume, finding = critical[0]
        more = f" ({len(sick) - 1} more need attention)" if len(sick) > 1 else ""
        return Finding(Level.CRITICAL, f"{volume.name}: {finding.sentence}{more}.")
    # A silent worker, or slow peers that have everything so far, are no lost redundancy.
    whole = all(volume.is_in_sync for volume, _ in sick)
    if whole or any(volume.worker_silent for volume, _ in sick):
        return Finding(Level.DEGRADED, f"{sick[0][0].name}: {sick[0][1].sentence}.")
    noun = "volume has" if total == 1 else "volumes has" if len(sick) == 1 else "volumes have"
    service = "; service is up" if any(volume.serving for volume, _ in found) else ""
    return Finding(Level.DEGRADED, f"{len(sick)} of {total} {noun} lost redundancy{service}.")


def _well(total: int) -> str:
    if total == 0:
        return "no volumes are configured."
    return "1 volume is well." if total == 1 else f"{total} volumes are well."


def check_line(node: Node) -> tuple[Level, str]:
    """Return what `status --check` prints: every volume that is not well, worst first."""
    level = judge_node(node).level
    found = [(judge_volume(volume), volume.name) for volume in node.volumes]
    sick = [pair for pair in found if pair[0].level is not Level.OK]
    sick.sort(key=lambda pair: -pair[0].level.value)
    if not sick:
        return level, f"OK {_well(len(found))}"
    return level, f"{level.name} " + "; ".join(f"{name}: {f.sentence}" for f, name in sick)

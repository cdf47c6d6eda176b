"""What is worth knowing about a volume beside its table: how long a peer has been away, what holds
a copy back, who gave which permit and when. Each remark is a clause without a full stop.
"""

from __future__ import annotations

from collections.abc import Iterator

from repl import units
from repl.cli.health import describe_slow
from repl.cli.moments import ago, moment
from repl.cli.snapshot import Peer, Volume

_KINDS = {
    "alone": "leave to go on alone",
    "peer-dead": "promotion on an operator's word",
    "data-lost": "promotion that accepts the loss of data",
}


def remarks(volume: Volume, now_s: float | None = None) -> Iterator[str]:
    """Yield the remarks about a volume and its peers."""
    for peer in volume.peers:
        if peer.connection_state != "connected":
            yield from _contact(peer, now_s)
        elif peer.resync is not None:
            yield from _away(peer, now_s)
        if peer.slow is not None and not volume.why.startswith(f"{peer.name} is slow"):
            yield describe_slow(peer, peer.slow)
    yield from _held_back(volume, now_s)
    yield from _served_nowhere(volume)


def permits(volume: Volume, now_s: float | None = None) -> Iterator[str]:
    """Yield the permits that matter still, newest first: when, what, and in whose words."""
    for permit in volume.permits:
        when = moment(permit.at_s, now_s) or "at an unknown time"
        kind = _KINDS.get(permit.kind, permit.kind)
        yield f"{when}: {kind}" + (f" ({permit.words})" if permit.words else "")


def _contact(peer: Peer, now_s: float | None) -> Iterator[str]:
    lost = moment(peer.contact_lost_time_s, now_s)
    if lost is not None:
        assert peer.contact_lost_time_s is not None
        since = ago(peer.contact_lost_time_s, now_s)
        yield f"contact with {peer.name} was lost at {lost}, {since}"
        return
    before = moment(peer.contact_lost_before_s, now_s)
    if before is not None:
        yield (
            f"contact with {peer.name} was lost before {before}, when this node started; it is not "
            "known when"
        )


def _away(peer: Peer, now_s: float | None) -> Iterator[str]:
    if peer.last_away is None:
        return
    from_s, to_s = peer.last_away
    lost, back = moment(from_s, now_s), moment(to_s, now_s)
    if lost is not None and back is not None:
        away = units.describe_duration(to_s - from_s)
        yield f"{peer.name} was away {away} (link lost {lost}, back {back})"


def _served_nowhere(volume: Volume) -> Iterator[str]:
    """A pair that is well and serves nobody: its clients wait for somebody to promote."""
    roles = {volume.role, *(peer.role for peer in volume.peers)}
    promotable = volume.promotable is not None and volume.promotable.ok
    # A peer that is away may be primary; what there is to run then stands in the Next.
    connected = all(peer.connection_state == "connected" for peer in volume.peers)
    if roles == {"secondary"} and connected and promotable and not volume.resume_pending:
        name = volume.name
        yield f"no node is primary of {name}; to serve it here: replctl promote {name}"


def _held_back(volume: Volume, now_s: float | None) -> Iterator[str]:
    order = volume.order
    by = f" by {order.by}" if order.by else ""
    if order.paused:
        since = moment(order.since_s, now_s)
        at = f" at {since}" if since else ""
        yield (
            f"copies of {volume.name} are paused here{by}{at}, until replctl resync {volume.name} "
            "resume"
        )
    elif order.rate_limit_bytes_per_s and any(peer.resync is not None for peer in volume.peers):
        yield f"copies are limited here to {units.format_rate(order.rate_limit_bytes_per_s)}"

"""`replctl promote` and `replctl demote`: who serves a volume."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from typing import Any

import click

from repl import units
from repl.cli import names
from repl.cli.confirm import confirm_by_name
from repl.cli.output import Session, one_line, pass_session, write
from repl.cli.snapshot import Peer, Volume, read_volume
from repl.errors import NoSuchThing, Refused, UsageError


@click.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@click.option(
    "--peer-dead",
    metavar="NODE",
    type=names.NODE,
    help="Vouch that NODE is stopped and acknowledged no write after contact was lost.",
)
@click.option(
    "--lose-data",
    metavar="VOL",
    is_flag=False,
    flag_value="",
    help="Promote a copy that is known to lack writes; repeat the volume's name.",
)
@click.option(
    "--accept-half-copied",
    is_flag=True,
    help="With --lose-data: even if this copy is half copied.",
)
@pass_session
def promote(
    session: Session,
    volume: str,
    peer_dead: str | None,
    lose_data: str | None,
    accept_half_copied: bool,
) -> None:
    """Make this node the primary of VOL."""
    if accept_half_copied and lose_data is None:
        raise UsageError(
            "--accept-half-copied needs --lose-data.",
            "a half copied volume can only be promoted by giving up data",
            f"replctl promote {volume} --lose-data {volume} --accept-half-copied",
        )
    if lose_data is not None:
        command = f"replctl promote {volume} --lose-data {volume}"
        command += " --accept-half-copied" if accept_half_copied else ""
        confirm_by_name(volume, lose_data, command, lambda: _stake(session, volume))
    if peer_dead is not None:
        # Printed whatever the output format: it is what the operator vouches for.
        write(sys.stderr, vouching(session, volume, peer_dead))
    reply = session.client.act(
        volume,
        "promote",
        {
            "peer_dead": peer_dead,
            "lose_data": lose_data is not None,
            "accept_half_copied": accept_half_copied,
        },
    )
    _done(session, reply, f"{volume} is primary on this node")


@click.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@click.option("--drop-clients", is_flag=True, help="Disconnect the clients that use the export.")
@pass_session
def demote(session: Session, volume: str, drop_clients: bool) -> None:
    """Make this node a secondary of VOL."""
    try:
        reply = session.client.act(volume, "demote", {"drop_clients": drop_clients})
    except Refused as refusal:
        raise (_held_by_device(session, volume, refusal) or refusal) from None
    _done(session, reply, f"{volume} is secondary on this node")


def _done(session: Session, reply: dict[str, Any], sentence: str) -> None:
    """End the verb: what is now, and the daemon's reason for it."""
    reason = reply.get("reason")
    said = f"{sentence}: {one_line(reason)}." if isinstance(reason, str) and reason else ""
    session.done(
        {**reply, "reason": said} if said and not session.as_json else reply, f"{sentence}."
    )


def _held_by_device(session: Session, volume: str, refusal: Refused) -> Refused | None:
    """Return the refusal with the device and the mount by which this node itself holds the volume.

    None if it is refused for something else, or nothing of it is attached.
    """
    from repl.attach import mounts
    from repl.attach.machine import Machine
    from repl.cli.attach import attachments

    found = attachments(session).find(volume) if refusal.code == "DEMOTE_CLIENTS" else None
    if found is None:
        return None
    mounted = mounts.of_device(Machine().mounts(), found.device)
    where = f", mounted on {mounted[-1].point}" if mounted else ""
    command = f"replctl detach {volume} && replctl demote {volume}"
    if mounted:
        command = f"replctl umount {shlex.quote(mounted[-1].point)} --demote"
    return Refused(
        refusal.what,
        f"{refusal.why}; its device on this node is {found.device}{where}",
        f"{command}   (or cut all clients off: replctl demote {volume} --drop-clients)",
        code=refusal.code,
    )


def vouching(session: Session, volume: str, peer_name: str) -> str:
    """Return the sentence that `--peer-dead` stands for; raises NoSuchThing for another node."""
    found = read_volume(session.client.volume(volume))
    peers = {peer.name: peer for peer in found.peers}
    if peer_name not in peers:
        known = ", ".join(peers) or "none"
        raise NoSuchThing(
            f"{volume} has no peer {peer_name}.",
            f"its peers: {known}",
            f"replctl status {volume}",
            code="NO_SUCH_PEER",
        )
    return (
        f"You vouch: {peer_name} is stopped and acknowledged no write after contact was lost"
        f"{_time_of(peers[peer_name])}."
    )


def _time_of(peer: Peer) -> str:
    if peer.connection_state in ("connected", "split-brain", "refused"):
        return " (this node has contact with it now)"
    lost, before = _zoned(peer.contact_lost_time_s), _zoned(peer.contact_lost_before_s)
    if lost:
        return f" at {lost}"
    if before:
        return f" (this node does not know when: before {before}, when it started)"
    return " (this node does not know when)"


def _zoned(time_s: float | None) -> str:
    if time_s is None:
        return ""
    try:
        moment = datetime.fromtimestamp(time_s).astimezone()
    except (OverflowError, ValueError, OSError):
        return ""
    return moment.isoformat(sep=" ", timespec="seconds")


def _stake(session: Session, volume: str) -> str:
    """Return what a promotion by --lose-data may cost, as far as this node knows."""
    found = read_volume(session.client.volume(volume))
    lines = [f"{volume} on this node: the copy is {found.disk_state}{_differences(found)}."]
    if found.promotable is not None and found.promotable.reason:
        lines.append(f"Why   {one_line(found.promotable.reason)}")
    lines.append("Writes that only another copy has are given up, unless that copy comes back:")
    lines.append("then both copies are kept, and you choose between them (split-brain).")
    return "\n".join(lines)


def _differences(volume: Volume) -> str:
    parts = [
        f"{units.format_size(peer.out_of_sync_bytes)} differ from {one_line(peer.name)}"
        for peer in volume.peers
        if peer.out_of_sync_bytes
    ]
    return f" and {', '.join(parts)}" if parts else ""

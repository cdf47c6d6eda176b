"""`replctl resync`: hold copies back, let them go, or order a full comparison by name."""

from __future__ import annotations

from typing import Any

import click

from repl import units
from repl.cli import names
from repl.cli.confirm import confirm_by_name
from repl.cli.output import Session, one_line, pass_session
from repl.cli.snapshot import Volume, read_volume
from repl.errors import UsageError

#: What takes a limit away.
NO_LIMIT = ("none", "off", "0")
#: Rules of a refused handshake: the two copies have no history in common that is known.
STRANGERS = frozenset({"no-common-contact", "unrelated", "not-a-member"})


@click.command()
@click.argument("volume", metavar="VOL", type=names.VOLUME)
@click.argument(
    "action",
    metavar="[pause|resume|limit]",
    type=click.Choice(["pause", "resume", "limit"]),
    required=False,
)
@click.argument("rate", metavar="[RATE]", required=False)
@click.option("--full", is_flag=True, help="Compare this node's whole copy with NODE's.")
@click.option(
    "--from", "source", metavar="NODE", type=names.NODE, help="With --full: whose copy is kept."
)
@click.option(
    "--confirm", metavar="VOL", help="With --full, where it can lose data: the volume's name."
)
@pass_session
def resync(
    session: Session,
    volume: str,
    action: str | None,
    rate: str | None,
    full: bool,
    source: str | None,
    confirm: str | None,
) -> None:
    """Pause, resume or limit the copies of VOL.

    Or, with --full --from NODE, compare the whole copy on this node with NODE's and bring what
    differs. An order holds until it is taken back or repld ends; the limit of the configuration
    holds again then.
    """
    if full or source is not None or confirm is not None:
        _compare(session, volume, action, full, source, confirm)
        return
    if action is None:
        raise UsageError(
            "resync needs to be told what to do.",
            "it is one of: pause, resume, limit RATE, --full --from NODE",
            f"replctl resync {volume} pause",
        )
    arguments: dict[str, Any] = {}
    if action == "limit":
        arguments["rate_bytes_per_s"] = _rate(volume, rate)
    elif rate is not None:
        raise UsageError(
            f"{action} takes no rate.", "only limit does", f"replctl resync {volume} {action}"
        )
    reply = session.client.act(volume, f"resync-{action}", arguments)
    session.done(reply, f"resync of {volume}: {action}.")


def _rate(volume: str, text: str | None) -> int:
    example = f"replctl resync {volume} limit 100MB/s   (or: limit none)"
    if text is None:
        raise UsageError("limit needs a rate.", "bytes per second, or none", example)
    if text in NO_LIMIT:
        return 0
    try:
        rate = units.parse_rate(text)
    except units.UnitInvalid as refusal:
        raise UsageError("The limit cannot be used.", str(refusal), example) from refusal
    if rate == 0:
        raise UsageError("A limit of nothing is a pause.", "it would never end", example)
    return rate


def _compare(
    session: Session,
    volume: str,
    action: str | None,
    full: bool,
    source: str | None,
    confirm: str | None,
) -> None:
    if action is not None or not full or source is None:
        raise UsageError(
            "--full and --from NODE go together, and alone.",
            "a full comparison is ordered by the name of the node whose copy is kept",
            f"replctl resync {volume} --full --from NODE",
        )
    found = read_volume(session.client.volume(volume))
    if _are_strangers(found, source):
        command = f"replctl resync {volume} --full --from {source} --confirm {volume}"
        confirm_by_name(volume, confirm, command, lambda: _stake(found, source))
    reply = session.client.act(volume, "resync-full", {"source": source})
    session.done(reply, f"the copy of {volume} on this node is compared with {source}'s.")


def _are_strangers(volume: Volume, source: str) -> bool:
    """Whether nothing shows that this copy holds no write of its own: then a person must say so."""
    return any(
        peer.name == source and peer.connection_state == "refused" and peer.rule in STRANGERS
        for peer in volume.peers
    )


def _stake(volume: Volume, source: str) -> str:
    lines = [
        f"The copy of {volume.name} on this node and {source}'s do not know each other:",
        f"every block that differs from {source}'s is overwritten here, and cannot be had again.",
    ]
    if volume.why:
        lines.append(f"Why   {one_line(volume.why)}")
    return "\n".join(lines)

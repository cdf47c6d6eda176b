"""A resync that runs while a sample is taken: begun right before it, looked at right after it."""

from __future__ import annotations

from bench import fio
from bench.contender import Served
from bench.processes import ContenderBroke
from tests.daemon import DeadlineMissed, Json
from tests.pair import is_in_sync

VOLUME = "r0"


def is_copying(volume: Json) -> bool:
    """Whether the peer is being brought up to date."""
    (peer,) = volume["peers"]
    return peer["replication_state"] in ("sync-source", "settling")


def begin(served: Served, size_bytes: int) -> None:
    """Write the whole volume while the peer is disconnected, connect it, see the copying begin."""
    primary = served.nodes[0]
    try:
        primary.wait_volume(is_in_sync, "is in sync", VOLUME)
        primary.ctl_ok("disconnect", VOLUME)
        fio.run(fio.fill_arguments(served.uri, size_bytes))
        primary.ctl_ok("connect", VOLUME)
        primary.wait_volume(is_copying, "copies to its peer", VOLUME)
    except (DeadlineMissed, AssertionError) as error:
        raise ContenderBroke(str(error)) from error


def end(served: Served) -> str:
    """Say whether the copying lasted as long as the sample; wait until it is over."""
    primary = served.nodes[0]
    try:
        volume = primary.volume(VOLUME)
        (peer,) = volume["peers"]
        left_bytes = peer["out_of_sync_bytes"]
        primary.wait_volume(is_in_sync, "is in sync again", VOLUME, 120.0)
    except (DeadlineMissed, AssertionError) as error:
        raise ContenderBroke(str(error)) from error
    if not is_copying(volume):
        return "the resync ended before the sample did"
    return f"{left_bytes >> 20} MiB left to copy at the end"

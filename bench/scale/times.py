"""How long changes of state take, what a resync moves, and what a pair costs that does nothing.

Each function takes one sample of one line. Times are seen from outside: by a client's longest
request, or by asking the daemon every 10 ms.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import accounting, fio
from bench.contender import Place
from bench.contenders.limit import Limit
from bench.fio import Workload
from bench.scale.curves import Figures
from bench.scale.pairs import groups, start_serving, two_nodes, until
from repl.cli.client import Client
from tests.daemon import Node, VolumeSpec
from tests.pair import is_in_sync

VOLUME_BYTES = 256 << 20
RESYNC_BYTES = 1 << 30
MISSED_BYTES = 16 << 20
BLOCK_BYTES = 4096
PIECE_BYTES = 1 << 20
#: A client writes this long around a peer's death, which comes after the first so many seconds.
AROUND_S = 10
BEFORE_S = 2.0
IDLE_SETTLED_S = 6.0
IDLE_S = 20.0

VOLUMES = (VolumeSpec("r0", VOLUME_BYTES),)


@dataclass(frozen=True)
class Event:
    """One line of the table: what happens, how one sample is taken, and in which figures."""

    label: str
    sample: Callable[[Path], Figures]


def act(node: Node, verb: str, arguments: dict[str, Any]) -> float:
    """Carry out a verb; return how many seconds that took."""
    began_s = time.monotonic()
    Client(str(node.control)).act("r0", verb, arguments)
    return time.monotonic() - began_s


def promote(node: Node, peer_dead: str | None = None) -> float:
    arguments = {"peer_dead": peer_dead, "lose_data": False, "accept_half_copied": False}
    return act(node, "promote", arguments)


def start(folder: Path) -> Figures:
    """From the start of both daemons on their own files until the volume may be promoted."""
    with two_nodes(folder, VOLUMES) as pair:
        start_serving(pair, VOLUMES)
        act(pair.alpha, "demote", {"drop_clients": False})
        for node in pair.nodes:
            node.stop()
        began_s = time.monotonic()
        for node in pair.nodes:
            node.start(wait=False)
        until(pair.beta, lambda volume: is_in_sync(volume) and volume["promotable"]["ok"])
        return {"s": time.monotonic() - began_s}


def switch(folder: Path) -> Figures:
    """Demote here, promote there, both in sync."""
    with two_nodes(folder, VOLUMES) as pair:
        start_serving(pair, VOLUMES)
        demoted_s = act(pair.alpha, "demote", {"drop_clients": False})
        return {"s": demoted_s + promote(pair.beta)}


def failover(folder: Path) -> Figures:
    """The primary's processes are killed; `promote --peer-dead` on the other node."""
    with two_nodes(folder, VOLUMES) as pair:
        start_serving(pair, VOLUMES)
        pair.alpha.kill()
        until(pair.beta, lambda volume: volume["peers"][0]["connection_state"] != "connected")
        return {"s": promote(pair.beta, "alpha")}


def _pause_of_a_client(folder: Path, strike: Callable[[Node], None]) -> Figures:
    with two_nodes(folder, VOLUMES) as pair:
        start_serving(pair, VOLUMES)
        began_s = time.monotonic()
        struck = threading.Event()

        def watch() -> None:
            if not struck.is_set() and time.monotonic() - began_s > BEFORE_S:
                struck.set()
                strike(pair.beta)

        workload = Workload("randwrite", BLOCK_BYTES, 1)
        command = fio.arguments(workload, pair.alpha.uri(), VOLUME_BYTES, AROUND_S)
        measured = fio.parse(fio.run(command, AROUND_S + fio.DEADLINE_EXTRA_S, watch=watch))
        assert struck.is_set()
        return {"s": measured.longest_us / 1e6}


def killed_peer(folder: Path) -> Figures:
    """The longest write of a client while the secondary's processes are killed."""
    return _pause_of_a_client(folder, Node.kill)


def silent_peer(folder: Path) -> Figures:
    """The longest write of a client while the secondary stops answering."""
    return _pause_of_a_client(folder, Node.freeze)


def come_back(folder: Path) -> Figures:
    """From the start of a killed secondary until it is in sync again, 16 MiB having changed."""
    with two_nodes(folder, VOLUMES) as pair:
        start_serving(pair, VOLUMES)
        pair.beta.kill()
        until(pair.alpha, lambda volume: volume["peers"][0]["connection_state"] != "connected")
        fio.run(fio.fill_arguments(pair.alpha.uri(), MISSED_BYTES))
        began_s = time.monotonic()
        pair.beta.start(wait=False)
        until(pair.alpha, is_in_sync)
        return {"s": time.monotonic() - began_s}


EVENTS = (
    Event("start both, until promotable", start),
    Event("switch: demote, promote on the other node", switch),
    Event("failover: `promote --peer-dead`", failover),
    Event("a client's pause when the secondary is killed", killed_peer),
    Event("a client's pause when the secondary falls silent", silent_peer),
    Event("killed secondary: started until in sync, 16 MiB missed", come_back),
)


def resync(folder: Path) -> Figures:
    """Copy 1 GiB to a peer that missed it; the yardsticks are taken right after it."""
    volumes = (VolumeSpec("r0", RESYNC_BYTES),)
    with two_nodes(folder, volumes) as pair:
        start_serving(pair, volumes)
        pair.alpha.ctl_ok("disconnect", "r0")
        fio.run(fio.fill_arguments(pair.alpha.uri(), RESYNC_BYTES))
        act(pair.alpha, "connect", {"peer": None})
        began_s = time.monotonic()
        until(pair.alpha, is_in_sync)
        rate = RESYNC_BYTES / (time.monotonic() - began_s) / 1e6
    yardsticks = {
        "synced_write_MB_per_s": synced_write(folder),
        "link_MB_per_s": link(),
        "limit_MB_per_s": limit_write(folder),
    }
    ratio = rate / min(yardsticks.values())
    return {"resync_MB_per_s": rate, **yardsticks, "of_the_slowest": ratio}


def synced_write(folder: Path) -> float:
    """Return MB/s of writing as much into a new file in order, and one sync."""
    path, piece = folder / "yardstick.img", os.urandom(PIECE_BYTES)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        began_s = time.monotonic()
        for offset in range(0, RESYNC_BYTES, PIECE_BYTES):
            os.pwrite(fd, piece, offset)
        os.fdatasync(fd)
        return RESYNC_BYTES / (time.monotonic() - began_s) / 1e6
    finally:
        os.close(fd)
        path.unlink()


def link() -> float:
    """Return MB/s of one TCP connection over loopback that only sends and receives."""
    listener = socket.create_server(("127.0.0.1", 0))
    piece = bytes(PIECE_BYTES)

    def send() -> None:
        with socket.create_connection(listener.getsockname()) as sender:
            for _ in range(RESYNC_BYTES // PIECE_BYTES):
                sender.sendall(piece)

    sending = threading.Thread(target=send, daemon=True)
    room = bytearray(PIECE_BYTES)
    began_s = time.monotonic()
    sending.start()
    receiver, _ = listener.accept()
    with listener, receiver:
        while receiver.recv_into(room):
            pass
    sending.join()
    return RESYNC_BYTES / (time.monotonic() - began_s) / 1e6


def limit_write(folder: Path) -> float:
    """Return MB/s of 1 MiB writes in order through the C program into two copies."""
    place = Place(folder / "limit", RESYNC_BYTES)
    place.folder.mkdir()
    with Limit("limit", "limit", replicated=True).serve(place) as served:
        rate = fio.parse_fill(fio.run(fio.fill_arguments(served.uri, RESYNC_BYTES))) / 1e6
    for path in place.folder.iterdir():
        path.unlink()
    place.folder.rmdir()
    return rate


def idle(folder: Path, count: int) -> Figures:
    """So many volumes in sync, no client, nothing to do."""
    volumes = tuple(VolumeSpec(f"r{number}", VOLUME_BYTES) for number in range(count))
    with two_nodes(folder, volumes) as pair:
        start_serving(pair, volumes)
        time.sleep(IDLE_SETTLED_S)
        before_s = accounting.cpu_s(groups(pair))
        time.sleep(IDLE_S)
        used_s = accounting.cpu_s(groups(pair)) - before_s
        members = accounting.members(groups(pair))
        memory_mib = sum(map(accounting.pss_bytes, members)) / fio.MIB
        return {"percent_of_a_processor": used_s / IDLE_S * 100, "memory_MiB": memory_mib}

"""The daemon as `repl/attach` needs it, over the control socket: roles, histories, addresses."""

from __future__ import annotations

import ipaddress
import time
from typing import Any

from repl.attach.history import Generation, Lineage
from repl.cli.client import ACTION_TIMEOUT_S, Client
from repl.cli.snapshot import read_node, read_volume
from repl.errors import Refused, ReplError, from_json

#: For the daemon to notice that a device which was just given back is no client any more.
CLIENT_LEAVES_S = 5.0
POLL_PAUSE_S = 0.1
DATA_LOST = "data-lost"
"""The origin of a generation made by `promote --lose-data`, as the metadata spells it."""


class DaemonVolumes:
    """Implements `repl.attach.volumes.Volumes` and `repl.attach.daemon_line.Daemon`."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def role(self, volume: str) -> str:
        """Return the volume's role; raises what is wrong with one that cannot be opened."""
        fields = self._client.volume(volume)
        if isinstance(fields.get("problem"), dict):
            raise from_json(fields["problem"])
        return read_volume(fields).role

    def primaries(self) -> list[str]:
        """Return the volumes of which this node is primary."""
        volumes = read_node(self._client.status()).volumes
        return [volume.name for volume in volumes if volume.role == "primary"]

    def other_clients(self, volume: str, own_pid: int) -> list[str]:
        """Return who holds the export besides that process, as `Volumes` says."""
        deadline_s = time.monotonic() + CLIENT_LEAVES_S
        while True:
            others = _without(own_pid, self._client.volume(volume))
            if not others or time.monotonic() > deadline_s:
                return others
            time.sleep(POLL_PAUSE_S)

    def promote(self, volume: str, peer_dead: str | None) -> None:
        arguments = {"peer_dead": peer_dead, "lose_data": False, "accept_half_copied": False}
        self._client.act(volume, "promote", arguments)

    def demote(self, volume: str, timeout_s: float = ACTION_TIMEOUT_S) -> None:
        deadline_s = time.monotonic() + CLIENT_LEAVES_S
        while True:
            try:
                self._client.act(volume, "demote", {"drop_clients": False}, timeout_s)
                return
            except Refused as refusal:
                if refusal.code != "DEMOTE_CLIENTS" or time.monotonic() > deadline_s:
                    raise
            time.sleep(POLL_PAUSE_S)

    def address(self, volume: str) -> str:
        """Return where this node reaches the exports: the Unix socket, else `HOST:PORT`."""
        nbd = self._client.status().get("nbd")
        found = nbd if isinstance(nbd, dict) else {}
        if isinstance(found.get("socket"), str):
            return str(found["socket"])
        if isinstance(found.get("listen"), str):
            return _local(found["listen"])
        raise Refused(
            f"{volume} cannot be attached: the daemon does not say where it serves NBD.",
            "it has neither [nbd] socket nor [nbd] listen, or is of an older version",
            'set it in the configuration:  [nbd]  socket = "/run/repl/nbd.sock"',
            code="ATTACH_IMPOSSIBLE",
        )

    def lineage(self, volume: str) -> Lineage:
        """Return the volume's lineage on this node. Raises ReplError."""
        facts = self._client.metadata(volume).get("metadata", {}).get("facts", {})
        try:
            entries = [
                Generation(int(entry["id"]), int(entry["primary"]), entry["origin"] == DATA_LOST)
                for entry in facts["lineage"]
            ]
            return Lineage(int(facts["node_id"]), entries)
        except (KeyError, TypeError, ValueError) as error:
            raise _not_understood(volume) from error

    def generation(self, volume: str) -> int:
        """Return the current generation's id while this node is primary, else 0."""
        fields = self._client.volume(volume)
        found: Any = fields.get("generation")
        if read_volume(fields).role != "primary" or not isinstance(found, dict):
            return 0
        try:
            return int(str(found.get("id")) or "0", 16)
        except ValueError as error:
            raise _not_understood(volume) from error


def _without(own_pid: int, fields: dict[str, Any]) -> list[str]:
    """Return the names of a primary's clients without the one of this process."""
    found = fields.get("client_names")
    if read_volume(fields).role != "primary" or not isinstance(found, list):
        return []
    names = [str(name) for name in found]
    own = [name for name in names if name.partition(" (")[0] == f"unix pid {own_pid}"]
    if own:
        names.remove(own[0])
        return names
    return names if len(names) > 1 else []


def _local(listen: str) -> str:
    """Return how this node itself reaches what listens there."""
    host, _, port = listen.rpartition(":")
    try:
        number = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return listen
    if number.is_unspecified:
        return f"[::1]:{port}" if number.version == 6 else f"127.0.0.1:{port}"
    return listen


def _not_understood(volume: str) -> ReplError:
    return ReplError(
        f"What the daemon says of {volume} cannot be understood.",
        "its metadata has another form than this version expects",
        "compare the versions of both sides:  replctl version",
    )

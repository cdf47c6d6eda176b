"""How two forked copies differ, as far as both sides' facts and maps tell: for people only.

While a connection is in split-brain, each side tells the other who uses its copy (FORK) and which
blocks it changed (MAP), again whenever that changes. Nothing is decided on it. The amounts are
upper bounds: a block that both sides wrote may hold the same bytes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from repl.core import lineage
from repl.core.blockmap import BlockMap
from repl.core.handshake import base_covers
from repl.core.lineage import Generation, Lineage
from repl.core.wire import Fields, PeerError, Type

if TYPE_CHECKING:
    from repl.core.session import Session

#: The peer hears of changes this often.
TELL_INTERVAL_S = 2.0
#: Names of clients on the wire: this many, each of at most this length.
CLIENTS_TOLD = 32
CLIENT_NAME_MAX = 120
#: Generations of one side that are shown: the first since the fork, and the newest.
GENERATIONS_SHOWN = 24


class Divergence:
    """What this side has told the peer and heard from it, on one connection."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._volume = session.volume
        self._told_at_s = 0.0
        #: Hashes of the map pages as they were sent, and the last FORK body.
        self._pages_told: dict[int, int] = {}
        self._told: dict[str, Any] | None = None
        mine = session.volume.maps.remaining
        self._their_map = BlockMap(mine.size_bytes, mine.block_shift, mine.page_bytes)
        #: What the peer's last FORK said; None before the first, behind which its map is whole.
        self._heard: dict[str, Any] | None = None

    # The peer.

    def tick(self, kept: bool, agreed: bool) -> None:
        """Tell what changed, now and then."""
        if self._volume.now - self._told_at_s >= TELL_INTERVAL_S:
            self.tell(kept, agreed)

    def tell(self, kept: bool, agreed: bool) -> None:
        """Send the pages of this side's map that are news, and who uses this copy."""
        volume, session = self._volume, self._session
        self._told_at_s = volume.now
        changed = volume.maps.dirty[session.name]
        news = False
        for page_no in changed.set_pages():
            bits = changed.page(page_no)
            if self._pages_told.get(page_no) != hash(bits):
                self._pages_told[page_no] = hash(bits)
                session.send(Type.MAP, offset=page_no, source=bits)
                news = True
        names = [name[:CLIENT_NAME_MAX] for name in volume.client_names[:CLIENTS_TOLD]]
        body = {
            "clients": len(volume.client_names),
            "client_names": names,
            "kept": kept,
            "agreed": agreed,
        }
        if news or body != self._told:
            self._told = body
            session.send_control(Type.FORK, body)

    def map_page(self, page_no: int, bits: bytes) -> None:
        """A page of the peer's map."""
        known = self._their_map
        if page_no >= known.page_count or len(bits) != known.page_bytes:
            raise PeerError("MAP: the page does not fit the volume")
        known.load_page(page_no, bits)

    def on_fork(self, fields: Fields) -> None:
        """Who uses the peer's copy."""
        self._heard = {
            "clients": fields.number("clients"),
            "client_names": list(fields.texts("client_names", CLIENTS_TOLD, CLIENT_NAME_MAX)),
            "kept": fields.flag("kept"),
            "agreed": fields.flag("agreed"),
        }
        self._volume.outbox.changed = True

    # People.

    def picture(self, kept: bool, agreed: bool) -> dict[str, Any]:
        """Where the copies parted, what each side did since, and how much may differ."""
        volume, session = self._volume, self._session
        mine, theirs = session.my_hello, session.their_hello
        assert mine is not None and theirs is not None
        ancestor = lineage.common_ancestor(volume.facts.lineage, theirs.lineage)
        assert ancestor is not None
        here = {
            "node": volume.node,
            "role": volume.role_text,
            "disk_state": volume.disk_state_text,
            "clients": len(volume.client_names),
            "client_names": list(volume.client_names[:CLIENTS_TOLD]),
            "kept": kept,
            "agreed": agreed,
            "changed_bytes_at_most": None,
            **self._told_of(volume.facts.lineage, ancestor),
        }
        status, heard = session.peer_status, self._heard or {}
        there = {
            "node": session.name,
            "role": status.get("role", "unknown"),
            "disk_state": status.get("disk_state", "unknown"),
            "clients": heard.get("clients"),
            "client_names": heard.get("client_names", []),
            "kept": heard.get("kept", False),
            "agreed": heard.get("agreed", False),
            "changed_bytes_at_most": None,
            **self._told_of(theirs.lineage, ancestor),
        }
        changed = volume.maps.dirty[session.name]
        if base_covers(mine, theirs, ancestor.id):
            here["changed_bytes_at_most"] = changed.set_bytes
        if base_covers(theirs, mine, ancestor.id) and self._heard is not None:
            there["changed_bytes_at_most"] = self._their_map.set_bytes
        known = None not in (here["changed_bytes_at_most"], there["changed_bytes_at_most"])
        differing = volume.size_bytes
        if known:
            union = changed.copy()
            union.merge(self._their_map)
            differing = union.set_bytes
        # Its mark is set where a client was answered: on the primary's side.
        twin = next(entry for entry in theirs.lineage if entry.id == ancestor.id)
        fork = replace(ancestor, answered=ancestor.answered or twin.answered)
        return {
            "fork": self._generation(fork),
            "sides": sorted((here, there), key=lambda side: str(side["node"])),
            "differing_bytes_at_most": differing,
            "differing_known_from_maps": known,
        }

    def _told_of(self, entries: Lineage, ancestor: Generation) -> dict[str, Any]:
        """One side's generations since the fork, newest first, and how many are left out."""
        since = lineage.since(entries, ancestor.id)
        shown = since
        if len(since) > GENERATIONS_SHOWN:
            shown = (*since[: GENERATIONS_SHOWN - 1], since[-1])
        return {
            "generations": [self._generation(entry) for entry in shown],
            "generations_left_out": len(since) - len(shown),
        }

    def _generation(self, entry: Generation) -> dict[str, Any]:
        return {
            "counter": entry.counter,
            "id": f"{entry.id:016x}",
            "origin": entry.origin.value,
            "made_at_s": entry.made_at_s,
            "permit": entry.permit,
            "answered": entry.answered,
            "primary": self._name_of(entry.primary) if entry.primary else "",
            "members": [self._name_of(member) for member in entry.members],
        }

    def _name_of(self, node_id: int) -> str:
        mine, theirs = self._session.my_hello, self._session.their_hello
        assert mine is not None and theirs is not None
        names = {mine.node_id: self._volume.node, theirs.node_id: self._session.name}
        return names.get(node_id, f"{node_id:016x}")

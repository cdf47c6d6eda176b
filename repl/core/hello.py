"""The hello: everything about one side that the handshake decides on.

Both sides send one, and both compute `handshake.decide` over the same pair. It is built from facts
that are stored durably (G3: nothing is given out before it is stored).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from repl.core.facts import Facts
from repl.core.lineage import Generation, Lineage, Origin
from repl.core.wire import Fields, PeerError

#: Version of the hello's meaning, and of the frames that may follow it (PROTOCOL.md names what each
#: one added). A side refuses a peer whose version differs by more than one.
PROTOCOL_VERSION = 2
#: A lineage on the wire has at most this many entries; `lineage.extend` keeps far fewer.
LINEAGE_MAX = 256
COUNTER_MAX = 1 << 48


@dataclass(frozen=True, slots=True)
class Hello:
    """One side's facts. `base_*` and `tokens` are this side's view of the other."""

    protocol: int
    node: str
    volume: str
    node_id: int
    volume_id: int
    size_bytes: int
    block_shift: int
    lineage: Lineage
    is_primary: bool
    cache_lost: bool
    #: None: unknown, as of an older version, which does not look at the other side's either.
    crashed: bool | None
    inconsistent: bool
    everything_suspect: bool
    outdated: bool
    known_zeroes: bool
    #: Any block of this copy, or of the other as far as known here, may differ.
    has_dirt: bool
    #: The node id that this side remembers for the other, 0 if none, and what goes with it.
    known_peer_id: int
    tokens: tuple[int, ...]
    base_from: int
    base_to: int

    @property
    def fresh(self) -> bool:
        """Whether this side holds no data generation yet."""
        return not self.lineage


def build(
    *,
    node: str,
    volume: str,
    peer: str,
    facts: Facts,
    block_shift: int,
    primary: bool,
    has_dirt: bool,
) -> Hello:
    """Describe this side for a connection with `peer`; `primary` is the role in force."""
    record = facts.peer(peer)
    return Hello(
        protocol=PROTOCOL_VERSION,
        node=node,
        volume=volume,
        node_id=facts.node_id,
        volume_id=facts.volume_id,
        size_bytes=facts.size_bytes,
        block_shift=block_shift,
        lineage=facts.lineage,
        is_primary=primary,
        cache_lost=facts.cache_lost,
        crashed=facts.crashed,
        inconsistent=facts.inconsistent,
        everything_suspect=facts.everything_suspect,
        outdated=facts.outdated,
        known_zeroes=facts.known_zeroes,
        has_dirt=has_dirt,
        known_peer_id=record.node_id,
        tokens=record.tokens,
        base_from=record.base_from,
        base_to=record.base_to,
    )


def generation_to_json(generation: Generation) -> dict[str, Any]:
    """Return a generation as the object that HELLO and GENERATION frames carry."""
    return {
        "counter": generation.counter,
        "id": generation.id,
        "primary": generation.primary,
        "members": list(generation.members),
        "answered": generation.answered,
        "origin": generation.origin.value,
        "made_at_s": generation.made_at_s,
        "permit": generation.permit,
    }


def generation_from_fields(fields: Fields) -> Generation:
    """Parse and check a generation that a peer sent; raise `PeerError` on nonsense."""
    origin = fields.text("origin", 40)
    if origin not in {known.value for known in Origin}:
        raise PeerError(f"a generation has the unknown origin {origin!r}")
    members = fields.numbers("members", 32)
    counter, identifier = fields.number("counter"), fields.number("id")
    if counter > COUNTER_MAX:
        raise PeerError("a generation's counter is beyond all that can be reached")
    if not members or list(members) != sorted(set(members)) or not counter or not identifier:
        raise PeerError("a generation has no members, an unordered set, or a zero id")
    return Generation(
        counter=counter,
        id=identifier,
        primary=fields.number("primary"),
        members=members,
        answered=fields.flag("answered"),
        origin=Origin(origin),
        made_at_s=fields.number("made_at_s"),
        permit=fields.text("permit", 400),
    )


def lineage_from_fields(fields: Fields) -> Lineage:
    """Parse a lineage, newest first; its counters must descend and its ids be distinct."""
    entries = tuple(generation_from_fields(item) for item in fields.objects("lineage", LINEAGE_MAX))
    for newer, older in pairwise(entries):
        if newer.counter <= older.counter:
            raise PeerError("a lineage's counters do not descend")
    if len({entry.id for entry in entries}) != len(entries):
        raise PeerError("a lineage names a generation twice")
    return entries


def to_json(hello: Hello) -> dict[str, Any]:
    """Return the body of a HELLO frame."""
    body = {
        "protocol": hello.protocol,
        "node": hello.node,
        "volume": hello.volume,
        "node_id": hello.node_id,
        "volume_id": hello.volume_id,
        "size_bytes": hello.size_bytes,
        "block_shift": hello.block_shift,
        "lineage": [generation_to_json(entry) for entry in hello.lineage],
        "is_primary": hello.is_primary,
        "cache_lost": hello.cache_lost,
        "inconsistent": hello.inconsistent,
        "everything_suspect": hello.everything_suspect,
        "outdated": hello.outdated,
        "known_zeroes": hello.known_zeroes,
        "has_dirt": hello.has_dirt,
        "known_peer_id": hello.known_peer_id,
        "tokens": list(hello.tokens),
        "base_from": hello.base_from,
        "base_to": hello.base_to,
    }
    return body if hello.crashed is None else body | {"crashed": hello.crashed}


def from_json(body: dict[str, Any]) -> Hello:
    """Parse the body of a HELLO frame; raise `PeerError` on a missing or impossible field."""
    fields = Fields("HELLO", body)
    hello = Hello(
        protocol=fields.number("protocol"),
        node=fields.text("node", 64),
        volume=fields.text("volume", 64),
        node_id=fields.number("node_id"),
        volume_id=fields.number("volume_id"),
        size_bytes=fields.number("size_bytes"),
        block_shift=fields.number("block_shift"),
        lineage=lineage_from_fields(fields),
        is_primary=fields.flag("is_primary"),
        cache_lost=fields.flag("cache_lost"),
        crashed=fields.flag("crashed") if fields.has("crashed") else None,
        inconsistent=fields.flag("inconsistent"),
        everything_suspect=fields.flag("everything_suspect"),
        outdated=fields.flag("outdated"),
        known_zeroes=fields.flag("known_zeroes"),
        has_dirt=fields.flag("has_dirt"),
        known_peer_id=fields.number("known_peer_id"),
        tokens=fields.numbers("tokens", 2),
        base_from=fields.number("base_from"),
        base_to=fields.number("base_to"),
    )
    if not hello.node_id:
        raise PeerError("HELLO: a node id is never 0")
    if bool(hello.volume_id) != bool(hello.lineage):
        raise PeerError("HELLO: a volume id comes with the first generation, not before or after")
    return hello

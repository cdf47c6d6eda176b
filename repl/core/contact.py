"""Whom this node meets: node ids, contact tokens, and a copy that takes a former member's place.

Two nodes that meet store a common random token; nodes that meet again without one in common were
restored from a backup, a snapshot or a clone (design §5, handshake step 1).
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import TYPE_CHECKING

from repl.core.facts import TOKENS_KEPT, Facts, PeerRecord
from repl.core.handshake import Action, Decision
from repl.core.hello import Hello
from repl.core.states import Phase

if TYPE_CHECKING:
    from repl.core.session import Session

#: What a connection is at after a decision that moves no data and changes nothing on this side.
WAITS_AT = {
    Action.REFUSE: Phase.REFUSED,
    Action.SPLIT_BRAIN: Phase.SPLIT_BRAIN,
    Action.WAIT: Phase.IDLE,
    Action.AWAIT_YIELD: Phase.IDLE,
    Action.AWAIT_PART: Phase.IDLE,
}


def without_bases(facts: Facts, peers: Container[str]) -> tuple[PeerRecord, ...]:
    """Return the records with the bases void (G7) of all that are not among the volume's peers.

    Nobody notes what changes meanwhile for a peer that was taken out of the configuration: if it
    comes back, everything is compared.
    """
    return tuple(
        known if known.name in peers else replace(known, base_from=0, base_to=0)
        for known in facts.peers
    )


def retires_member(session: Session, decision: Decision) -> bool:
    """Go on without a member whose copy was replaced, before the new copy is met (G4).

    A new disk under a configured name shows a new node id; the old id can never answer again.
    """
    volume = session.volume
    assert session.their_hello is not None
    replaced = session.is_member and session.node_id != session.their_hello.node_id
    if not replaced or not volume.is_primary or decision.action is Action.REFUSE:
        return False
    if not volume.changes.busy:
        permit = f"{session.name} shows a new copy in place of the one that was a member"
        volume.changes.lose([session], permit)
    return True


def record(session: Session, theirs: Hello) -> int:
    """Note whom we met; void releases; return the token that this side offers, or 0."""
    volume = session.volume
    facts = volume.facts
    known = facts.peer(session.name)
    if known.node_id != theirs.node_id:
        known = replace(known, node_id=theirs.node_id, tokens=(), base_from=0, base_to=0)
    token = 0
    if facts.node_id < theirs.node_id:
        token = _choose_token(session, known.tokens, theirs)
        if token not in known.tokens:
            known = replace(known, tokens=(token, *known.tokens)[:TOKENS_KEPT])
    volume.change_peer(known, released=False, holds_release=False)
    return token


def made(session: Session) -> None:
    """Both sides act on the handshake. Nothing waits for this to be stored."""
    volume = session.volume
    session.met = True
    known = volume.facts.peer(session.name)
    if known.contact_lost_s:
        session.last_away = (known.contact_lost_s, volume.wall_clock_s)
        volume.change_peer(replace(known, contact_lost_s=0))
        volume.commits.request()


def lost(session: Session) -> None:
    """The connection is over: remember when, if the two nodes had come to an understanding.

    One that never got so far says nothing about when the other's data was last known.
    """
    volume = session.volume
    if session.met:
        known = volume.facts.peer(session.name)
        volume.change_peer(replace(known, contact_lost_s=volume.wall_clock_s))
        volume.commits.request()


def lost_at(session: Session) -> tuple[int | None, int | None]:
    """Return (when contact was lost, or before when), as far as it is known; for people."""
    known = session.volume.facts.peer(session.name)
    # A connection on which nothing was said yet is no contact: a hung node's kernel accepts, too.
    if session.phase not in (Phase.DOWN, Phase.GREETING) or not known.node_id:
        return None, None
    if known.contact_lost_s:
        return known.contact_lost_s, None
    return None, session.volume.opened_wall_s


def settled(session: Session) -> None:
    """Both sides have stored the newest token (the announcement or the settle's end rests on it):
    from now on no older one will do, so that an image of an earlier contact is recognised."""
    volume = session.volume
    known = volume.facts.peer(session.name)
    if len(known.tokens) > 1:
        volume.change_peer(replace(known, tokens=known.tokens[:1]))
        volume.commits.request()


def accept(session: Session, token: int) -> None:
    """Remember the token that the peer offered; 0 is none."""
    volume = session.volume
    known = volume.facts.peer(session.name)
    if token and token not in known.tokens:
        tokens = (token, *known.tokens)[:TOKENS_KEPT]
        volume.change_peer(replace(known, tokens=tokens))
        volume.commits.request()


def _choose_token(session: Session, mine: tuple[int, ...], theirs: Hello) -> int:
    volume = session.volume
    known_to_peer = theirs.tokens if theirs.known_peer_id == volume.facts.node_id else ()
    if mine and mine[0] not in known_to_peer[:1]:
        # The peer has not seen the newest yet: offer it again, make no other.
        return mine[0]
    return volume.random_id()
